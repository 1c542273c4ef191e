"""How a picture file says it was made, whichever program wrote it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image
from pydantic import ValidationError

from ..base.embedded import read_words
from ..base.errors import InputError
from ..base.infotext import Note, Parameters, parameters_of
from ..base.picture import Provenance
from .comfy import from_comfy
from .foreign import as_json, from_fooocus, from_invokeai, from_novelai, from_old_invokeai
from .infotext import parse_infotext

Size = tuple[int, int]


def read_parameters(path: str | os.PathLike[str]) -> Parameters:
    """What a picture (PNG, JPEG, WebP, GIF) says, or a text file such as A1111 writes beside one (.txt).

    Raises InputError where the file cannot be read, and where it says nothing about how it was made.
    """
    if Path(path).suffix.lower() == ".txt":
        try:
            found: Parameters | None = parse_infotext(Path(path).read_text("utf-8", errors="replace"))
        except OSError as error:
            raise InputError("a readable text file", f"{path}: {error.strerror or error}") from error
        words: Mapping[str, str] = {}
    else:
        words = read_words(path)
        with Image.open(path) as image:
            size = image.size
        found = next((told for read in _READERS if (told := read(words, size))), None)
    if found is None or not (found.settings or found.prompt):
        said = f"one with {', '.join(sorted(words))}" if words else "one that says nothing"
        remedy = "Programs that edit or pass on pictures often drop what they say."
        raise InputError("a file that says how its picture was made", f"{path}, {said}", remedy)
    return found


def _ours(words: Mapping[str, str], size: Size) -> Parameters | None:
    try:
        return parameters_of(Provenance.model_validate_json(words.get("giverny", "")), size)
    except ValidationError:
        return None


def _infotext(words: Mapping[str, str], size: Size) -> Parameters | None:
    text = words.get("parameters", "")
    told = parse_infotext(text)
    if not told.settings and as_json(text) is not None:
        return None
    if "giverny" in words:
        lost = Note(key="", problem="our own words in the file are damaged; its infotext was read instead")
        return told.model_copy(update={"notes": (lost, *told.notes)})
    return told if told.settings or told.prompt else None


def _comment(words: Mapping[str, str], size: Size) -> Parameters | None:
    told = parse_infotext(words.get("comment", ""))
    return told if told.settings else None


_READERS: tuple[Callable[[Mapping[str, str], Size], Parameters | None], ...] = (
    _ours,
    lambda words, size: from_fooocus(as_json(words.get("parameters", ""))),
    _infotext,
    lambda words, size: from_invokeai(as_json(words.get("invokeai_metadata", ""))),
    lambda words, size: from_old_invokeai(as_json(words.get("sd-metadata", ""))),
    from_novelai,
    lambda words, size: from_comfy(as_json(words.get("prompt", "")), as_json(words.get("workflow", ""))),
    _comment,
)
