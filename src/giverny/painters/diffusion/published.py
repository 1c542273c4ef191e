"""Published Stable Diffusion models as painters: what is read of a file or folder becomes a recipe, a card and networks.

Whether an unlabelled Stable Diffusion 2 predicts noise or velocity is asked of its U-Net, as AUTOMATIC1111
stable-diffusion-webui does (modules/sd_models_config.py): on a flat 0.5 at the last time, velocity is far below what came in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from ...base.contracts import Condition, Frozen
from ...base.errors import InputError
from ...base.recipe import check
from ...checkpoints import architecture
from ...checkpoints.hashes import model_hash
from ...checkpoints.keymaps import Tensors
from ...checkpoints.model_files import digest_of, read_published
from ...checkpoints.native import Card, Link
from ...checkpoints.published import TITLES, Kind, Published
from ...checkpoints.single_file import SUFFIXES
from ...data.vocabularies import clip_words
from ...text.tokenizer import Tokenizer
from ...text.vocabulary import read_words
from .recipe import ModelRecipe, networks_of
from .sizes import SIZES, size_width

Prediction = Literal["epsilon", "v", "sample"]
KNOBS: Mapping[str, Any] = {
    "steps": 20, "sampler": "dpm++ 2m", "spacing": "karras", "guidance": 7.0, "dialect": "a1111", "windows": 64,
}  # fmt: skip
SIDES: dict[Kind, int] = {"sd1": 512, "sd2": 512, "sdxl": 1024}  # of those that paint
NETWORKS = ("text", "denoiser", "autoencoder")
NETWORKS_XL = ("text", "text_2", "projection", "denoiser", "autoencoder")
FIRST_WORDS, SECOND_WORDS = "tokenizer", "tokenizer_2"  # folders of a diffusers folder
SECOND_PADDING = 0  # where no file says it
VELOCITY_SIDE = 768  # of Stable Diffusion 2 where it predicts velocity
PAINTS = ("text to picture", "inpainting")
PADDING: dict[Kind, int | None] = {"sd1": None, "sd2": 0, "sdxl": None}  # the token after a text's end; None: the end again


class Reading(Frozen):
    """How a published model is to be read, where its files do not say, or say more than one thing."""

    ema: bool = Field(False, description="the averaged copies (EMA) of a single file's U-Net instead of its last weights")
    variant: str | None = Field(None, description="which of a folder's weights, such as fp16")
    prediction: Prediction | None = Field(None, description="what the U-Net predicts; None: as the files say, or found out")
    configs: Path | None = Field(None, description="a diffusers folder whose configs say how a single file is built")
    autoencoder: Path | None = Field(None, description="another autoencoder (VAE): a file or folder")
    words: Path | None = Field(None, description="CLIP's vocabulary: a tokenizer folder, or the list of merges")


@dataclass(frozen=True)
class Built:
    """A published model's networks, made over its very tensors, each found to fit."""

    weights: dict[str, Tensors]  # of text, denoiser and autoencoder; of Stable Diffusion XL also text_2 and projection
    configs: dict[str, Mapping[str, Any]]
    recipe: ModelRecipe
    networks: dict[str, nn.Module]


@dataclass(frozen=True)
class Found:
    """A published model, ready to be put together."""

    card: Card
    built: Built
    tokenizer: Tokenizer


def find_published(path: Path, name: str = "", reading: Reading | None = None, precision: torch.dtype | None = None) -> Found:
    """Read a model, work out how it is built, and write its card. Raises InputError for what cannot paint here.

    precision: what its weights are brought to, where they are not to stay mapped as they are.
    """
    reading = reading or Reading()
    model = read_published(path, reading.ema, reading.variant, reading.configs, precision)
    built = build(model, reading)
    recipe = built.recipe
    if model.task not in PAINTS:
        raise InputError(
            f"a model for {' or '.join(PAINTS)}", f"{path}, for {model.task}", "Such models are not painted with yet."
        )
    digest = digest_of(path)
    links = {"model": Link(path=str(path.resolve()), sha256=digest, ema=reading.ema, variant=reading.variant)}
    if (vae := reading.autoencoder) is not None:
        links["autoencoder"] = Link(path=str(vae.resolve()), sha256=digest_of(vae))
    card = Card(
        family="diffusion",
        name=name or path.stem,
        title=model.metadata.get("modelspec.title", f"{TITLES[model.kind]}, {model.task}"),
        size=size_of(model, built.configs, recipe),
        recipe=recipe.model_dump(mode="json"),
        knobs=knobs_of(model),
        licence=licence_of(model),
        parameters={part: sum(v.numel() for v in tensors.values()) for part, tensors in built.weights.items()},
        links=links,
    )
    return Found(card, built, words_of(model, recipe, reading.words))


