"""The only file that turns names into objects: model names into painters, recipe files into runs.

A family is a file (or folder) in `giverny/painters` that exports PAINTER; its file name is its name. Packages of others
join through the entry point group `giverny.painters`.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from .base.contracts import Family, Frozen, Painter, Source, Trained
from .base.errors import InputError, nearest
from .base.files import atomic_write
from .base.recipe import check, override, read_recipe, to_toml, with_preset
from .base.runtime import describe_machine, pick_device, pick_precision
from .checkpoints.clip_layouts import CONFIG, read_clip
from .checkpoints.native import CARD, Card, fill, read_card, write_model
from .compare.report import write_report
from .data.catalog import CATALOG, open_named
from .data.head import Head
from .data.toy import ToyShapes
from .pipelines.probe import probe
from .pipelines.train import StageReport, train_stages
from .text.clip import ClipRecipe
from .text.space import SharedSpace
from .text.tokenizer import Tokenizer
from .training.parallel import World, world

PACKAGE = Path(__file__).parent
DEFAULT_MODEL = "wardrobe"


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


def user_models() -> Path:
    """Where a user's own models are kept: GIVERNY_MODELS, or the place this system has for such things."""
    from platformdirs import user_data_path

    named = os.environ.get("GIVERNY_MODELS")
    return Path(named) if named else user_data_path("giverny") / "models"


def model_folders() -> tuple[Path, ...]:
    """Where models are looked for by name: the user's own, then what ships with the package."""
    return (user_models(), PACKAGE / "shelf")


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


def open_clip(model: str | Path = DEFAULT_MODEL, device: str = "auto") -> SharedSpace:
    """The CLIP beside a diffusion model, to ask how well words and pictures fit. model: as for `open_painter`.

    Or a published CLIP: a folder in transformers' layout, with tokenizer.json and preprocessor_config.json (of which the
    mean and the deviation are read).
    """
    from .painters.diffusion import family as diffusion

    place, path = pick_device(device), Path(model).expanduser()
    if (path / CONFIG).is_file() and not (path / CARD).is_file():
        values, tensors = read_clip(path)
        recipe, told = ClipRecipe(**values), path / "preprocessor_config.json"
        try:
            brought = json.loads(told.read_text("utf-8"))
            mean, deviation = brought["image_mean"], brought["image_std"]
        except (OSError, ValueError, LookupError) as error:
            raise InputError("image_mean and image_std beside the weights", f"{told} ({error})") from error
        with torch.device("meta"):
            clip = recipe.build()
        fill(clip, tensors, "CLIP")
        return SharedSpace(clip, Tokenizer.read(path / "tokenizer.json", recipe.text.length), place, mean, deviation)
    folder = find_model(model)
    card = read_card(folder)
    if card.family != diffusion.PAINTER.name:
        raise InputError("a diffusion model, which has CLIP beside it", f"{folder}, of family {card.family!r}")
    return diffusion.open_clip(folder, card, place)


# -- recipes ----------------------------------------------------------------------------------------------------------


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Frozen, overrides: Sequence[str] = (), preset: str | None = None
) -> Frozen:
    """A checked recipe from a TOML file (or its data, or an already checked one), with one of its presets, then
    `key=value` overrides applied."""
    if isinstance(recipe, Frozen):
        data, where = recipe.model_dump(mode="json", exclude_none=True), "recipe"
    else:
        where = "recipe" if isinstance(recipe, Mapping) else str(recipe)
        data = dict(recipe) if isinstance(recipe, Mapping) else read_recipe(find_recipe(recipe))
    data = override(with_preset(data, preset), overrides)
    if "family" not in data:
        raise InputError("a recipe with `family`", f"{where} without it", f"Families: {', '.join(families())}.")
    return check(family(str(data["family"])).recipe, data, where)


def recipe_folders() -> tuple[Path, ...]:
    return (Path("recipes"), PACKAGE / "recipes", PACKAGE.parents[1] / "recipes")  # yours, installed, in a checkout


def recipes(part: str = ".") -> dict[str, Path]:
    """Recipe files by name: of models, or of what lies in a part of the recipe folders ("sets": prepared data)."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted((folder / part).glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def find_recipe(name: str | Path, part: str = ".") -> Path:
    """A recipe file by path, or by name among those that ship."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = recipes(part)
    if str(name) in known:
        return known[str(name)]
    raise InputError("a recipe file, or the name of one that ships", repr(str(name)), nearest(str(name), known))


