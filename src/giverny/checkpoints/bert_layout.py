"""Published BERT encoders in transformers' layout: a folder with config.json, model.safetensors and tokenizer.json.

Every tensor is one of `text/bert.BertText`'s, known to be of no use there, or an error. Nothing in a folder can run code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..base.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SIZES = {  # what a config calls the sizes of our recipe
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads", "inner": "intermediate_size",
    "vocabulary": "vocab_size", "positions": "max_position_embeddings",
}  # fmt: skip
WANTED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
UNUSED = ("pooler.", "cls.")  # heads for other tasks


def is_bert(folder: Path) -> bool:
    """Whether a folder says that it is one."""
    try:
        told = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("model_type") == "bert"


def read_bert(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(values of a `BertRecipe` but its length, {name: float32 tensor}). Raises InputError for what is not understood."""
    try:
        told = json.loads((folder / CONFIG).read_text("utf-8"))
        values = {ours: told[theirs] for ours, theirs in SIZES.items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError("the config of a BERT", f"{folder / CONFIG} ({error})") from error
    for name, value in WANTED.items():
        if told.get(name, value) != value:
            raise InputError(f"a BERT with {name} = {value}", f"{told[name]} in {folder / CONFIG}")
    try:
        found = load_file(str(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise InputError("a readable safetensors file", f"{folder / WEIGHTS} ({error})") from error
    inner = {name.removeprefix("bert."): value for name, value in found.items()}
    used = {name for name in inner if not name.startswith(UNUSED) and not name.endswith("position_ids")}
    return values, {name: inner[name].float() for name in sorted(used)}
