"""Which pictures of a source a judge learns from, which are held out, and what each of them shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ...base.contracts import Source
from ...base.errors import InputError, choose, nearest
from ...base.files import fingerprint
from ...base.runtime import derive_seed
from ...data.attributes import attributes_of
from ...data.crops import CROP, held_out, photographs_of, whole
from ...data.joined import Joined
from ...training.classify import UNKNOWN
from .recipe import DataRecipe


@dataclass(frozen=True, eq=False)
class Examples:
    """kept, held: indices into the source, ascending. attributes: the values of each that kept pictures show.

    values: int64 (pictures of the source, attributes), the number of each value; UNKNOWN where nobody named one, and in
    pictures that are neither kept nor held.
    """

    kept: np.ndarray
    held: np.ndarray
    attributes: dict[str, tuple[str, ...]]
    values: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Of what is learnt, the pixels aside."""
        return fingerprint([self.attributes, self.kept.tolist(), self.values[self.kept].tolist()])

    def showing(self, attribute: str, value: str) -> tuple[np.ndarray, np.ndarray]:
        """Kept pictures that show a value, and kept ones that show another: indices. Raises InputError for a value there is
        not."""
        column, known = list(self.attributes).index(attribute), self.attributes[attribute]
        named = self.values[self.kept, column]
        number = known.index(choose(value, known, f"value of {attribute}"))
        return self.kept[named == number], self.kept[(named != number) & (named != UNKNOWN)]

    def counts(self, attribute: str) -> np.ndarray:
        """How many kept pictures show each value: (K,)."""
        named = self.values[self.kept, list(self.attributes).index(attribute)]
        return np.bincount(named[named != UNKNOWN], minlength=len(self.attributes[attribute]))


def choose_examples(source: Source, data: DataRecipe, half: str) -> Examples:
    """half: "even" or "odd" for the pictures of that index in the source, else all. Raises InputError where the source does
    not tell the attributes that are asked for, or tells the same of all pictures."""
    rows = range(half == "odd", len(source), 1 if half == "all" else 2)
    told = {row: attributes_of(source, row) for row in rows}
    known = Counter(name for row in told.values() for name in row)
    for name in (*data.attributes, *data.only):
        if name not in known:
            hint = nearest(name, known) or "it needs class folders, labels, or a table with such a column"
            raise InputError(f"pictures of which {name!r} is told", f"{source.name}, where it is not", hint)
    every = {said[name] for said in told.values() for name in data.attributes if name in said}
    for value in data.called:
        choose(value, every, f"value of {' or '.join(data.attributes)}, in data.called")
    wanted = [row for row, said in told.items() if all(said.get(k) == v for k, v in data.only.items())]
    chosen = np.array([row for row in wanted if any(name in told[row] for name in data.attributes)], dtype=np.int64)
    if len(chosen) < 2:
        raise InputError(
            "two pictures or more to learn from", f"{len(chosen)} of {len(source)} in {source.name}", "see data.only"
        )
    if isinstance(source, Joined):
        held = np.intersect1d(_held_of_each(source, data), chosen)
        if not len(held):
            raise InputError("pictures to hold out", f"none of {half} number among {source.name}", "Raise data.validation.")
    else:
        order = np.random.default_rng(derive_seed("held out", source.fingerprint)).permutation(chosen).tolist()
        photographs, together = photographs_of(source, data.group), dict[str, list[int]]()
        for row in order:
            together.setdefault(photographs[row], []).append(row)
        held = np.sort(whole(together.values(), min(data.validation, max(1, len(chosen) // 5))))
    kept = np.setdiff1d(chosen, held)
    if not len(kept):
        raise InputError("pictures to learn from beside those held out", f"{source.name}, {len(chosen)} in one group")

    def called(value: str) -> str:
        return data.called.get(value, value)

    shown = {name: {row: called(told[row].get(name, "")) for row in chosen.tolist()} for name in data.attributes}
    classes = tuple(dict.fromkeys(map(called, source.classes)))
    attributes = {name: _values(name, {of[row] for row in kept.tolist()}, classes) for name, of in shown.items()}
    values = np.full((len(source), len(attributes)), UNKNOWN, np.int64)
    for column, (name, of) in enumerate(shown.items()):
        numbers = {value: number for number, value in enumerate(attributes[name])}
        values[chosen, column] = [numbers.get(value, UNKNOWN) for value in of.values()]
    return Examples(kept, held, attributes, values)


def _held_of_each(source: Joined, data: DataRecipe) -> np.ndarray:
    """Of each set its share of the pictures held out, and those that a translator between such sets holds out as well: a judge
    that has learnt them knows a translation by its photograph."""
    rows, before = [], 0
    for one in source.sets.values():
        names = photographs_of(one, data.group)
        pattern = data.group if len(set(names)) < len(names) else CROP
        rows.append(
            before + held_out(one, max(1, data.validation // len(source.sets)), derive_seed(one.fingerprint), pattern)[0]
        )
        before += len(one)
    return np.concatenate(rows)


def _values(name: str, shown: set[str], classes: tuple[str, ...]) -> tuple[str, ...]:
    """In the order of the source's classes where they are these, else in that of letters."""
    found = shown - {""}
    if len(found) < 2:
        raise InputError(f"two values or more of {name!r}", ", ".join(found) or "none", "nothing can be told apart")
    return tuple(c for c in classes if c in found) if found <= set(classes) else tuple(sorted(found))
