"""CLIPs from folders: the one beside a model's denoiser, or a published one in transformers' layout; and BERTs that read."""

from __future__ import annotations

from pathlib import Path

from ...base.errors import InputError
from ...base.recipe import check
from ...base.tensors import unfilled
from ...checkpoints.bert_layout import is_bert, read_bert
from ...checkpoints.clip_layouts import CONFIG, read_clip
from ...checkpoints.native import CARD, Card, fill, read_card, read_weights
from ...data.catalog import locate
from ...data.weights import WEIGHTS
from ...text.bert import Bert, BertRecipe
from ...text.clip import Clip, ClipRecipe, ClipTextRecipe
from .recipe import ModelRecipe


def clip_beside(folder: Path, card: Card) -> tuple[Clip, ClipRecipe]:
    """The CLIP that was trained beside a model's denoiser."""
    recipe = check(ModelRecipe, card.recipe, f"{folder / CARD}: recipe")
    if not (recipe.denoiser.cross or recipe.denoiser.additive) and "text" not in card.training.get("stages", {}):
        raise InputError("a model that has learnt what words and pictures share", f"{folder}, which is told nothing")
    if isinstance(recipe.text, BertRecipe):
        raise InputError("a model that has learnt what words and pictures share", f"{folder}, which reads with a BERT")
    if recipe.image is None:
        remedy = "Train it with this version; of a finished run, `giverny train ... --resume` writes the model anew, with it."
        raise InputError("a model with CLIP's picture tower", f"{folder}, which has the words' side alone", remedy)
    weights = read_weights(folder, card)
    sides = {"text_model.": "text", "text_projection.": "projection", "": "image"}
    tensors = {side + key: value for side, name in sides.items() for key, value in weights.get(name, {}).items()}
    made = ClipRecipe(text=recipe.text, image=recipe.image, shared_width=recipe.pooled_width)
    with unfilled():
        clip = made.build()
    fill(clip, tensors, "CLIP")
    return clip, made


def published_clip(folder: Path) -> tuple[Clip, ClipRecipe]:
    """One in transformers' layout."""
    values, tensors = read_clip(folder)
    made = ClipRecipe(**values)
    with unfilled():
        clip = made.build()
    fill(clip, tensors, "CLIP")
    return clip, made


def is_published(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / CARD).is_file()


def given_folder(given: str) -> Path:
    """Where what a recipe names in `text.given` lies: a folder, or published weights by name (fetched if need be)."""
    return locate(WEIGHTS[given]) if given in WEIGHTS else Path(given)


def open_reader(folder: Path, text: ClipTextRecipe | BertRecipe) -> tuple[Clip | Bert, ClipTextRecipe | BertRecipe, int]:
    """What reads words in this folder, its sizes, and the width of its pooled vector; its words are in `tokenizer.json`
    beside it. text: what a recipe says of it, of which only a BERT's length is taken."""
    if not is_bert(folder):
        clip, made = published_clip(folder) if is_published(folder) else clip_beside(folder, read_card(folder))
        return clip, made.text, made.shared_width
    values, tensors = read_bert(folder)
    length = {"length": text.length} if isinstance(text, BertRecipe) else {}
    found = check(BertRecipe, {**values, **length}, str(folder))
    with unfilled():
        bert = Bert(found)
    fill(bert.text_model, tensors, "BERT")
    return bert, found, found.width
