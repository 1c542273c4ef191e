"""giverny: train, run, steer, measure and compare image generators.

>>> import giverny
>>> painter = giverny.open_painter()
>>> pictures = giverny.paint(painter, "a red dress", n=4)
>>> giverny.contact_sheet(pictures)

Importing the package does no work; each name below is fetched from its room when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembly import load_recipe, models, open_clip, open_painter, train
    from .base.contracts import Picture, Request
    from .base.errors import InputError
    from .data.catalog import open_named
    from .pipelines.text2image import contact_sheet, evolution, paint

_HOMES = {
    "InputError": "base.errors",
    "Picture": "base.contracts",
    "Request": "base.contracts",
    "contact_sheet": "pipelines.text2image",
    "evolution": "pipelines.text2image",
    "load_recipe": "assembly",
    "models": "assembly",
    "open_clip": "assembly",
    "open_named": "data.catalog",
    "open_painter": "assembly",
    "paint": "pipelines.text2image",
    "train": "assembly",
}

__all__ = [
    "InputError",
    "Picture",
    "Request",
    "contact_sheet",
    "evolution",
    "load_recipe",
    "models",
    "open_clip",
    "open_named",
    "open_painter",
    "paint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
