"""Files of prompts: one prompt a line, or a table with a column of prompts and perhaps one of categories.

Read by their ending: `.txt`, one prompt a line; `.tsv` (as the Parti prompts come, Yu et al. 2022: cells between tabs, no
quoting) and `.csv` with a header line; `.jsonl`, one object a line. Columns are found by name, in capitals or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import InputError, choose
from ..data.tables import decode, read_csv, read_jsonl, tidy

PROMPT = ("prompt", "caption", "text")  # names of the column, the first that is there
CATEGORY = ("category",)
ENDINGS = (".txt", ".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class PromptRow:
    """One prompt, white space tidied, and what kind of prompt it is ('' where the file does not say)."""

    prompt: str
    category: str = ""


def read_prompts(path: str | Path, column: str | None = None, category: str | None = None) -> tuple[PromptRow, ...]:
    """The prompts of a file, in its order; the same prompt may come twice. Empty lines are passed over.

    column, category: names of a table's columns where they are others than PROMPT and CATEGORY have.
    Raises InputError for a file that is missing, empty, not UTF-8 or of another ending, for a column that is not there, and
    for a row without a prompt.
    """
    path = Path(path)
    ending, raw = path.suffix.lower(), read_file(path)
    if ending == ".txt":
        if column or category:
            raise InputError("a table, to choose columns of", f"{path}, which has one prompt a line")
        rows = [PromptRow(prompt) for prompt in tidy(decode(raw, str(path)).splitlines())]
    else:
        rows = _of_table(rows_of(raw, ending, str(path)), str(path), column, category)
    if not rows:
        raise InputError("one prompt or more", f"{path} without any")
    return tuple(rows)


def read_file(path: Path) -> bytes:
    """A file of prompts as it lies there. Raises InputError for other endings, and where it cannot be read."""
    choose(path.suffix.lower(), ENDINGS, f"ending of a file of prompts ({path})")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError("a readable file of prompts", f"{path}: {error.strerror or error}", "check the path") from error


def rows_of(raw: bytes, ending: str, where: str) -> Sequence[Mapping[str, Any]]:
    """The rows of a table by the names of its columns, read by its ending."""
    if ending == ".jsonl":
        return read_jsonl(raw, where, ())
    if ending == ".csv":
        return read_csv(raw, where, ())
    lines = [line.rstrip("\r").split("\t") for line in decode(raw, where).split("\n") if line.strip()]
    header, rows = ([cell.strip() for cell in lines[0]], lines[1:]) if lines else ([], [])
    for number, row in enumerate(rows, 1):
        if len(row) > len(header):
            raise InputError(f"{len(header)} cells a row in {where}", f"{len(row)} in row {number}", "a cell may hold no tab")
    blank = dict.fromkeys(header, "")
    return [blank | dict(zip(header, row, strict=False)) for row in rows]


def _of_table(table: Sequence[Mapping[str, Any]], where: str, column: str | None, category: str | None) -> list[PromptRow]:
    found = []
    for number, row in enumerate(table, 1):
        text = row[_column(row, (column,) if column else PROMPT, where)]
        kind = _column(row, (category,) if category else CATEGORY, where, needed=bool(category))
        told = "" if kind is None or row[kind] is None else row[kind]
        if not isinstance(text, str) or not isinstance(told, str):
            raise InputError("text in the columns of prompts and categories", f"{where}, row {number}: {dict(row)!r:.120}")
        prompt = tidy([text])
        if not prompt:
            raise InputError("a prompt in every row", f"{where}, row {number} without one", "fill it in or remove the row")
        found.append(PromptRow(prompt[0], " ".join(told.split())))
    return found


def _column(row: Mapping[str, Any], names: Sequence[str], where: str, needed: bool = True) -> Any:
    """The first of these names that is a column here, as it is written here; None where none is needed."""
    given = {name.strip().lower(): name for name in reversed(list(row))}
    for name in names:
        if name.lower() in given:
            return given[name.lower()]
    if not needed:
        return None
    columns = ", ".join(row) or "(none)"
    raise InputError(f"a column {' or '.join(names)} in {where}", f"columns {columns}", "rename one, or name it")
