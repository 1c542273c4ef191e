"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): a new word's vectors, from the files they are shared in.

Layouts: AUTOMATIC1111 stable-diffusion-webui, modules/textual_inversion (`string_to_param` in .pt, `emb_params` and, for SDXL,
`clip_l` and `clip_g` in .safetensors); diffusers, loaders/textual_inversion.py (the word itself is the name).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..base.errors import InputError
from ..base.tensors import read_pickle, read_safetensors

TOWERS = {"emb_params": "text", "clip_l": "text", "clip_g": "text_2"}


def read_embedding(path: Path) -> tuple[str, dict[str, Tensor]]:
    """(the word, {encoder: float32 (k, C)}): k vectors take the places of k tokens. encoder: "text", of SDXL also "text_2".

    The word is the file's name, or the one that diffusers wrote. Raises InputError for files that are no such thing.
    """
    if not path.is_file():
        raise InputError("a file with an embedding", f"{path}, which is not there")
    held: Any = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    if isinstance(held, Mapping) and isinstance(held.get("string_to_param"), Mapping | nn.ParameterDict):
        held = {"emb_params": next(iter(held["string_to_param"].values()), None)}
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise InputError("an embedding of textual inversion", f"{path}, which holds something else")
    if held.keys() <= TOWERS.keys():
        word, found = path.stem, {TOWERS[name]: value for name, value in held.items()}
    elif len(held) == 1:
        word, found = next((str(name), {"text": value}) for name, value in held.items())
    else:
        raise InputError("an embedding of textual inversion", f"{path} with {len(held)} tensors", "Is it another kind of file?")
    out = {}
    for encoder, value in found.items():
        vectors = value.detach().float()
        vectors = vectors[None] if vectors.dim() == 1 else vectors
        if vectors.dim() != 2 or not vectors.numel():
            raise InputError("vectors (k, C) of a word", f"{path}, {tuple(value.shape)}")
        out[encoder] = vectors
    return word, out
