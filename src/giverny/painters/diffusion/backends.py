"""Which form of the denoiser paints: the plain network, or one with the same numbers and fewer steps in between."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...base.contracts import Denoise
from ...base.errors import InputError, choose
from ...denoisers.packed import PackedUNet
from ...denoisers.precondition import DiscreteDenoiser
from ...denoisers.unet import UNet
from ...layers.packed import available
from .inpainting import fed
from .recipe import Parts

BACKENDS: dict[str, Callable[[torch.device], bool]] = {  # name -> whether it works on a device
    "packed": available,
    "plain": lambda device: True,
}


def choose_backend(parts: Parts, wanted: str, device: torch.device, precision: torch.dtype) -> tuple[Denoise, str] | None:
    """(denoiser, its name), or None for the plain one. "auto" takes the first of BACKENDS that works here, for this network."""
    choose(wanted, ("auto", *BACKENDS), "backend")
    if not isinstance(parts.network, UNet):
        if wanted == "packed":
            given = f"a denoiser of family {parts.recipe.denoiser.family!r}"
            raise InputError("a U-Net for the packed backend", given, "Use --backend plain.")
        return None
    if wanted == "plain" or not BACKENDS["packed"](device):
        if wanted == "packed":
            raise InputError("a CPU with oneDNN for the packed backend", str(device), "Use --backend plain.")
        return None
    recipe = parts.recipe
    network = fed(PackedUNet(parts.network), recipe.denoiser.in_channels, parts.codec)
    packed = DiscreteDenoiser(network, recipe.schedule.table(), recipe.prediction, frozenset({"probe", "grad"}), precision)
    return packed, "packed"
