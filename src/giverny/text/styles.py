"""Saved styles: parts of prompts under a name, in the `styles.csv` of AUTOMATIC1111 (modules/styles.py)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base.errors import InputError, choose
from ..base.knobs import Frozen

PLACE = "{prompt}"  # where in a style the prompt goes


class Style(Frozen):
    name: str
    prompt: str = ""
    negative: str = ""


def read_styles(path: str | Path) -> dict[str, Style]:
    """The styles of a file by name, in its order; of two with one name the later.

    A table with columns name, prompt (in old files: text) and perhaps negative_prompt, in UTF-8 with or without a byte order
    mark. Rows without a name, and such whose name begins with "#", are passed over. Raises InputError for a file that cannot
    be read and for missing columns.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True))
    except OSError as error:
        raise InputError("a readable file of styles", f"{path}: {error.strerror or error}", "check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("a table of styles in UTF-8", f"{path} ({error})", "save it as CSV in UTF-8") from error
    styles: dict[str, Style] = {}
    for row in rows:
        column = "prompt" if "prompt" in row else "text"
        if "name" not in row or column not in row:
            columns = ", ".join(str(name) for name in row)
            raise InputError(f"columns name and prompt in {path}", f"columns {columns}", "the first line names the columns")
        name = row["name"] or ""
        if name and not name.startswith("#"):
            styles[name] = Style(name=name, prompt=row[column] or "", negative=row.get("negative_prompt") or "")
    return styles


def styled(prompt: str, negative: str, styles: Mapping[str, Style], names: Sequence[str]) -> tuple[str, str]:
    """Prompt and negative prompt with these styles, one after the other. Raises InputError for an unknown name."""
    for name in names:
        style = styles[choose(name, styles, "style")]
        prompt, negative = _merged(prompt, style.prompt), _merged(negative, style.negative)
    return prompt, negative


def _merged(prompt: str, style: str) -> str:
    """The prompt put where the style says, or the style behind it after a comma."""
    if PLACE in style:
        return style.replace(PLACE, prompt)
    if not style.strip():
        return prompt
    return ", ".join(text for text in (prompt.strip(), style.strip()) if text)
