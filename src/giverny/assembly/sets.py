"""Raw photographs become a prepared set, by a recipe's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..base.errors import InputError
from ..base.recipe import check, override, read_recipe
from .reading import find_recipe


def prepare_set(
    name: str | Path,
    folder: Path,
    overrides: Sequence[str] = (),
    told: Callable[[str, int, int], None] = lambda *_: None,
    replace: bool = False,
) -> dict[str, Any]:
    """Make a prepared set from raw photographs into `folder`; returns what its card says.

    name: of a recipe in recipes/sets, or a file. told: called with (what is being done, how many so far, of how many).
    A run that was broken off resumes the training of its network; a set that this recipe has made is left as it is.
    """
    from ..data.catalog import raw_files
    from ..data.clothes.colours import colour_model
    from ..data.clothes.photographs import home_photographs, shop_photographs
    from ..perception.foreground import ForegroundRecipe, certainty
    from ..pipelines.cutting import cut_out, teach_cutting
    from ..pipelines.prepare import Prepared, PrepareRecipe

    path = find_recipe(name, "sets")
    recipe = check(PrepareRecipe, override(read_recipe(path), overrides), str(path))
    if (folder / "train.zip").exists() and not replace:
        card = json.loads((folder / "card.json").read_text("utf-8")) if (folder / "card.json").is_file() else {}
        if card.get("recipe") == recipe.model_dump(mode="json"):
            return dict(card)
        raise InputError("a folder without a prepared set, or --replace", f"{folder}, which holds one of another recipe")
    openers = {"fashion-products": shop_photographs, "clothing-cc0": home_photographs}
    sets = [openers[source](raw_files(source)) for source in recipe.sources]
    at_home = next((s for s in sets if s.place == "home"), None)
    cutting = recipe.foreground
    facts: dict[str, Any] = {"name": recipe.name, "title": recipe.title}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cutting.loop.seed)
        network = ForegroundRecipe(size=cutting.size, channels=cutting.channels).build()
    if at_home is not None:
        facts["cutting"] = teach_cutting(at_home, network, cutting.size, folder / "cutting", cutting.loop, told)
    shop = any(s.place == "shop" for s in sets)
    made = Prepared(
        recipe, sets, None if shop else colour_model(), partial(cut_out, partial(certainty, network), cutting.size), told, facts
    )
    return made.write(folder)
