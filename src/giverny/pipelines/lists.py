"""Lists of pictures to paint: a prompt each, and what differs from the others.

In a `.txt` a picture is a line; settings may follow the prompt as flags, `a red dress --steps 20 --seed 1`, under our names or
those that AUTOMATIC1111's "Prompts from file or textbox" has (scripts/prompts_from_file.py), which may also begin with them:
`--prompt "a red dress" --cfg_scale 5`. Empty lines and those that begin with "#" are passed over. In tables (`.csv`, `.tsv`,
`.jsonl`, as `prompts` reads them) settings are columns of the same names; empty cells say nothing.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from ..base.contracts import Frozen, Knobs, Request
from ..base.errors import InputError, choose
from ..base.recipe import override
from ..data.tables import decode
from .prompts import PROMPT, read_file, rows_of

NAMES = {"negative_prompt": "negative", "cfg_scale": "guidance", "sampler_name": "sampler"}  # theirs -> ours
PARTS = ("negative", "seed", "size", "width", "height")
_FLAG = re.compile(r"(?:^|(?<=\s))--(?=[A-Za-z])")


class Listed(Frozen):
    """One line of a list."""

    prompt: str
    negative: str | None = Field(None, description="None: what is given for all")
    seed: int | None = Field(None, ge=0, lt=2**63)
    size: tuple[int, int] | None = None
    knobs: dict[str, Any] = Field(default_factory=dict)

    def of(self, request: Request, number: int = 0) -> Request:
        """A request with this line's own settings instead of its. number: which of the line's pictures it is, from 0."""
        said: dict[str, Any] = {"prompt": self.prompt, "knobs": {**request.knobs, **self.knobs}}
        said |= {} if self.negative is None else {"negative": self.negative}
        said |= {} if self.seed is None else {"seed": (self.seed + number) % 2**63}
        said |= {} if self.size is None else {"size": self.size}
        return request.model_copy(update=said)


class PictureList(NamedTuple):
    """What a file lists. passed_over: columns of a table that are no settings."""

    lines: tuple[Listed, ...]
    passed_over: tuple[str, ...]


def read_list(path: str | Path, knobs: type[Knobs]) -> PictureList:
    """The pictures that a file lists, in its order. knobs: the painter's.

    Raises InputError that names the line for a setting that is unknown or cannot be read, and as `prompts.read_prompts`.
    """
    path = Path(path)
    raw, known = read_file(path), (*PARTS, *knobs.model_fields)
    passed: dict[str, None] = {}
    lines = []
    if path.suffix.lower() == ".txt":
        for number, line in enumerate(decode(raw, str(path)).splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                where = f"{path}, line {number}"
                told = _flags(line.strip(), where)
                for name in told.keys() - {"prompt"}:
                    choose(NAMES.get(name, name), known, f"setting ({where})")
                lines.append(_listed(told, where))
    else:
        for number, row in enumerate(rows_of(raw, path.suffix.lower(), str(path)), 1):
            told, others = _cells(row, known, f"{path}, row {number}")
            passed |= dict.fromkeys(others)
            lines.append(_listed(told, f"{path}, row {number}"))
    if not lines:
        raise InputError("one prompt or more", f"{path} without any")
    return PictureList(tuple(lines), tuple(passed))


def _flags(line: str, where: str) -> dict[str, str]:
    """{name: value} of a line, the prompt among them. A value goes on to the next flag; one without is "true"."""
    first = _FLAG.search(line)
    prompt = line if first is None else line[: first.start()].strip()
    told = {"prompt": prompt} if prompt else {}
    for part in _parts(line, first.start(), where) if first else ():
        name, *values = part
        told[name.replace("-", "_")] = " ".join(values) if values else "true"
    return told


def _parts(line: str, start: int, where: str) -> Iterator[list[str]]:
    """[name, words of its value] of the flags from a place on."""
    try:
        words = shlex.split(line[start:])
    except ValueError as error:
        raise InputError("quotation marks in pairs after --", f"{where}: {error}", f"Given: {line[start:]!r:.80}") from error
    part: list[str] = []
    for word in words:
        if _FLAG.match(word) and part:
            yield part
            part = []
        part.append(word if part else word.removeprefix("--"))
    yield part


def _cells(row: Mapping[str, Any], known: tuple[str, ...], where: str) -> tuple[dict[str, str], list[str]]:
    """({name: value} of a table's row, columns that are no settings)."""
    given = {name.strip().lower().replace(" ", "_"): value for name, value in row.items()}
    column = next((name for name in PROMPT if name in given), None)
    if column is None:
        raise InputError(f"a column {' or '.join(PROMPT)}", f"{where} with {', '.join(row)}", "The first line names columns.")
    told, others = {"prompt": str(given.pop(column) or "").strip()}, []
    for name, value in given.items():
        if NAMES.get(name, name) not in known:
            others.append(name)
        elif value is not None and str(value).strip():
            told[name] = str(value).strip()
    return told, others


def _listed(told: Mapping[str, str], where: str) -> Listed:
    said = {NAMES.get(name, name): value for name, value in told.items()}
    if not said.get("prompt"):
        raise InputError("a prompt", f"{where} without one")
    sides = said.pop("size", None)
    if "width" in said or "height" in said:
        sides = f"{said.pop('width', '')}x{said.pop('height', '')}"
    found = re.fullmatch(r"(\d+)\s*[x×]\s*(\d+)", sides.lower()) if sides else None
    if sides and not found:
        raise InputError("a size such as 512x768, or both width and height", f"{where}: {sides!r}")
    seed = said.pop("seed", "-1").strip()
    if not re.fullmatch(r"-1|\d{1,19}", seed) or int(seed) >= 2**63:
        raise InputError("a seed: a whole number below 2^63, or -1 for any", f"{where}: {seed!r}")
    return Listed(
        prompt=said.pop("prompt"),
        negative=said.pop("negative", None),
        seed=None if seed == "-1" else int(seed),
        size=(int(found[1]), int(found[2])) if found else None,
        knobs=override({}, [f"{name}={value}" for name, value in said.items()]),
    )
