"""The first pictures of a source: enough to probe a training without reading a whole set."""

from collections.abc import Mapping

from ..base.contracts import Sample, Source
from .attributes import attributes_of


class Head:
    """At most `count` pictures from the beginning (a contracts.Source)."""

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count = source, min(count, len(source))
        self.name, self.classes = source.name, source.classes
        self.fingerprint = f"{source.fingerprint}-first-{self.count}"

    def __len__(self) -> int:
        return self.count

    def captions_of(self, index: int) -> tuple[str, ...]:
        return self.source.captions_of(index)

    def attributes_of(self, index: int) -> Mapping[str, str]:
        return attributes_of(self.source, index)

    def read(self, index: int) -> Sample:
        return self.source.read(index)
