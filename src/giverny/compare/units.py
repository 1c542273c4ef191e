"""The store of experiments: a folder for every training, painting and score, named by all that its result depends on.

`<root>/<kind>/<key>/` holds `unit.json` (what it is), `work/` (what the work itself leaves), and `done.json` once it is
done, which is written whole or not at all. Before that `spent.json` says how long it has taken, and `error.txt` why it
failed when it was last tried.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.contracts import Score
from ..base.errors import InputError
from ..base.files import atomic_write, fingerprint
from .cells import WAITING

DONE, SPENT, ERROR, UNIT = "done.json", "spent.json", "error.txt", "unit.json"
TRACE = "\n\nTraceback (most recent call last):"  # where the reason in an error.txt ends


class Unable(Exception):
    """Why a row lacks scores."""


@dataclass
class Units:
    """The store under a folder."""

    root: Path
    failed: dict[Path, str] = field(default_factory=dict)  # in this run: not tried again for the next row

    def folder(self, kind: str, identity: Any) -> Path:
        return self.root / kind / fingerprint([kind, identity])

    def identity(self, kind: str, key: str) -> dict[str, Any]:
        """What a unit is, as `unit.json` says; nothing where there is none."""
        try:
            return dict(json.loads((self.root / kind / key / UNIT).read_text("utf-8")))
        except (OSError, ValueError):
            return {}

    def result(self, folder: Path) -> dict[str, Any] | None:
        """What is kept of a unit; None where it is not done, or the note of it is spoilt."""
        try:
            kept = json.loads((folder / DONE).read_text("utf-8"))
            return kept if isinstance(kept, dict) else None
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:  # a disk that is gone for a moment must not cost a training
            raise Unable(f"{folder.parent.name} {folder.name}: {DONE} cannot be read ({error.strerror})") from error

    def score(self, folder: Path) -> Score | None:
        """The score of a measuring; None where there is none that can be understood: then it is measured again."""
        with suppress(ValueError, KeyError):
            return Score.model_validate((self.result(folder) or {})["score"])
        return None

    def keep(self, folder: Path, result: Mapping[str, Any]) -> None:
        atomic_write(folder / DONE, json.dumps(result, indent=2) + "\n")
        (folder / SPENT).unlink(missing_ok=True)

    def waiting(self, folder: Path) -> str:
        """Why a unit is not done, as far as its folder tells."""
        try:
            return (folder / ERROR).read_text("utf-8").partition(TRACE)[0]
        except OSError:
            return WAITING

    @contextmanager
    def tried(self, folder: Path, named: str = "") -> Iterator[None]:
        """Turns an error of the block into the reason of a row, which stays in the folder; a defect of ours with its
        traceback. named: what was tried, where that is no unit."""
        if folder in self.failed:
            raise Unable(self.failed[folder])
        try:
            yield
        except Unable:
            raise
        except Exception as error:
            said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            said = f"{named or f'{folder.parent.name} {folder.name}'}: {said.replace(f'{self.root}{os.sep}', '')}"
            said = said.encode("utf-8", "replace").decode()  # names of files may hold halves of letters
            trace = "" if isinstance(error, InputError) else TRACE + traceback.format_exc().partition(TRACE.strip())[2]
            self.failed[folder] = said
            with suppress(InputError):  # a full disk must not hide what happened
                atomic_write(folder / ERROR, (said + trace).encode("utf-8", "replace"))
            raise Unable(said) from error

    @contextmanager
    def alone(self, folder: Path, identity: Any) -> Iterator[None]:
        """Make the folder, and keep other runs out of it until the block ends or this process does."""
        (folder / "work").mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as file:
            if os.name != "nt":  # there, two runs of one unit at a time are the user's to avoid
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    busy = "another run is at work on it; run again when that one has ended"
                    raise Unable(f"{folder.parent.name} {folder.name}: {busy}") from error
            atomic_write(folder / UNIT, json.dumps(identity, indent=2, default=str) + "\n")
            (folder / ERROR).unlink(missing_ok=True)
            yield


@dataclass
class Watch:
    """Seconds that a unit takes, over all runs that were at it; noted now and then, since a run may be killed."""

    folder: Path

    def __post_init__(self) -> None:
        self.before = 0.0
        with suppress(OSError, ValueError):
            self.before = float((self.folder / SPENT).read_text("utf-8"))
        self.begun = self.noted = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(self.before + time.monotonic() - self.begun, 3)

    def note(self, every: float) -> None:
        if time.monotonic() - self.noted >= every:
            self.noted = time.monotonic()
            atomic_write(self.folder / SPENT, str(self.seconds))


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


def picture_path(folder: Path, number: int) -> Path:
    """Where a painting's picture of the number-th (prompt, seed) lies, counted from 0."""
    return folder / f"{number:05d}.png"
