"""Which form of the denoiser paints: the plain network, or one with the same numbers and fewer steps in between."""

from __future__ import annotations

import torch

from ...base.contracts import Denoise
from ...base.errors import choose
from .recipe import Parts


def choose_backend(parts: Parts, wanted: str, device: torch.device, precision: torch.dtype) -> tuple[Denoise, str] | None:
    """(denoiser, its name), or None for the plain one."""
    choose(wanted, ("auto", "plain"), "backend")
    return None
