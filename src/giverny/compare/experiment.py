"""One engine for grids, ablations and arenas: cells x seeds, each trained, painted with and measured, and a table of it.

Work comes in units: a training, a painting, the measuring of one score. Each lies in a folder of the store that is named
by everything its result depends on, so nothing is done twice, neither by two cells (axes of knobs share a training) nor by
two experiments. A unit is done once its `done.json` is there, which is written whole or not at all: killed at any
moment, a second run goes on where the first one was. What the words of a cell mean is known to an `Atelier` alone.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..base.contracts import Score
from ..base.errors import InputError, choose
from ..base.files import atomic_write, fingerprint
from .cells import APART, Cell, ExperimentRecipe, Row, Table, cells, tabulate

DONE, SPENT, ERROR = "done.json", "spent.json", "error.txt"
BEAT = 5.0  # seconds between two notes of how long a unit has taken


@dataclass(frozen=True)
class Settled:
    """A cell with every setting resolved, defaults included: plain data that can be fingerprinted.

    Whatever else changes a result belongs in here as well: the data's fingerprint, a version of the code.
    """

    model: Mapping[str, Any] | Path  # all that its training depends on but seed and budget; or the folder of a finished one
    knobs: Mapping[str, Any]  # all that a painting depends on but model, prompts and seeds
    instruments: Mapping[str, Any]  # score -> all that it depends on but the pictures and what they were asked for


class Atelier(Protocol):
    """Where an experiment's work is done. Only this knows networks, recipes and files of pictures.

    Generators yield progress of any kind. Closing one saves what there is and stops; called again with the same folder,
    which may also be that of a killed call, it goes on or begins anew.
    """

    def settle(self, cell: Cell) -> Settled:
        """Raises InputError for what cannot be carried out: that costs nothing yet."""
        ...

    def train(self, training: Mapping[str, Any], seed: int, budget: float, folder: Path) -> Generator[Any, None, None]:
        """budget: seconds over all calls together."""
        ...

    def fingerprint(self, folder: Path) -> str:
        """Of the model in the folder of a training, or in that of a finished one."""
        ...

    def paint(
        self, model: Path, prompts: Sequence[str], knobs: Mapping[str, Any], seeds: Sequence[int], folder: Path
    ) -> Generator[Any, None, None]:
        """One picture for each (prompt, seed), all of them in `folder` in the end."""
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
# Units


class Unable(Exception):
    """Why a row has no scores."""


@dataclass
class Units:
    """The store: `<root>/<kind>/<key>/` holds `unit.json` (what it is), `work/` (the atelier's own) and `done.json`."""

    root: Path
    failed: dict[Path, str] = field(default_factory=dict)  # in this run: not tried again for the next row

    def folder(self, kind: str, identity: Any) -> Path:
        return self.root / kind / fingerprint([kind, identity])

    def result(self, folder: Path) -> dict[str, Any] | None:
        return _read(folder / DONE)

    def keep(self, folder: Path, result: Mapping[str, Any]) -> None:
        atomic_write(folder / DONE, json.dumps(result, indent=2) + "\n")
        for name in (SPENT, ERROR):
            (folder / name).unlink(missing_ok=True)

    @contextmanager
    def tried(self, folder: Path) -> Iterator[None]:
        """Turns an error of the block into the reason of a row; a defect of ours leaves its traceback in the folder."""
        if folder in self.failed:
            raise Unable(self.failed[folder])
        try:
            yield
        except Exception as error:
            said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            self.failed[folder] = f"{folder.parent.name} {folder.name}: {said.replace(f'{self.root}{os.sep}', '')}"
            if not isinstance(error, InputError):
                with suppress(InputError):  # a full disk must not hide what happened
                    atomic_write(folder / ERROR, traceback.format_exc())
            raise Unable(self.failed[folder]) from error

    @contextmanager
    def alone(self, folder: Path, identity: Any) -> Iterator[None]:
        """Make the folder, and keep other processes out of it until the block ends or this process does."""
        (folder / "work").mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            if os.name != "nt":  # there, two runs of one unit at a time are the user's to avoid
                import fcntl

                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise InputError("a unit of its own", "one that another run is at work on", "Run again later.") from error
            atomic_write(folder / "unit.json", json.dumps(identity, indent=2, default=str) + "\n")
            yield


def _read(path: Path) -> Any:
    """Contents of a JSON file, or None where there is no whole one."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


@dataclass
class Watch:
    """Seconds that a unit takes, over all runs that were at it; noted now and then, since a run may be killed."""

    folder: Path

    def __post_init__(self) -> None:
        self.before = float(_read(self.folder / SPENT) or 0.0)
        self.begun = self.noted = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(self.before + time.monotonic() - self.begun, 3)

    def note(self, every: float = BEAT) -> None:
        if time.monotonic() - self.noted >= every:
            self.noted = time.monotonic()
            atomic_write(self.folder / SPENT, json.dumps(self.seconds))


@contextmanager
def timed(folder: Path) -> Iterator[Watch]:
    """A watch on the block, which is noted where the block is left half done."""
    watch = Watch(folder)
    try:
        yield watch
    except BaseException:
        with suppress(InputError):
            watch.note(every=0)
        raise


# ---------------------------------------------------------------------------------------------------------------------
# The engine


def run_experiment(recipe: ExperimentRecipe, atelier: Atelier, store: Path, out: Path) -> Generator[Happening, None, None]:
    """Do what is not done yet, seed by seed, and write `results.json` and `results.csv` into `out`.

    store: folder of units, shared by any number of experiments. A cell that fails leaves rows that say why; the next run
    tries it again. Closing the iterator, or Ctrl-C, stops with everything saved and a table of what there is.
    """
    planned = cells(recipe)
    engine, rows = Engine(recipe, atelier, Units(store)), dict[tuple[str, int], Row]()
    settled = [engine.settled(cell) for cell in planned]
    total = len(planned) * len(recipe.seeds)
    try:
        yield Planned(len(planned), total)
        for seed in recipe.seeds:
            for cell, ready in zip(planned, settled, strict=True):
                row = yield from engine.row(cell, ready, seed)
                rows[cell.label, seed] = row
                yield Told(row, len(rows), total)
    finally:
        table = tabulate(recipe, planned, rows)
        atomic_write(out / "results.json", table.model_dump_json(indent=2) + "\n")
        atomic_write(out / "results.csv", table.csv())
    yield Ended(table)


@dataclass
class Engine:
    """Carries out rows one after the other. What is done already is found, not done."""

    recipe: ExperimentRecipe
    atelier: Atelier
    units: Units

    def settled(self, cell: Cell) -> tuple[Settled, str] | str:
        """(the cell with its settings resolved, the fingerprint of its finished model or ""); or why that cannot be."""
        try:
            with self.units.tried(self.units.folder("settling", cell)):
                settled = self.atelier.settle(cell)
                fingerprint([settled.model, settled.knobs, settled.instruments])  # what has no name is refused now
                for name in self.recipe.measure:
                    choose(name, settled.instruments, "score")
                return settled, self.atelier.fingerprint(settled.model) if isinstance(settled.model, Path) else ""
        except Unable as error:
            return str(error)

    def row(self, cell: Cell, ready: tuple[Settled, str] | str, seed: int) -> Generator[Happening, None, Row]:
        facts: dict[str, Any] = {"label": cell.label, "values": cell.values, "control": cell.control, "seed": seed}
        facts["seconds"] = {}
        if isinstance(ready, str):
            return Row(**facts, reason=ready)
        settled, facts["fingerprint"] = ready
        count, prompts = self.recipe.pictures, self.recipe.prompts
        asked = ([prompts[i % len(prompts)] for i in range(count)], [seed * APART + i for i in range(count)])
        try:
            model = settled.model
            if not isinstance(model, Path):
                model = yield from self._training(model, seed, cell.share, facts)
            pictures = yield from self._painting(settled, model, asked, facts)
            facts["scores"] = yield from self._measuring(settled, pictures, asked, facts)
        except Unable as error:
            facts["reason"] = str(error)
        return Row(**facts)

    def _training(
        self, training: Mapping[str, Any], seed: int, share: float, facts: dict[str, Any]
    ) -> Generator[Happening, None, Path]:
        budget = (self.recipe.budget or 0.0) * share
        identity = {"training": training, "seed": seed, "budget": budget}
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
        kind, key = folder.parent.name, folder.name
        with self.units.tried(folder):
            kept = self.units.result(folder)
            fresh = kept is None
            if kept is None:
                with self.units.alone(folder, identity), timed(folder) as watch:
                    yield Working(kind, key)
                    with closing(work()) as events:
                        for event in events:
                            yield Working(kind, key, event)
                            watch.note()
                    kept = {**result(), "seconds": watch.seconds}
                    self.units.keep(folder, kept)
        yield Finished(kind, key, kept["seconds"], fresh)
        return kept

    def _measuring(
        self, settled: Settled, pictures: Path, asked: Asked, facts: dict[str, Any]
    ) -> Generator[Happening, None, tuple[Score, ...]]:
        """The scores, in the recipe's order. Those that are not there yet are measured in one go: they may share features."""
        identities = {
            name: {"painting": facts["painting"], "score": name, "instrument": settled.instruments[name]}
            for name in self.recipe.measure
        }
        folders = {name: self.units.folder("measuring", identity) for name, identity in identities.items()}
        found = {name: kept for name, folder in folders.items() if (kept := self.units.result(folder)) is not None}
        missing = [name for name in folders if name not in found]
        if missing:
            with self.units.tried(folders[missing[0]]), ExitStack() as stack:
                for name in missing:
                    stack.enter_context(self.units.alone(folders[name], identities[name]))
                yield Working("measuring", folders[missing[0]].name)
                begun = time.monotonic()
                scores = self.atelier.measure(pictures, *asked, {name: settled.instruments[name] for name in missing})
                measured = {score.name: score.model_dump(mode="json") for score in scores}
                if sorted(score.name for score in scores) != sorted(missing):
                    raise InputError(f"scores {', '.join(missing)}", ", ".join(measured) or "none")
                seconds = round((time.monotonic() - begun) / len(missing), 3)
                for name in missing:
                    found[name] = {"score": measured[name], "seconds": seconds}
                    self.units.keep(folders[name], found[name])
        for name, folder in folders.items():
            yield Finished("measuring", folder.name, found[name]["seconds"], name in missing)
        return tuple(Score.model_validate(found[name]["score"]) for name in folders)