def open_source(name: str, fetch: bool = True) -> Source:
    """Training data by name or path; "toy" is made on the spot."""
    return ToyShapes(count=256, size=16) if name == "toy" else open_named(name, fetch=fetch)


# -- training ---------------------------------------------------------------------------------------------------------


def train(
    recipe: str | Path | Mapping[str, Any] | Frozen,
    run: str | Path,
    budget: float | None = None,  # seconds for all stages together; None: the recipe's own, or each stage's steps
    resume: bool = False,
    device: str = "auto",
    source: Source | None = None,  # None: opened by the recipe's data.source
) -> Iterator[StageReport]:
    """Train a recipe into a run folder; the model lies in run/model when the iterator ends. Closing it saves and stops."""
    checked: Any = load_recipe(recipe)
    run, place = Path(run), pick_device(device)
    if place.type == "cuda" and place.index is None and "LOCAL_RANK" in os.environ:
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # torchrun: one device a process
    if budget is None and checked.budget is not None:
        budget = checked.budget
    with world() as processes:
        if not resume and processes.leads and (run / "stages").exists():
            raise InputError("a fresh run folder, or --resume", f"{run}, which holds a run", "Or name another with --out.")
        found = source if source is not None else open_source(checked.data.source)
        workshop = family(checked.family).workshop(checked, found, run / "cache", processes, place)
        told_first = False
        try:
            with closing(train_stages(workshop, run, budget, resume, processes, place)) as stages:
                for told in stages:
                    if processes.leads and not told_first:  # not before: a run of another recipe may yet be refused
                        atomic_write(run / "recipe.toml", to_toml(checked))
                    told_first = True
                    yield told
            if processes.leads:
                result = workshop.result()
                write_model(run / "model", card_of(checked, found, result, run, place), result.networks, result.extras)
        finally:
            if processes.leads and run.is_dir():
                write_report(run)


def card_of(recipe: Any, source: Source, result: Trained, run: Path, device: torch.device) -> Card:
    """The card of a finished run: what it was trained on, for how long, on which machine."""
    stages = {p.parent.name: json.loads(p.read_text("utf-8")) for p in sorted((run / "stages").glob("*/done.json"))}
    data: dict[str, Any] = {"name": source.name, "pictures": len(source), "fingerprint": source.fingerprint}
    if recipe.data.source in CATALOG:
        entry = CATALOG[recipe.data.source]
        data |= {"name": entry.name, "licence": entry.licence, "homepage": entry.homepage}
    machine = {k: v for k, v in describe_machine().items() if k in ("giverny", "torch", "python", "threads", "cpu_capability")}
    training = {
        "stages": {name: {k: v for k, v in note.items() if k != "identity"} for name, note in stages.items()},
        "hours": round(sum(note["seconds"] for note in stages.values()) / 3600, 3),
        "device": str(device),
        **machine,
    }
    return Card(
        family=recipe.family, name=recipe.name, title=recipe.title, size=result.size, recipe=dict(result.recipe),
        knobs=dict(result.knobs), prompts=result.prompts, data=data, licence=recipe.licence, training=training,
    )  # fmt: skip


def probe_training(recipe: Frozen, budget: float | None = None, device: str = "auto") -> list[dict[str, Any]]:
    """What a training would take, from three steps of each stage on a few pictures; nothing is kept."""
    checked: Any = recipe
    found = open_source(checked.data.source)
    place = pick_device(device)
    make = family(checked.family).workshop
    return probe(lambda cache: make(checked, Head(found, 1024), cache, World(), place), budget or checked.budget, place)


def describe_model(folder: Path) -> dict[str, Any]:
    """A card as plain data, with where it lies and how large it is."""
    card: Card = read_card(folder)
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    return {**json.loads(card.model_dump_json()), "folder": str(folder), "bytes": size, "fingerprint": card.fingerprint}


# -- prepared sets ----------------------------------------------------------------------------------------------------


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
    from .data.catalog import raw_files
    from .data.clothes.colours import colour_model
    from .data.clothes.photographs import home_photographs, shop_photographs
    from .perception.foreground import ForegroundRecipe, certainty
    from .pipelines.cutting import cut_out, teach_cutting
    from .pipelines.prepare import Prepared, PrepareRecipe

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
