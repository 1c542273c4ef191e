"""Recipes: strict typed settings, written as TOML, changed from the command line, checked as a whole.

A recipe is a frozen pydantic model. Types are taken as TOML gives them (a quoted number is not a number, true is not 1;
whole numbers serve as floats), an unknown key is an error that names the nearest spelling, and all errors of a file are
told at once. TOML has no word for "nothing": a setting left out has its default, and where that default is something,
the word "none" says nothing.

A file may begin with `base = "other.toml"`, a recipe in the same folder (or a path from there) of which it says only what is
different; tables are joined key by key, all else is replaced. `[presets.NAME]` holds what is different under that name.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import InputError, nearest
from .fields import forms_of, is_model, locate, members_of, part_of, tags_of
from .knobs import Frozen

T = TypeVar("T", bound=BaseModel)
NOTHING = "none"  # how a recipe says None where leaving out would mean a default


class Recipe(Frozen):
    """Base of everything that a person writes down to build or train something."""


# ---------------------------------------------------------------------------------------------------------------------
# Reading and changing


def read_recipe(path_or_text: str | Path) -> dict[str, Any]:
    """The unchecked contents of a recipe: of a file (a Path, or one line without "="), joined with what it is based on, or
    of TOML text itself.

    Raises InputError naming file and line where it is not TOML, not UTF-8, or not there.
    """
    is_text = isinstance(path_or_text, str) and (not path_or_text or "\n" in path_or_text or "=" in path_or_text)
    if isinstance(path_or_text, str) and is_text and not path_or_text.endswith(".toml"):
        return _parse(path_or_text, "recipe text")
    return _read_file(Path(path_or_text), ())


def _read_file(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """above: the files that are based on this one."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        why = f" ({above[-1]} is based on it)" if above else ""
        raise InputError("a recipe file", f"{path}: {error.strerror or error}{why}") from error
    except UnicodeDecodeError as error:
        raise InputError("UTF-8 text", f"{path}, byte {error.start} is not", "save it as UTF-8") from error
    data = _parse(text, str(path))
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str):
        raise InputError('a recipe file such as base = "other.toml"', f"{path}: base = {base!r}")
    known = (*above, path.resolve())
    if (path.parent / base).resolve() in known:
        raise InputError("a recipe that is not based on itself", " on ".join(p.name for p in (*known, path.parent / base)))
    return join(_read_file(path.parent / base, known), data)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # the parser's message ends in "(at line 3, column 5)" or "(at end of document)"
        end = f", line {text.count(chr(10)) + 1}" if "end of document" in str(error) else ""
        raise InputError("a recipe in TOML", f"{where}{end}: {error}", "text goes in quotation marks") from error


def join(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with tables joined key by key and everything else replaced."""
    joined = dict(base)
    for key, value in changes.items():
        old = joined.get(key)
        joined[key] = join(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else copy.deepcopy(value)
    return joined


def with_preset(data: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """A recipe's contents without its presets, changed as the named one says; None: as they are."""
    plain = {key: value for key, value in data.items() if key != "presets"}
    if name is None:
        return plain
    presets = data.get("presets", {})
    if not isinstance(presets, Mapping) or not isinstance(presets.get(name), Mapping):
        known = sorted(presets) if isinstance(presets, Mapping) else []
        raise InputError("the name of a preset", repr(name), nearest(name, known) if known else "this recipe has none")
    return join(plain, presets[name])


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A changed copy of `data`, one "a.b=value" after the other.

    Tables that are not there are made. Entries of a list are named by index, or by their `name` where they are tables:
    "stages.0.lr=1e-4", "stages.denoiser.lr=1e-4". A value is read as TOML, and as plain text where it is not TOML.
    Raises InputError for an assignment without "=" and for a path that leads through something that has no parts.
    """
    changed = copy.deepcopy(dict(data))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise InputError("an assignment such as training.steps=1000", repr(assignment))
        place: Any = changed
        for depth, key in enumerate(keys[:-1]):
            place = _enter(place, key, ".".join(keys[: depth + 1]))
        _assign(place, keys[-1], _value(text.strip()), path.strip())
    return changed


def _value(text: str) -> Any:
    """A TOML value; anything else is plain text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text  # a line break may smuggle in a second key


def _enter(place: Any, key: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, path)]
    if isinstance(place, dict):
        return place.setdefault(key, {})
    raise InputError("a path through tables and lists", f"{path}, above which there is {place!r}")


