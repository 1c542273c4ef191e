"""Bases of every typed value: frozen, strict. Free of torch, so that the command line can draw flags from them quickly."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Discriminator


class Frozen(BaseModel):
    """Base of every value that crosses a wall: frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Knobs(Frozen):
    """Base of a painter's typed settings. Flags and web controls are drawn from its fields (range, default, help)."""


def by_family(usual: str) -> Discriminator:
    """Tells the members of a union of recipes apart by their `family`; one that does not say is of the usual one."""

    def family(recipe: Any) -> str:
        return str(recipe.get("family", usual) if isinstance(recipe, dict) else getattr(recipe, "family", usual))

    return Discriminator(family)
