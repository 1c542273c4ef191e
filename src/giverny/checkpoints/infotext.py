"""Reading infotext as it is met in the wild: whole, old, extended by others, copied through a web page, scanned from paper.

The grammar is A1111's (infotext_utils.py): the last line with three `Key: value` pairs holds the settings, a line that begins
with "Negative prompt:" parts the prompts. What is ours is what is forgiven: settings over several lines, line breaks that
were lost, JSON without quotes, text behind the settings. Nothing here raises: what could not be read is told in notes, and
what is missing or implausible (`plausible.py`) as well, with the nearest plausible reading beside it, never in its place.
"""

from __future__ import annotations

import json
import re

from ..base.infotext import KEYS, NEGATIVE, Dialect, Note, Parameters
from .plausible import doubts

# What A1111 takes for a pair, by which it tells settings from words; used for telling only. A run of key letters is tried
# once, from its beginning, so that long texts take linear time.
_PAIR = re.compile(r'(?<![\w \-/])[ \-/]*\w[\w \-/]+:\s*(?:"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_BEGINS = re.compile(r"\s*Steps:\s*\d")
_WITHIN = re.compile(r"\bSteps:\s*\w+\s*[,.]\s*Sampler\s*:")
_QUOTED = re.compile(r'"((?:\\.|[^\\"])*)"[ \t]*(?=[,\n]|$)', re.DOTALL)
_KEY = re.compile(r'([^\s,:"][^,:"\n]*):[ \t]*')
_BETWEEN = re.compile(r"[\s,]*")
_LINE = re.compile(r"[^\n]*")
_ENDS = re.compile(r"[,\n]|$")
_BARE = re.compile(r"\w[\w \-/]*")
_TEMPLATE = re.compile(r"(?:Negative )?Template:")  # the line an extension for random prompts adds, commas and all
_KNOWN = frozenset(KEYS)


def parse_infotext(text: str) -> Parameters:
    """What an infotext says. Never raises; `notes` tell what was not read, is missing, or is implausible."""
    text = _sound(text.replace("\r\n", "\n"))
    lines = text.split("\n")
    at, notes = _settings_at(lines), []
    words, said, copied = (lines, "", False) if at is None else ("\n".join(lines[:at]).split("\n"), "", False)
    if at is not None:
        words = lines[:at]
        said, behind = _settings_of(lines[at:])
        if behind:
            notes.append(Note(key="", problem=f"text behind the settings was left out: {_short(behind)}"))
        copied = bool(words) and not words[-1].strip()
    if at is None or _is_words(lines[at]):
        within = list(_WITHIN.finditer(text))
        if within:
            start = within[-1].start()
            words, said, copied = text[:start].split("\n"), text[start:], True
            notes = [Note(key="", problem="the line break before the settings was lost")]
    prompt, negative, more = _prompts(words, copied)
    settings, unread = read_settings(said)
    notes += [*more, *unread, *doubts(settings)]
    ours: Dialect = "giverny" if settings.get("Version", "").startswith("giverny") else "a1111"
    return Parameters(prompt=prompt, negative=negative, settings=settings, dialect=ours, notes=tuple(notes))


def _settings_at(lines: list[str]) -> int | None:
    """The line where the settings begin; None where no line looks like settings."""
    last = max((i for i, line in enumerate(lines) if line.strip()), default=None)
    start = max((i for i, line in enumerate(lines) if _BEGINS.match(line)), default=None)
    if last is None:
        return None
    if len(_PAIR.findall(lines[last])) >= 3:
        open_quote = start is not None and _quotes("\n".join(lines[start:last])) % 2
        return start if open_quote else last
    return start


def _quotes(text: str) -> int:
    """How many quotation marks are not escaped."""
    return len(re.findall(r'(?<!\\)(?:\\\\)*"', text))


def _is_words(line: str) -> bool:
    """Whether a line that looks like settings begins with words: a prompt run together with its settings."""
    key = _KEY.match(line.lstrip())
    return key is None or key[1].strip() not in _KNOWN


def _settings_of(lines: list[str]) -> tuple[str, str]:
    """(settings, what stands behind them): they end at a blank line, unless that stands inside quotation marks."""
    quotes = 0
    for i, line in enumerate(lines):
        quotes += _quotes(line)
        if not line.strip() and quotes % 2 == 0:
            return "\n".join(lines[:i]), "\n".join(lines[i:]).strip()
    return "\n".join(lines), ""


def _prompts(lines: list[str], copied: bool) -> tuple[str, str, list[Note]]:
    """(prompt, negative prompt, notes). copied: whether line breaks cannot be trusted, so that blanks at the ends go too and
    "Negative prompt:" counts anywhere."""
    notes: list[Note] = []
    part = next((i for i, line in enumerate(lines) if line.lstrip().startswith(NEGATIVE)), None)
    if part is not None:
        first = lines[part].lstrip().removeprefix(NEGATIVE).removeprefix(" ")
        prompt, negative = "\n".join(lines[:part]), "\n".join([first, *lines[part + 1 :]])
    else:
        prompt, mark, negative = "\n".join(lines).partition(NEGATIVE) if copied else ("\n".join(lines), "", "")
        if mark:
            notes.append(Note(key="", problem="the line break before the negative prompt was lost"))
    return (prompt.strip(), negative.strip(), notes) if copied else (prompt, negative, notes)


# ---------------------------------------------------------------------------------------------------------------------
# The line of settings


def read_settings(text: str) -> tuple[dict[str, str], list[Note]]:
    """({key: value} in order, notes on what was not read) of `Key: value, Key: "quoted", ...`, over one line or several.

    Of a key that comes twice the later value counts, as in A1111. A word that stands alone is its own value: A1111 writes a
    pair so whose key and value are the same.
    """
    settings: dict[str, str] = {}
    notes: list[Note] = []
    at = _after(_BETWEEN, text, 0)
    while at < len(text):
        key = _KEY.match(text, at)
        if key is None:
            end = _end(text, at)
            alone = text[at:end].strip()
            if _BARE.fullmatch(alone):
                settings[alone] = alone
            elif alone:
                notes.append(Note(key="", problem=f"not read: {_short(alone)}"))
            at = _after(_BETWEEN, text, end)
            continue
        name = key[1].strip()
        value, end, problem = _value(text, key.end(), bool(_TEMPLATE.match(key[0])))
        at = _after(_BETWEEN, text, end)
        if problem:
            notes.append(Note(key=name, problem=problem))
        if settings.get(name, value) != value:
            notes.append(Note(key=name, problem=f"said twice, first {_short(settings[name])}, then {_short(value)}"))
        settings[name] = value
    return settings, notes


def _value(text: str, at: int, whole_line: bool) -> tuple[str, int, str]:
    """(value, where it ends, what was wrong with it) of the value that begins at `at`."""
    if whole_line:
        end = _after(_LINE, text, at)
        return text[at:end].strip(), end, ""
    quoted = _QUOTED.match(text, at)
    if quoted:
        try:
            return _sound(str(json.loads(quoted[0], strict=False))), quoted.end(), ""
        except ValueError:
            return quoted[1], quoted.end(), "its quotation is no JSON, and was taken as it stands"
    if text[at : at + 1] in ("{", "["):
        after = _json_end(text, at)
        if after is not None:
            return text[at:after], after, ""
    end = _end(text, at)
    value = text[at:end].strip()
    return value, end, "its quotation does not end" if value.startswith('"') else ""


def _json_end(text: str, at: int) -> int | None:
    """Where a JSON value ends that no quotation protects (as an extension for model resources writes it)."""
    try:
        end = json.JSONDecoder(strict=False).raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None
    return end if text[end : end + 1] in ("", ",", "\n") else None


def _end(text: str, at: int) -> int:
    """The next comma or line break, or the end of the text."""
    found = _ENDS.search(text, at)
    return found.start() if found else len(text)


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a pattern that also matches nothing has ended."""
    found = pattern.match(text, at)
    return found.end() if found else at


def _sound(text: str) -> str:
    """Without halves of letters (lone surrogates), which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
