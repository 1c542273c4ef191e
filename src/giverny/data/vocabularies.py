"""Where CLIP's words lie, for models that come without: a place the user names, an installed package that ships the list of
merges, GIVERNY_DATA or the user's cache, and last its public address.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ..base.errors import InputError
from .catalog import VARIABLE, DataSet, File, Progress, locate

PLACE = "GIVERNY_CLIP_WORDS"  # the environment variable that names a folder or file
PACKAGES = ("open_clip", "clip")  # they ship the list; it is read as a file, none of them is imported
CLIP_WORDS = DataSet(
    name="clip-words",
    what="the merges that CLIP's vocabulary of 49,408 tokens is made of",
    count="1 list",
    size="1.4 MB",
    licence="MIT",
    homepage="https://github.com/openai/CLIP",
    reader="folder",
    files=(
        File(
            name="bpe_simple_vocab_16e6.txt.gz",
            bytes=1356917,
            checksum="sha256:924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
            url="https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",
        ),
    ),
)


def clip_words(named: Path | None = None, fetch: bool = True, progress: Progress | None = None) -> Path:
    """A folder or file that `text.vocabulary.read_words` reads. Raises InputError where there is none to be had."""
    said = named or (Path(os.environ[PLACE]) if os.environ.get(PLACE) else None)
    if said is not None:
        if not said.expanduser().exists():
            raise InputError("the place of CLIP's words", f"{said}, which is not there")
        return said.expanduser()
    name = CLIP_WORDS.files[0].name
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            if (Path(place) / name).is_file():
                return Path(place) / name
    try:
        return locate(CLIP_WORDS, fetch, progress) / name
    except InputError as error:
        remedy = f"Name a tokenizer folder (--words, or {PLACE}), or put {name} into ${VARIABLE}/{CLIP_WORDS.name}/."
        raise InputError(
            "CLIP's vocabulary, which this model comes without", f"none on this machine ({error.given})", remedy
        ) from error