def build(model: Published, reading: Reading) -> Built:
    """Raises InputError where a part is missing, does not fit, or is of an architecture that ours is not."""
    weights, configs = parts_of(model, reading)
    said = reading.prediction or architecture.prediction_said(model)
    recipe = recipe_of(model, weights, configs, said or "epsilon")
    networks = networks_of(recipe, weights)
    if said is None:
        recipe = recipe.model_copy(update={"prediction": predicted_by(networks["denoiser"], recipe)})
    return Built(weights, configs, recipe, networks)


def knobs_of(model: Published) -> dict[str, Any]:
    """The usual settings, and what a folder says of empty negative prompts."""
    encodes = model.configs.get("index", {}).get("force_zeros_for_empty_prompt") is False
    return {**KNOBS, **({"empty_negative": "encoded"} if encodes and model.kind == "sdxl" else {})}


def parts_of(model: Published, reading: Reading) -> tuple[dict[str, Tensors], dict[str, Mapping[str, Any]]]:
    """(tensors of the networks that paint, configs), the autoencoder another's where that is asked for.

    Raises InputError where a part is missing, or for models that do not paint.
    """
    if model.kind not in SIDES:
        remedy = (
            "Give it together with a model." if model.kind == "autoencoder" else "It can be looked at, not yet painted with."
        )
        raise InputError("Stable Diffusion 1, 2 or XL to paint with", f"{model.path}, {TITLES[model.kind]}", remedy)
    names = NETWORKS_XL if model.kind == "sdxl" else NETWORKS
    weights, configs = {name: model.part(name) for name in names if name != "autoencoder"}, dict(model.configs)
    if reading.autoencoder is None:
        return {**weights, "autoencoder": model.part("autoencoder")}, configs
    other = read_published(reading.autoencoder)
    configs["autoencoder"] = other.configs.get("autoencoder", {})
    return {**weights, "autoencoder": other.part("autoencoder")}, configs


def infotext_of(card: Card) -> dict[str, str]:
    """What infotext says of a published model beyond its name: hashes of its single files, as other programs know them."""
    told, model, other = {}, card.links.get("model"), card.links.get("autoencoder")
    if model is not None and Path(model.path).suffix in SUFFIXES:
        told["Model hash"] = model_hash(model.sha256)
    if other is not None:
        single = Path(other.path).suffix in SUFFIXES
        told |= {"VAE": Path(other.path).name} | ({"VAE hash": model_hash(other.sha256)} if single else {})
    return told


def linked_weights(folder: Path, card: Card, precision: torch.dtype | None = None) -> dict[str, Tensors]:
    """The tensors of a model whose card says where they lie. Raises InputError where those are not there, or changed."""
    parts: dict[str, Tensors] = {}
    for name, link in card.links.items():
        path = folder / link.path  # an absolute path stays what it is
        if not path.exists():
            raise InputError(f"the file that {card.name} is read from", f"{path}, which is not there", "Add the model again.")
        if digest_of(path) != link.sha256:
            raise InputError(f"{path} as it was when {card.name} was added", "other content", "Add the model again.")
        found = read_published(path, link.ema, link.variant, precision=precision)
        parts |= found.parts if name == "model" else {name: found.part(name)}
    return parts


