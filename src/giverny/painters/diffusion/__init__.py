"""Diffusion models: words -> latents by denoising -> pictures. Exports PAINTER, made when first asked for."""

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
