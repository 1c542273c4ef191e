"""Translators: a picture of one kind becomes one of another, a photograph a painting. Exports PAINTER when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...base.contracts import Family

    PAINTER: Family


def __getattr__(name: str) -> Any:
    if name == "PAINTER":
        from .family import PAINTER

        return PAINTER
    raise AttributeError(name)
