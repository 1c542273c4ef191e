"""One engine for grids, ablations and arenas: cells x seeds, each trained, painted with and measured, and a table of it.

Work comes in units: a training, a painting, the measuring of one score. Each lies in a folder of the store that is named
by everything its result depends on, so nothing is done twice, neither by two cells (axes of knobs share a training) nor by
two experiments. A unit is done once its `done.json` is there, which is written whole or not at all: killed at any
moment, a second run goes on where the first one was, and `survey` says what there is. What the words of a cell mean is
known to an `Atelier` alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..base.contracts import Score
from ..base.errors import InputError, choose
from ..base.files import fingerprint
from .cells import Cell, ExperimentRecipe, Row, Table, cells, tabulate
from .units import ERROR, Unable, Units, timed

BEAT = 5.0  # seconds between two notes of how long a unit has taken


@dataclass(frozen=True)
class Settled:
    """A cell with every setting resolved, defaults included: plain data that can be fingerprinted.

    Whatever else changes a result belongs in here as well: the data's fingerprint, a version of the code.
    """

    model: Mapping[str, Any] | Path  # all that its training depends on but seed and budget; or the folder of a finished one
    knobs: Mapping[str, Any]  # all that a painting depends on but model, prompts and seeds
    instruments: Mapping[str, Any]  # score -> all that it depends on but the pictures and their requests; None: not to be had


class Atelier(Protocol):
    """Where an experiment's work is done. Only this knows networks, recipes and files of pictures.

    Generators yield progress of any kind. Closing one saves what there is and stops; called again with the same folder,
    which may also be that of a killed call, it goes on or begins anew.
    """

    def settle(self, cell: Cell) -> Settled:
        """Raises InputError for what cannot be carried out: that costs nothing yet."""
        ...

    def train(self, training: Mapping[str, Any], seed: int, budget: float, folder: Path) -> Generator[Any, None, None]:
        """budget: seconds over all calls together. The report shows what it finds in `folder` of a run folder: the curves
        of `stages/<name>/metrics.jsonl`, the machine of `model/card.json`."""
        ...

    def fingerprint(self, folder: Path) -> str:
        """Of the model in the folder of a training, or in that of a finished one."""
        ...

    def paint(
        self, model: Path, prompts: Sequence[str], knobs: Mapping[str, Any], seeds: Sequence[int], folder: Path
    ) -> Generator[Any, None, None]:
        """One picture for each (prompt, seed), the k-th at `units.picture_path(folder, k)`."""
        ...

    def measure(
        self, pictures: Path, prompts: Sequence[str], seeds: Sequence[int], instruments: Mapping[str, Any]
    ) -> list[Score]:
        """One score for each instrument. pictures: the folder they were painted into."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Events


@dataclass(frozen=True)
class Planned:
    cells: int
    rows: int


@dataclass(frozen=True)
class Working:
    """A unit has begun (event: None), or its atelier says something."""

    kind: str  # "training", "painting", "measuring"
    unit: str  # its key
    event: Any = None


@dataclass(frozen=True)
class Finished:
    """A unit's result is there. fresh: since just now; otherwise it was there before."""

    kind: str
    unit: str
    seconds: float
    fresh: bool


@dataclass(frozen=True)
class Told:
    """A row is complete: with its scores, or with the reason why not."""

    row: Row
    done: int
    total: int


@dataclass(frozen=True)
class Ended:
    """The last event: the table, which lies in the experiment's folder as well."""

    table: Table


Asked = tuple[list[str], list[int]]  # prompts and seeds, one of each for a picture
Happening = Planned | Working | Finished | Told | Ended


# ---------------------------------------------------------------------------------------------------------------------
# The engine