def _assign(place: Any, key: str, value: Any, path: str) -> None:
    if isinstance(place, list):
        place[_index(place, key, path)] = value
    elif isinstance(place, dict):
        place[key] = value
    else:
        raise InputError("a path through tables and lists", f"{path}, above which there is {place!r}")


def _index(place: list[Any], key: str, path: str) -> int:
    """Which entry of a list is meant by a number or by a table's name."""
    names = [str(entry["name"]) for entry in place if isinstance(entry, dict) and "name" in entry]
    for index, entry in enumerate(place):
        if key == str(index) or (isinstance(entry, dict) and str(entry.get("name")) == key and "name" in entry):
            return index
    wanted = f"an index below {len(place)}" + (" or a name" if names else "")
    raise InputError(f"{wanted} in {path}", repr(key), nearest(key, names))


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def check(model: type[T], data: Mapping[str, Any], where: str) -> T:
    """The typed recipe that `data` describes. where: its source (a file), for the message.

    Raises one InputError that lists every mistake on a line of its own: its dotted path, what was wanted and what was
    given, for an unknown key the nearest spelling.
    """
    # JSON is pydantic's strict way in: lists serve as tuples there, but text and truth values never as numbers
    text = json.dumps(_with_nothing(model, dict(data)), default=str)
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        lines = _lines(model, error.errors(include_url=False))
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    raise InputError(f"a valid recipe in {where}", f"{count}:\n  " + "\n  ".join(lines))


def _lines(model: type[BaseModel], errors: Sequence[ErrorDetails]) -> list[str]:
    """One line per place; what several forms of one setting want is joined with "or"."""
    wanted: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for error in errors:
        path, owner = locate(model, error["loc"])
        place = ".".join(path) or "as a whole"
        given.setdefault(place, _given(error))
        said = _wanted(error, owner)
        others = wanted.setdefault(place, [])
        if said not in others:
            others.append(said.removeprefix("wanted ") if others else said)
    return [f"{place}: {' or '.join(said)}{given[place]}" for place, said in wanted.items()]