def recipe_of(
    model: Published, weights: Mapping[str, Tensors], configs: Mapping[str, Mapping[str, Any]], prediction: Prediction
) -> ModelRecipe:
    """How the networks are built and what they mean. Raises InputError for architectures that ours are not."""
    told = lambda part: configs.get(part, {})  # noqa: E731
    text = architecture.text_values(weights["text"], told("text"), "gelu" if model.kind == "sd2" else "quick_gelu")
    values = {
        "autoencoder": architecture.autoencoder_values(weights["autoencoder"], told("autoencoder")),
        "scale": architecture.scale_values(told("autoencoder"), model.kind),
        "text": text,
        "pooled_width": text["width"],
        "projected": False,
        "denoiser": architecture.denoiser_values(weights["denoiser"], told("denoiser"), model.kind),
        "mask_padding": False,
        "schedule": architecture.schedule_values(told("scheduler"), "ztsnr" in model.marks),
        "prediction": prediction,
    }
    if model.kind == "sdxl":
        second = architecture.text_values(weights["text_2"], told("text_2"), "gelu")
        pooled = architecture.shape(weights["projection"], "weight", 2, "second text encoder")[0]
        values |= {"second": {"text": second, "pad": second_padding(model)}, "pooled_width": pooled, "projected": True}
    recipe = check(ModelRecipe, values, f"{model.path}: architecture")
    net = recipe.denoiser
    if net.cross and net.context_width != recipe.read_width:
        raise InputError(f"a U-Net that reads words of width {recipe.read_width}", f"one of width {net.context_width}")
    if recipe.second and (net.conditioning != "both" or size_width(recipe) < 1):
        given = f"one of width {net.pooled_width}" if net.additive else "one without"
        raise InputError(f"a U-Net with room for {recipe.pooled_width} numbers of the words and for {SIZES} sizes", given)
    return recipe


def predicted_by(network: nn.Module, recipe: ModelRecipe) -> Prediction:
    """What an unlabelled U-Net predicts, found by asking it; see the head of this file."""
    precision = next(network.parameters()).dtype
    x = torch.full((1, recipe.denoiser.in_channels, 8, 8), 0.5, dtype=precision)
    words = torch.full((1, recipe.text.length, recipe.text.width), 0.5, dtype=precision)
    ask: Any = network.eval()
    with torch.inference_mode():
        said = ask(x, torch.tensor([999.0]), ask.prepare(Condition(vectors=words)))
    return "v" if float((said - x[:, : said.shape[1]]).float().mean()) < -1 else "epsilon"


def size_of(model: Published, configs: Mapping[str, Mapping[str, Any]], recipe: ModelRecipe) -> tuple[int, int]:
    """Width and height that the model was taught to paint."""
    side = configs.get("denoiser", {}).get("sample_size")
    assert recipe.autoencoder is not None
    if side is not None:
        high, wide = side if isinstance(side, list) else (side, side)
        return wide * recipe.autoencoder.factor, high * recipe.autoencoder.factor
    usual = VELOCITY_SIDE if model.kind == "sd2" and recipe.prediction == "v" else SIDES[model.kind]
    return usual, usual


def licence_of(model: Published) -> str:
    """What a file's header, or a folder's README, says of the licence; "" where they say nothing."""
    for name in ("modelspec.license", "license"):
        if name in model.metadata:
            return str(model.metadata[name])
    readme = model.path / "README.md"
    if model.layout == "folder" and readme.is_file():
        found = re.search(r"^license:\s*(\S+)", readme.read_text("utf-8", "replace"), re.MULTILINE)
        return found[1] if found else ""
    return ""


def second_padding(model: Published) -> int:
    """The token after a text's end in the second text tower of Stable Diffusion XL. Raises InputError where a folder has two
    vocabularies."""
    first, second = (model.path / name for name in (FIRST_WORDS, SECOND_WORDS))
    if model.layout != "folder" or not first.is_dir() or not second.is_dir():
        return SECOND_PADDING
    one, other = read_words(first), read_words(second)
    if one.symbols() != other.symbols():
        raise InputError("two text encoders of one vocabulary", f"{first} and {second}, which differ")
    return other.pad


def words_of(model: Published, recipe: ModelRecipe, named: Path | None) -> Tokenizer:
    """The tokenizer: named by the user, else the folder's own, else CLIP's from wherever it is to be had."""
    own = model.path / FIRST_WORDS
    if named is None and model.layout == "folder" and own.is_dir():
        return read_words(own, recipe.text.length)
    place = clip_words(named)
    return read_words(place, recipe.text.length, None if place.is_dir() else PADDING[model.kind])
