"""The only file that turns names into objects: model names into painters, recipe files into runs.

A family is a file (or folder) in `giverny/painters` that exports PAINTER; its file name is its name. Packages of others
join through the entry point group `giverny.painters`.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any



from .base.contracts import Family, Frozen, Painter, Source
from .base.errors import InputError, nearest
from .base.recipe import check, override, read_recipe
from .base.runtime import pick_device, pick_precision
from .checkpoints.native import CARD, Card, read_card

PACKAGE = Path(__file__).parent
DEFAULT_MODEL = "fashion-mnist"


def families() -> tuple[str, ...]:
    """Names of all kinds of maker: the files of the painters room, and those that other packages bring."""
    own = [m.name for m in pkgutil.iter_modules([str(PACKAGE / "painters")])]
    return tuple(sorted({*own, *(e.name for e in entry_points(group="giverny.painters"))}))


def family(name: str) -> Family:
    if name not in families():
        raise InputError("a known family of painters", repr(name), nearest(name, families()))
    for entry in entry_points(group="giverny.painters"):
        if entry.name == name:
            return entry.load()
    found: Family = importlib.import_module(f".painters.{name}", __package__).PAINTER
    return found


# -- models -----------------------------------------------------------------------------------------------------------


def model_folders() -> tuple[Path, ...]:
    """Where models are looked for by name: GIVERNY_MODELS, the user's own, and what ships with the package."""
    from platformdirs import user_data_path

    named = os.environ.get("GIVERNY_MODELS")
    return (*([Path(named)] if named else []), user_data_path("giverny") / "models", PACKAGE / "shelf")


def models() -> dict[str, Path]:
    """Every model that can be opened by name. An earlier place wins over a later one."""
    found: dict[str, Path] = {}
    for place in model_folders():
        for card in sorted(place.glob(f"*/{CARD}")):
            found.setdefault(card.parent.name, card.parent)
    return found


def find_model(name: str | Path = DEFAULT_MODEL) -> Path:
    """The folder of a model: by name, or by path (of a model folder or of a run folder)."""
    known = models()
    if str(name) in known:
        return known[str(name)]
    path = Path(name).expanduser()
    for folder in (path, path / "model"):
        if (folder / CARD).is_file():
            return folder
    raise InputError("a model's name or the path of its folder", repr(str(name)), nearest(str(name), known))


def open_painter(
    model: str | Path = DEFAULT_MODEL, device: str = "auto", precision: str = "auto", backend: str = "auto"
) -> Painter:
    """A painter, ready to paint. model: a name from `giverny models`, or a folder."""
    folder = find_model(model)
    card = read_card(folder)
    place = pick_device(device)
    painter: Painter = family(card.family).open(folder, card, place, pick_precision(place, precision), backend)
    return painter


# -- recipes ----------------------------------------------------------------------------------------------------------


def load_recipe(recipe: str | Path | Mapping[str, Any] | Frozen, overrides: Sequence[str] = ()) -> Frozen:
    """A checked recipe from a TOML file (or its data, or an already checked one), with `key=value` overrides applied."""
    if isinstance(recipe, Frozen):
        data, where = recipe.model_dump(mode="json", exclude_none=True), "recipe"
    else:
        where = "recipe" if isinstance(recipe, Mapping) else str(recipe)
        data = dict(recipe) if isinstance(recipe, Mapping) else read_recipe(find_recipe(recipe))
    data = override(data, overrides)
    if "family" not in data:
        raise InputError("a recipe with `family`", f"{where} without it", f"Families: {', '.join(families())}.")
    return check(family(str(data["family"])).recipe, data, where)


def recipe_folders() -> tuple[Path, ...]:
    return (Path("recipes"), PACKAGE / "recipes")


def recipes() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def find_recipe(name: str | Path) -> Path:
    """A recipe file by path, or by name among those that ship."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = recipes()
    if str(name) in known:
        return known[str(name)]
    raise InputError("a recipe file, or the name of one that ships", repr(str(name)), nearest(str(name), known))


def open_source(name: str, fetch: bool = True) -> Source:
    """Training data by name or path; "toy" is made on the spot."""
    from .data.catalog import open_named
    from .data.toy import ToyShapes

    return ToyShapes(count=256, size=16) if name == "toy" else open_named(name, fetch=fetch)


def describe_model(folder: Path) -> dict[str, Any]:
    """A card as plain data, with where it lies and how large it is."""
    card: Card = read_card(folder)
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    return {**json.loads(card.model_dump_json()), "folder": str(folder), "bytes": size, "fingerprint": card.fingerprint}