def run_experiment(recipe: ExperimentRecipe, atelier: Atelier, store: Path, out: Path) -> Generator[Happening, None, None]:
    """Do what is not done yet, seed by seed, and keep `table.json` and `table.csv` in `out` up to the last row.

    store: folder of units, shared by any number of experiments. A cell that fails leaves rows that say why; the next run
    tries it again. Closing the iterator, or Ctrl-C, stops with everything saved.
    """
    engine = Engine(recipe, atelier, Units(store))
    ready = engine.ready()
    rows = engine.survey(ready)
    table = tabulate(recipe, list(rows.values()))
    table.write(out)
    yield Planned(len(ready), len(rows))
    done = 0
    for seed in recipe.seeds:
        for cell, settled in ready:
            if seed not in recipe.seeds_of(cell):
                continue
            row = yield from engine.row(cell, settled, seed)
            rows[cell.label, seed] = row
            table = tabulate(recipe, list(rows.values()))
            table.write(out)
            done += 1
            yield Told(row, done, len(rows))
    yield Ended(table)


def survey(recipe: ExperimentRecipe, atelier: Atelier, store: Path) -> Table:
    """The table of what lies in the store, without any work: of an experiment that runs, was stopped, or never began."""
    engine = Engine(recipe, atelier, Units(store))
    return tabulate(recipe, list(engine.survey(engine.ready()).values()))


Ready = tuple[Settled, str] | str  # a cell's settings and the fingerprint of its finished model or ""; or why there are none


