"""CLIPs from folders: the one beside a model's denoiser, or a published one in transformers' layout."""

from __future__ import annotations

from pathlib import Path

import torch

from ...base.errors import InputError
from ...base.recipe import check
from ...checkpoints.clip_layouts import CONFIG, read_clip
from ...checkpoints.native import CARD, Card, fill, read_card, read_weights
from ...text.clip import Clip, ClipRecipe
from .recipe import ModelRecipe


def clip_beside(folder: Path, card: Card) -> tuple[Clip, ClipRecipe]:
    """The CLIP that was trained beside a model's denoiser."""
    recipe = check(ModelRecipe, card.recipe, f"{folder / CARD}: recipe")
    if recipe.image is None:
        remedy = "Train it with this version; of a finished run, `giverny train ... --resume` writes the model anew, with it."
        raise InputError("a model with CLIP's picture tower", f"{folder}, which has the words' side alone", remedy)
    weights = read_weights(folder, card)
    sides = {"text_model.": "text", "text_projection.": "projection", "": "image"}
    tensors = {side + key: value for side, name in sides.items() for key, value in weights.get(name, {}).items()}
    made = ClipRecipe(text=recipe.text, image=recipe.image, shared_width=recipe.pooled_width)
    with torch.device("meta"):
        clip = made.build()
    fill(clip, tensors, "CLIP")
    return clip, made


def published_clip(folder: Path) -> tuple[Clip, ClipRecipe]:
    """One in transformers' layout."""
    values, tensors = read_clip(folder)
    made = ClipRecipe(**values)
    with torch.device("meta"):
        clip = made.build()
    fill(clip, tensors, "CLIP")
    return clip, made


def is_published(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / CARD).is_file()


def open_clip_folder(folder: Path) -> tuple[Clip, ClipRecipe]:
    """Either; its words are in `tokenizer.json` beside it."""
    return published_clip(folder) if is_published(folder) else clip_beside(folder, read_card(folder))
