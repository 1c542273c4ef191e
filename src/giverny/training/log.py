"""What a run writes down while it goes: one JSON line per step that is logged, and the same numbers for TensorBoard.

A resumed run cuts the file back to where the resumed state was written, so that no step is recorded twice and a line cut
short by a crash disappears; TensorBoard's files cannot be cut, and are told from which step on the older ones are void.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any


class RunLog:
    """`metrics.jsonl` and `events.*` in a run's folder. keep_bytes: of metrics.jsonl, when `step` steps were finished."""

    def __init__(self, folder: Path, keep_bytes: int = 0, step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        self._file = self.path.open("ab")
        self._file.truncate(min(keep_bytes, self.path.stat().st_size))
        self._file.seek(0, os.SEEK_END)
        self._board = _Board(folder, step)

    def write(self, step: int, values: dict[str, float], **extra: Any) -> None:
        """Record numbers of a finished step. Keys with a slash group curves: train/loss, valid/loss, time/step.

        Numbers that are not finite are left out: JSON has no word for them, and a curve no place.
        """
        values = {key: value for key, value in values.items() if math.isfinite(value)}
        line = json.dumps({"step": step, **values, **extra}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._board.write(step, values)

    def settle(self) -> int:
        """Bring everything to disk and say how long metrics.jsonl is: what a state stores."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._board.close()


class _Board:
    """Scalars for TensorBoard. Written in this thread: tensorboardX's own writer queues them where a crash loses them."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        # The step in the name: a run resumed within the same second must not overwrite the file before it.
        self._writer = EventsWriter(str(folder / "events"), f".{step:08d}")
        start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._writer.write_event(start)  # what is on record from this step on was lost with the run that wrote it

    def write(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX.summary import scalar

        for key, value in values.items():
            self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=scalar(key, value)))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole records of a `metrics.jsonl`; a last line cut short is left out."""
    records = []
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").split("\n"):
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records
