"""What is said of a picture besides its captions: its class, and what the further columns of a table hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from ..base.contracts import Source


@runtime_checkable
class Attributed(Protocol):
    """A source that tells more of a picture than captions, without decoding it."""

    def attributes_of(self, index: int) -> Mapping[str, str]: ...


def attributes_of(source: Source, index: int) -> Mapping[str, str]:
    """{attribute: value}; what is not known is left out. The class of a labelled picture goes by the name "class"."""
    if isinstance(source, Attributed):
        return source.attributes_of(index)
    label = source.read(index).label
    return {} if label is None else {"class": source.classes[label]}