def _wanted(error: ErrorDetails, owner: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        fields = owner.model_fields if isinstance(owner, type) and issubclass(owner, BaseModel) else {}
        return f"unknown key; {nearest(str(error['loc'][-1]), fields) or 'none is wanted here'}"
    if kind == "missing":
        return "wanted, and not given"
    if kind == "union_tag_not_found":
        return f"wanted a key {context['discriminator']} that says which kind"
    if kind == "union_tag_invalid":
        choices = [choice.strip(" '") for choice in str(context["expected_tags"]).split(",")]
        key = str(context["discriminator"]).removesuffix("()")  # a field, or the function that tells the kind
        return f"wanted a known {key}; {nearest(str(context['tag']), choices)}"
    if kind == "literal_error" and isinstance(error["input"], str):
        expected = str(context["expected"]).replace(" or ", ", ").split(", ")
        choices = [choice[1:-1] for choice in expected if choice.startswith("'")]
        return f"wanted {context['expected']}; {nearest(error['input'], choices)}"
    message = error["msg"].removeprefix("Value error, ")
    for theirs, ours in _PLAIN_WORDS.items():
        message = message.replace(theirs, ours)
    return message


# pydantic's words in those of a person who writes a recipe; the first is what most of its messages begin with
_PLAIN_WORDS = {
    "Input should be ": "wanted ",
    "a valid integer": "a whole number",
    "a valid string": "text in quotation marks",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "a valid number": "a number",
    "an object": "a table",
    "wanted greater": "wanted a number greater",
    "wanted less": "wanted a number less",
}


def _given(error: ErrorDetails) -> str:
    """What stood there, cut to a readable length; nothing where the message has said it or nothing stood there."""
    if error["type"] in ("missing", "extra_forbidden", "union_tag_not_found"):
        return ""
    if isinstance(error["input"], dict):
        tables = {"union_tag_invalid": f"; given {error.get('ctx', {}).get('tag')!r}", "value_error": ""}
        return tables.get(error["type"], "; given a table")
    text = json.dumps(error["input"], ensure_ascii=False, default=str)
    return f"; given {text if len(text) <= 80 else text[:77] + '...'}"


def _with_nothing(annotation: Any, value: Any) -> Any:
    """`value` with the word "none" made None, wherever None is allowed and the word itself is not."""
    forms = members_of(annotation)
    if value == NOTHING and type(None) in forms_of(annotation):
        words = str in forms or any(get_origin(form) is Literal and NOTHING in get_args(form) for form in forms)
        return value if words else None
    if isinstance(value, dict):
        models = [form for form in forms if is_model(form)]
        said = {str(v) for v in value.values()}
        models.sort(key=lambda form: -len(tags_of(form) & said))  # the member that most speaks for; else the first
        form = (models or [f for f in forms if get_origin(f) is not None] or [Any])[0]
        return {key: _with_nothing(part_of(form, key), part) for key, part in value.items()}
    if isinstance(value, list):
        form = next((f for f in forms if get_origin(f) in (list, tuple, set, frozenset, Sequence)), Any)
        return [_with_nothing(part_of(form, index), part) for index, part in enumerate(value)]
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Writing and describing


def to_toml(model: BaseModel) -> str:
    """TOML that `check` reads back as an equal recipe; settings that are None are left out where that says the same.

    Raises ValueError for a recipe that would not come back equal, such as free-form settings with None in them.
    """
    # the library gives every entry of a list its own line; lists of plain values read better in one
    lists = re.compile(r"\[\n((?: +[^\n\[\]]*,\n)+) *\]")
    text = tomli_w.dumps(_plain(model))
    # split at "\n" alone: splitlines would also cut at characters that TOML allows inside a string
    text = lists.sub(lambda found: "[" + ", ".join(line.strip(" ,") for line in found[1].rstrip("\n").split("\n")) + "]", text)
    if check(type(model), tomllib.loads(text), "its own TOML") != model:
        raise ValueError(f"TOML cannot say all of this {type(model).__name__}")
    return text


def _plain(value: Any) -> Any:
    """Tables, lists and scalars; None left out, or called "none" where leaving it out would say something else."""
    if isinstance(value, BaseModel):
        defaults = {
            n: f.get_default(call_default_factory=True, validated_data=dict(value)) for n, f in type(value).model_fields.items()
        }
        return {name: _plain(part) for name, part in value if part is not None or defaults[name] is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    if isinstance(value, Enum):
        return value.value
    return NOTHING if value is None else value.as_posix() if isinstance(value, Path) else value


@dataclass(frozen=True)
class Row:
    """One setting, in words: for tables in the documentation and the help texts of flags and controls."""

    field: str  # dotted where it lies in a nested recipe; in brackets the kind of recipe, where several may stand
    type: str
    default: str  # "" where it must be given
    range: str
    help: str


def describe(model: type[BaseModel]) -> list[Row]:
    """All settings of a recipe in their order; those of a recipe inside it follow with dotted names.

    Where a recipe of several kinds may stand, the settings of each follow, with the kind: "network[dit].patch".
    """
    rows: list[Row] = []
    for name, field in model.model_fields.items():
        members = members_of(field.annotation)
        if members and all(is_model(form) for form in members):
            for form in members:
                words = {n: get_args(f.annotation) for n, f in form.model_fields.items() if get_origin(f.annotation) is Literal}
                fixed = {n: only[0] for n, only in words.items() if len(only) == 1}
                kind = fixed.get("family", next(iter(fixed.values()), form.__name__))
                place = name if len(members) == 1 else f"{name}[{kind}]"
                rows += [dataclasses.replace(row, field=f"{place}.{row.field}") for row in describe(form)]
            continue
        default = field.get_default(call_default_factory=True)
        shown = "" if field.is_required() else NOTHING if default is None else json.dumps(_plain(default))
        limits = [text for limit in field.metadata for text in _limits(limit)]
        rows.append(Row(name, _type_name(field.annotation), shown, ", ".join(limits), field.description or ""))
    return rows


_SIGNS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "multiple_of": "a multiple of {}"}
_SIGNS |= {"min_length": "{} or more entries", "max_length": "{} entries or fewer", "pattern": "like {}"}


def _limits(limit: Any) -> list[str]:
    """A pydantic constraint in words."""
    return [text.format(getattr(limit, name)) for name, text in _SIGNS.items() if getattr(limit, name, None) is not None]


def _type_name(annotation: Any) -> str:
    """A type as a person would say it: "int", "list of float", "'eps' | 'v'"."""
    names = []
    for form in members_of(annotation):
        inner = [arg for arg in get_args(form) if arg is not Ellipsis]
        if get_origin(form) is Literal:
            names.append(" | ".join(repr(choice) for choice in inner))
        elif get_origin(form) is tuple and len(inner) > 1:
            names.append("(" + ", ".join(_type_name(part) for part in inner) + ")")
        elif inner:
            names.append(("table of " if len(inner) > 1 else "list of ") + _type_name(inner[-1]))
        else:
            names.append(getattr(form, "__name__", str(form)))
    return " | ".join(names) + (f" | {NOTHING}" if type(None) in forms_of(annotation) else "")
