"""X/Y/Z grids: an experiment about the settings of one finished model, from a few words instead of a file."""

from __future__ import annotations

from collections.abc import Sequence

from ..base.errors import InputError
from ..base.recipe import check
from .cells import ExperimentRecipe


def grid_of(model: str, prompts: Sequence[str], axes: Sequence[str], seeds: Sequence[int], each: int = 1) -> ExperimentRecipe:
    """axes: "guidance=1,3,5" and so on, of any knob; the first value of each is the base. each: pictures of a prompt."""
    found = []
    for axis in axes:
        name, _, values = axis.partition("=")
        parts = [value.strip() for value in values.split(",") if value.strip()]
        if not name.strip() or not parts:
            raise InputError("an axis such as guidance=1,3,5", repr(axis))
        if len(set(parts)) < len(parts):
            raise InputError("values that differ on an axis", repr(axis))
        found.append({"name": name.strip(), "values": {value: {"knobs": [f"{name.strip()}={value}"]} for value in parts}})
    if not found:
        raise InputError("one axis or more, such as --axis guidance=1,3,5", "none")
    told = {
        "title": f"{model}: {' x '.join(str(a['name']) for a in found)}",
        "question": f"What do {' and '.join(str(a['name']) for a in found)} change?",
        "model": model, "prompts": list(prompts), "pictures": each * len(prompts), "seeds": list(seeds), "axis": found,
    }  # fmt: skip
    return check(ExperimentRecipe, told, "grid")
