"""Classifiers: pictures -> features, and what they show in words. Exports JUDGE, made when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...base.contracts import Family

    JUDGE: Family


def __getattr__(name: str) -> Any:
    if name == "JUDGE":
        from .family import JUDGE

        return JUDGE
    raise AttributeError(name)