@dataclass
class Engine:
    """Carries out rows one after the other. What is done already is found, not done."""

    recipe: ExperimentRecipe
    atelier: Atelier
    units: Units
    looking: bool = False  # at what there is, and nothing else

    def ready(self) -> list[tuple[Cell, Ready]]:
        return [(cell, self._settled(cell)) for cell in cells(self.recipe)]

    def survey(self, ready: Sequence[tuple[Cell, Ready]]) -> dict[tuple[str, int], Row]:
        """{(label, seed): the row as far as it is done}, cell by cell."""
        looker = replace(self, looking=True)
        rows = [(cell, how, seed) for cell, how in ready for seed in self.recipe.seeds_of(cell)]
        return {(cell.label, seed): _last(looker.row(cell, how, seed)) for cell, how, seed in rows}

    def _settled(self, cell: Cell) -> Ready:
        try:
            folder = self.units.folder("settling", cell)
            with self.units.tried(folder, "settings"):
                settled = self.atelier.settle(cell)
                fingerprint([settled.model, settled.knobs, settled.instruments])  # what has no name is refused now
                for name in self.recipe.measure:
                    choose(name, settled.instruments, "score")
                (folder / ERROR).unlink(missing_ok=True)
                return settled, self.atelier.fingerprint(settled.model) if isinstance(settled.model, Path) else ""
        except Unable as error:
            return str(error)

    def row(self, cell: Cell, ready: Ready, seed: int) -> Generator[Happening, None, Row]:
        facts: dict[str, Any] = {"label": cell.label, "values": cell.values, "control": cell.control, "seed": seed}
        facts["seconds"] = {}
        if isinstance(ready, str):
            return Row(**facts, reason=ready)
        settled, facts["fingerprint"] = ready
        try:
            model = settled.model
            if not isinstance(model, Path):
                model = yield from self._training(model, seed, cell.share, facts)
            asked = self.recipe.asked(seed, cell)
            pictures = yield from self._painting(settled, model, asked, facts)
            yield from self._measuring(settled, pictures, asked, facts)
        except Unable as error:
            facts["reason"] = str(error)
        return Row(**facts)

    def _training(
        self, training: Mapping[str, Any], seed: int, share: float, facts: dict[str, Any]
    ) -> Generator[Happening, None, Path]:
        budget = (self.recipe.budget or 0.0) * share
        identity = {"training": training, "seed": seed, "budget": budget}
        if self.recipe.clock != "wall":
            identity["clock"] = self.recipe.clock
        folder = self.units.folder("training", identity)
        facts["training"], work = folder.name, folder / "work"

        def result() -> dict[str, Any]:
            return {"fingerprint": self.atelier.fingerprint(work)}

        kept = yield from self._unit(folder, identity, lambda: self.atelier.train(training, seed, budget, work), result)
        facts["fingerprint"], facts["seconds"]["training"] = kept["fingerprint"], kept["seconds"]
        return work

    def _painting(self, settled: Settled, model: Path, asked: Asked, facts: dict[str, Any]) -> Generator[Happening, None, Path]:
        prompts, seeds = asked
        identity = {"model": facts["fingerprint"], "knobs": settled.knobs, "prompts": prompts, "seeds": seeds}
        folder = self.units.folder("painting", identity)
        facts["painting"], work = folder.name, folder / "work"

        def paint() -> Generator[Any, None, None]:
            given = self.atelier.fingerprint(model)
            if given != facts["fingerprint"]:
                wanted = f"the model of fingerprint {facts['fingerprint']}, as it was when it was finished"
                raise InputError(wanted, f"{given} in {model}", "Put it back, or remove its unit: it is then made anew.")
            yield from self.atelier.paint(model, prompts, settled.knobs, seeds, work)

        kept = yield from self._unit(folder, identity, paint, dict)
        facts["seconds"]["painting"] = kept["seconds"]
        return work

    def _unit(
        self, folder: Path, identity: Any, work: Callable[[], Generator[Any, None, None]], result: Callable[[], dict[str, Any]]
    ) -> Generator[Happening, None, dict[str, Any]]:
        """What is kept of a unit; done now where it was not. result: what to keep, asked when the work has ended."""
        kind, key, fresh = folder.parent.name, folder.name, False
        kept = self.units.result(folder)
        if kept is None:
            if self.looking:
                raise Unable(self.units.waiting(folder))
            with self.units.tried(folder), self.units.alone(folder, identity):
                kept = self.units.result(folder)  # another run may have finished it meanwhile
                if kept is None:
                    fresh = True
                    with timed(folder) as watch:
                        yield Working(kind, key)
                        with closing(work()) as events:
                            for event in events:
                                yield Working(kind, key, event)
                                watch.note(BEAT)
                        kept = {**result(), "seconds": watch.seconds}
                        self.units.keep(folder, kept)
        yield Finished(kind, key, kept["seconds"], fresh)
        return kept

    def _measuring(
        self, settled: Settled, pictures: Path, asked: Asked, facts: dict[str, Any]
    ) -> Generator[Happening, None, None]:
        """The scores, in the recipe's order. Those that are not there yet are measured in one go: they may share features."""
        identities = {
            name: {"painting": facts["painting"], "score": name, "instrument": settled.instruments[name]}
            for name in self.recipe.measure
            if settled.instruments[name] is not None
        }
        folders = {name: self.units.folder("measuring", identity) for name, identity in identities.items()}

        def look() -> list[str]:
            """Note the scores that are there; the names of the others."""
            found = {name: self.units.score(folder) for name, folder in folders.items()}
            facts["scores"] = tuple(score for score in found.values() if score is not None)
            return [name for name, score in found.items() if score is None]

        missing = look()
        if missing and self.looking:
            raise Unable(self.units.waiting(folders[missing[0]]))
        if missing:
            with self.units.tried(folders[missing[0]]), ExitStack() as stack:
                for name in missing:
                    stack.enter_context(self.units.alone(folders[name], identities[name]))
                missing = look()  # another run may have measured meanwhile
                if missing:
                    yield Working("measuring", folders[missing[0]].name)
                    begun = time.monotonic()
                    scores = self.atelier.measure(pictures, *asked, {name: settled.instruments[name] for name in missing})
                    if sorted(score.name for score in scores) != sorted(missing):
                        given = ", ".join(score.name for score in scores) or "none"
                        raise InputError(f"scores {', '.join(missing)}", given)
                    seconds = round((time.monotonic() - begun) / len(missing), 3)
                    for score in scores:
                        self.units.keep(folders[score.name], {"score": score.model_dump(mode="json"), "seconds": seconds})
                    look()
        for name, folder in folders.items():
            yield Finished("measuring", folder.name, (self.units.result(folder) or {}).get("seconds", 0.0), name in missing)


def _last(steps: Generator[Any, None, Row]) -> Row:
    """What a generator returns in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            row: Row = end.value
            return row
