"""Diffusion as a family: how its recipes read, how it is trained, how its model folders are opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...autoencoders.critic import CriticRecipe
from ...autoencoders.kl import KLRecipe
from ...base.contracts import Family, Source
from ...base.recipe import check
from ...checkpoints.native import CARD, Card, check_files, read_weights
from ...denoisers.unet import UNetRecipe
from ...sampling.schedules import ScheduleRecipe
from ...text.clip import ClipImageRecipe, ClipTextRecipe
from ...text.space import SharedSpace
from ...text.tokenizer import Tokenizer
from ...training.denoise import DenoiseRecipe
from ...training.loop import LoopRecipe
from ...training.parallel import World
from .backends import choose_backend
from .clips import clip_beside
from .knobs import DiffusionKnobs
from .painter import DiffusionPainter
from .published import Reading, find_published, infotext_of, linked_weights
from .recipe import (
    AutoencoderStage,
    DataRecipe,
    DecoderStage,
    DenoiserStage,
    DiffusionRecipe,
    ModelRecipe,
    TextStage,
    assemble,
    networks_of,
)
from .stages import DiffusionWorkshop


def open_folder(
    folder: Path, card: Card, device: torch.device, precision: torch.dtype, backend: str = "auto"
) -> DiffusionPainter:
    """A painter from a model folder. backend: "auto", "plain" or "packed"."""
    recipe = check(ModelRecipe, card.recipe, f"{folder / CARD}: recipe")
    if card.links:
        check_files(folder, card)
    weights = linked_weights(folder, card, precision) if card.links else read_weights(folder, card)
    tokenizer = Tokenizer.read(folder / "tokenizer.json", recipe.text.length)
    return painter_of(card, recipe, networks_of(recipe, weights), tokenizer, device, precision, backend)


def open_published(
    path: Path, device: torch.device, precision: torch.dtype, backend: str = "auto", reading: Reading | None = None
) -> DiffusionPainter:
    """A painter from a Stable Diffusion model of others, from where it lies: a single file, or a diffusers folder."""
    found = find_published(path, reading=reading, precision=precision)
    recipe, networks = found.built.recipe, found.built.networks
    return painter_of(found.card, recipe, networks, found.tokenizer, device, precision, backend)


def painter_of(
    card: Card,
    recipe: ModelRecipe,
    networks: Mapping[str, Any],
    tokenizer: Tokenizer,
    device: torch.device,
    precision: torch.dtype,
    backend: str,
) -> DiffusionPainter:
    """Networks joined. Tensors mapped from a file stay mapped where device and precision are theirs already."""
    made = {name: network.to(device, precision) for name, network in networks.items()}
    told = {"autoencoder": made.get("autoencoder"), "second": made.get("text_2")}
    parts = assemble(recipe, tokenizer, made["text"], made.get("projection"), made["denoiser"], **told)
    if card.links and backend == "auto" and precision == torch.float32:
        backend = "plain"  # it paints from the mapped file; packing would copy weights by the gigabyte
    faster = choose_backend(parts, backend, device, precision)
    backed = faster or (None, "plain")
    painter = DiffusionPainter(parts, card.name, card.fingerprint, card.size, card.knobs, device, precision, *backed)
    painter.further = infotext_of(card)
    return painter


def open_clip(folder: Path, card: Card, device: torch.device) -> SharedSpace:
    """The CLIP that was trained beside a model's denoiser, from its folder."""
    clip, made = clip_beside(folder, card)
    return SharedSpace(clip, Tokenizer.read(folder / "tokenizer.json", made.text.length), device)


def workshop(recipe: DiffusionRecipe, source: Source, folder: Path, world: World, device: torch.device) -> DiffusionWorkshop:
    return DiffusionWorkshop(recipe, source, folder, world, device)


def tiny() -> DiffusionRecipe:
    """Every stage at toy size: 16 x 16 pictures of one shape each, 8 x 8 latents."""
    loop = LoopRecipe(steps=10, batch=8, warmup=2, precision="float32", save_every=5, log_every=1)
    return DiffusionRecipe(
        name="tiny-diffusion",
        title="The smallest diffusion model that has every part",
        licence="Apache-2.0",
        data=DataRecipe(source="toy", size=(16, 16), channels=3, validation=8),
        schedule=ScheduleRecipe(kind="cosine", zero_terminal_snr=True),
        autoencoder=AutoencoderStage(
            network=KLRecipe(channels=(8, 16), blocks=1, groups=4, latent_channels=4, middle_attention=False), loop=loop
        ),
        decoder=DecoderStage(critic=CriticRecipe(channels=(8, 16)), loop=loop),
        text=TextStage(
            text=ClipTextRecipe(width=16, layers=1, heads=2, inner=32, length=12),
            image=ClipImageRecipe(width=16, layers=1, heads=2, inner=32, size=16, patch=4),
            shared_width=16,
            loop=loop,
        ),
        denoiser=DenoiserStage(
            network=UNetRecipe(
                channels=(16, 32),
                blocks=1,
                attention=(False, True),
                depth=(1, 1),
                heads=(2, 2),
                context_width=16,
                groups=4,
            ),
            objective=DenoiseRecipe(prediction="v"),
            loop=loop,
        ),
        knobs={"steps": 4, "guidance": 2.0},
        prompts=("a red circle", "a blue square"),
    )


PAINTER = Family("diffusion", DiffusionRecipe, DiffusionKnobs, tiny, workshop, open_folder)
