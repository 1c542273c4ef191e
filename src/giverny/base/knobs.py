"""Bases of every typed value: frozen, strict. Free of torch, so that the command line can draw flags from them quickly."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every value that crosses a wall: frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Knobs(Frozen):
    """Base of a painter's typed settings. Flags and web controls are drawn from its fields (range, default, help)."""
