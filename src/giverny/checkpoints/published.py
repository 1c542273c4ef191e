"""What is read of a published Stable Diffusion model, whatever file or folder it lies in; its kind; what may be left out.

Which tensors tell the kinds apart: AUTOMATIC1111 stable-diffusion-webui, modules/sd_models_config.py; diffusers,
loaders/single_file_utils.py. Tensors carry our names (a diffusers folder's) and the dtype they were stored in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..base.errors import InputError
from .keymaps import Tensors

Kind = Literal["sd1", "sd2", "sdxl", "refiner", "autoencoder"]
TITLES: dict[Kind, str] = {
    "sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL",
    "refiner": "Stable Diffusion XL refiner", "autoencoder": "autoencoder",
}  # fmt: skip
TASKS = {4: "text to picture", 5: "depth to picture", 8: "editing by instruction", 9: "inpainting"}  # by channels that enter

# Of a single file: what carries no weights of a painter. Schedules are made anew, losses and counters belong to training.
IGNORABLE = re.compile(
    r"model_ema\..*|first_stage_model\.(loss\..*|model_ema\..*)|loss\..*"
    r"|(log_|sqrt_)?(recipm?1?_|one_minus_)*(alphas|alphas_cumprod|alphas_cumprod_prev|betas)"
    r"|sqrt_(recip|recipm1|one_minus)_alphas_cumprod|log_one_minus_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor|denoiser\.(sigmas|log_sigmas)"
    r"|v_pred|ztsnr"  # marks of merges: velocity is predicted, noise ends pure
    r"|(.*\.)?position_ids"
    r"|cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)|conditioner\.embedders\.1\.model\.(logit_scale|attn_mask)"
    r"|(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?(text_projection(\.weight)?|logit_scale)"
)


@dataclass(frozen=True)
class Published:
    """A model as found."""

    path: Path
    layout: Literal["single file", "folder"]
    kind: Kind
    parts: Mapping[str, Tensors]  # of denoiser, autoencoder, text, and for SDXL text_2, projection; our names
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # a folder's, by part; also scheduler
    ignored: tuple[str, ...] = ()  # what was left out on purpose
    marks: frozenset[str] = frozenset()  # v_pred, ztsnr, ema (of a single file)
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors header

    def part(self, name: str) -> Tensors:
        """The tensors of a part. Raises InputError where the file has none."""
        found = self.parts.get(name)
        if not found:
            have = ", ".join(self.parts) or "nothing of the kind"
            remedy = "Use the whole model." + (" Or give one with --vae." if name == "autoencoder" else "")
            raise InputError(f"a model with its {WORDS.get(name, name)}", f"{self.path} with {have} alone", remedy)
        return found

    @property
    def task(self) -> str:
        channels = (
            self.parts["denoiser"]["conv_in.weight"].shape[1] if "conv_in.weight" in self.parts.get("denoiser", {}) else 0
        )
        return "pictures to latents" if self.kind == "autoencoder" else TASKS.get(channels, "unknown")


WORDS = {
    "denoiser": "U-Net", "autoencoder": "autoencoder (VAE)", "text": "text encoder", "text_2": "second text encoder",
    "projection": "second text encoder's projection",
}  # fmt: skip
REFINER = "the refiner of Stable Diffusion XL"


def few(names: Iterable[str]) -> str:
    """How many, and the first of them: how lists of tensors are told."""
    names = sorted(names)
    return f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def kind_in_ldm(names: Mapping[str, tuple[int, ...]]) -> Kind:
    """From names and shapes of a single file, in the order in which other programs ask."""
    if "conditioner.embedders.1.model.ln_final.weight" in names:
        return "sdxl"
    if "conditioner.embedders.0.model.ln_final.weight" in names:
        return "refiner"
    if not any(n.startswith(("model.diffusion_model.", "cond_stage_model.")) for n in names):
        return "autoencoder"
    contexts = {shape[-1] for n, shape in names.items() if n.endswith("attn2.to_k.weight") and shape}
    return "sd2" if 1024 in contexts or any(n.startswith("cond_stage_model.model.") for n in names) else "sd1"


def stranger(names: Iterable[str]) -> str | None:
    """What a file is that is known, but is no Stable Diffusion model; None for a file nobody knows."""
    names = set(names)
    if any(n.startswith(("model.diffusion_model.in", "first_stage_model.", "encoder.")) for n in names):
        return None
    has = lambda *parts: any(part in n for n in names for part in parts)  # noqa: E731
    if has("lora_", ".lora.", "lora.up", "hada_w", "lokr_w", ".oft_", ".dora_scale"):
        return "a LoRA, which changes a model"
    if names & {"emb_params", "string_to_param", "clip_l", "clip_g"}:
        return "a textual inversion embedding, which adds a word to a model"
    if has("control_model.", "controlnet_cond_embedding"):
        return "a ControlNet"
    if has("joint_blocks.", "double_blocks.", "single_transformer_blocks."):
        return "a Stable Diffusion 3 or Flux model"
    return None
