"""Names of recipes and of data become objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.contracts import Frozen, Source
from ..base.errors import InputError, nearest
from ..base.recipe import check, override, read_recipe, to_toml, with_preset
from ..data.catalog import open_named
from ..data.joined import Joined
from ..data.toy import ToyShapes
from ..data.unpaired import Unpaired
from .opening import PACKAGE, families, family, judges


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Frozen, overrides: Sequence[str] = (), preset: str | None = None
) -> Frozen:
    """A checked recipe from a TOML file (or its data, or an already checked one), with one of its presets, then
    `key=value` overrides applied."""
    if isinstance(recipe, Frozen):
        data, where = read_recipe(to_toml(recipe)), "recipe"  # which says "none" where leaving it out would mean a default
    else:
        where = "recipe" if isinstance(recipe, Mapping) else str(recipe)
        data = dict(recipe) if isinstance(recipe, Mapping) else read_recipe(find_recipe(recipe))
    data = override(with_preset(data, preset), overrides)
    if "family" not in data:
        raise InputError("a recipe with `family`", f"{where} without it", f"Families: {', '.join((*families(), *judges()))}.")
    return check(family(str(data["family"])).recipe, data, where)


BESIDE = {".": (".", "judges"), "experiments": ("experiments", "ablations")}  # parts of the folders that are read as one


def recipe_folders() -> tuple[Path, ...]:
    return (Path("recipes"), PACKAGE / "recipes", PACKAGE.parents[1] / "recipes")  # yours, installed, in a checkout


def recipes(part: str = ".") -> dict[str, Path]:
    """Recipe files by name: of models and of judges, or of what lies in a part of the recipe folders ("sets": prepared data,
    "experiments")."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for place in BESIDE.get(part, (part,)):
            for path in sorted((folder / place).glob("*.toml")):
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


def open_data(data: Any, fetch: bool = True) -> Source:
    """What a recipe's `data` names: one set, two that do not correspond, where it has `sources`, or several that are a class
    each, where it has `sets`."""
    if sets := getattr(data, "sets", None):
        return Joined({label: open_source(name, fetch) for label, name in sets.items()})
    names = getattr(data, "sources", (data.source,))
    opened = [open_source(name, fetch) for name in names]
    return opened[0] if len(opened) == 1 else Unpaired(*opened)
