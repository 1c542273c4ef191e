"""Tables that say which text belongs to which picture: `metadata.csv` and `metadata.jsonl`.

The columns are `file_name` and `text`, as the Hugging Face image folders have them; other columns are a
picture's attributes. In JSON lines `text` may be a list of captions. Files are UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from ..base.errors import InputError

# What people call these columns elsewhere; only used to say which one to rename.
_OTHER_NAMES = {
    "file_name": ("file", "filename", "image", "image_path", "path", "img"),
    "text": ("caption", "captions", "prompt", "description", "label", "sentence"),
}


def tidy(values: Iterable[str]) -> tuple[str, ...]:
    """Captions with runs of white space made one space, empty ones left out."""
    return tuple(text for text in (" ".join(value.split()) for value in values) if text)


def decode(raw: bytes, where: str) -> str:
    """UTF-8 text. Raises InputError naming the file and the byte."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("UTF-8 text", f"{where}, byte {error.start} is not", "save it as UTF-8") from error


def _need_columns(given: Sequence[str], needed: Sequence[str], where: str) -> None:
    """Raise InputError unless every needed column is there, saying which given one was probably meant."""
    missing = [name for name in needed if name not in given]
    if not missing:
        return
    hints = []
    spare = {name.strip().lower(): name for name in given if name not in needed}
    for name in missing:
        known = [other for other in _OTHER_NAMES.get(name, ()) if other in spare]
        close = known or get_close_matches(name, list(spare), n=1, cutoff=0.6)
        hints.append(f"rename {spare[close[0]]!r} to {name!r}" if close else f"add a column {name!r}")
    raise InputError(f"columns {', '.join(needed)} in {where}", f"columns {', '.join(given) or '(none)'}", " and ".join(hints))


def read_csv(raw: bytes, where: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a comma-separated table with a header line; missing cells are ''.

    where: the file's name, for errors. Raises InputError on a wrong header, wrong encoding or broken quoting.
    """
    try:
        rows = list(csv.reader(io.StringIO(decode(raw, where), newline=""), strict=True))
    except csv.Error as error:
        raise InputError("a comma-separated table", f"{where}: {error}", "check its quotation marks") from error
    header = [name.strip() for name in rows[0]] if rows else []
    _need_columns(header, needed, where)
    blank = dict.fromkeys(header, "")
    return [blank | dict(zip(header, row, strict=False)) for row in rows[1:] if any(row)]


def read_jsonl(raw: bytes, where: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    """One JSON object a line; empty lines are passed over. Raises InputError naming the line."""
    rows = []
    for number, line in enumerate(decode(raw, where).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError("one JSON object a line", f"{where}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise InputError("one JSON object a line", f"{where}, line {number}: {type(row).__name__}")
        _need_columns(list(row), needed, f"{where}, line {number}")
        rows.append(row)
    return rows


def attributes(row: Mapping[str, Any], leave_out: Sequence[str]) -> dict[str, str]:
    """A row's other columns: text as it is, numbers and truth values as in JSON; empty cells and lists are left out."""
    told: dict[str, str] = {}
    for column, value in row.items():
        if column not in leave_out and isinstance(value, str | int | float):
            text = value.strip() if isinstance(value, str) else json.dumps(value)
            told |= {column: text} if text else {}
    return told


def read_metadata(raw: bytes, where: str) -> list[tuple[str, tuple[str, ...], dict[str, str]]]:
    """(file name, captions, `attributes`) for each row of a `metadata.csv` or `metadata.jsonl`."""
    used = ("file_name", "text")
    if where.endswith(".csv"):
        return [(row["file_name"], tidy([row["text"]]), attributes(row, used)) for row in read_csv(raw, where, used)]
    listed = []
    for row in read_jsonl(raw, where, used):
        name, text = row["file_name"], row["text"]
        texts = text if isinstance(text, list) else [] if text is None else [text]
        if not isinstance(name, str) or not all(isinstance(t, str) for t in texts):
            raise InputError("a string `file_name` and a string or list of strings `text`", f"{where}: {row!r:.120}")
        listed.append((name, tidy(texts), attributes(row, used)))
    return listed
