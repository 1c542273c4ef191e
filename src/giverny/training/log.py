"""What a run writes down while it goes: one JSON line per record, and the same numbers for TensorBoard.

A resumed run cuts the file back to where the resumed state was written, so that no step is recorded twice and a line cut
short by a crash disappears.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class RunLog:
    """`metrics.jsonl` and `events.*` in a run's folder."""

    def __init__(self, folder: Path, keep_bytes: int = 0, step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self.path = folder / "metrics.jsonl"
        self._file = self.path.open("ab")
        self._file.truncate(keep_bytes)
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float], **extra: Any) -> None:
        """Record numbers of a finished step. Keys with a slash group curves: train/loss, valid/loss, time/step."""
        line = json.dumps({"step": step, **values, **extra}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def settle(self) -> int:
        """Bring everything to disk and say how long the file is: what a state stores."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole records of a `metrics.jsonl`; a last line cut short is left out."""
    records = []
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records
