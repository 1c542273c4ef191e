"""Sizes of a published model's networks: from the shapes of its tensors, and from diffusers' and transformers' configs where
there are any; and those configs, written for a model that had none.

Values are plain data, named as in our recipes (`UNetRecipe`, `KLRecipe`, `ClipTextRecipe`, `ScheduleRecipe`). What shapes do
not say is as in the released models: 8 heads at every level of Stable Diffusion 1 and heads of 64 channels later, 32 groups,
quick GELU in the first text tower and GELU in OpenCLIP's, latents times 0.18215, noise in 1000 steps of "scaled linear".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from ..base.errors import InputError, choose
from .keymaps import Tensors, autoencoder_size, levels_in_ours
from .published import Kind, Published

HEADS, HEAD, GROUPS = 8, 64, 32
SCALES: dict[Kind, float] = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "autoencoder": 0.18215, "refiner": 0.13025}
ACTIVATIONS = ("quick_gelu", "gelu")
DOWN, DOWN_ATTENDS, UP, UP_ATTENDS = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
DENOISER: dict[str, tuple[Any, ...]] = {  # what our U-Net does: each setting with the values that mean it
    "act_fn": ("silu",), "norm_eps": (1e-5,), "flip_sin_to_cos": (True,), "freq_shift": (0,), "center_input_sample": (False,),
    "time_embedding_type": ("positional",), "resnet_time_scale_shift": ("default",), "downsample_padding": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",), "mid_block_scale_factor": (1,), "dual_cross_attention": (False,),
    "only_cross_attention": (False,), "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "class_embed_type": (None,),
    "num_class_embeds": (None,), "time_cond_proj_dim": (None,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "resnet_skip_time_act": (False,), "attention_type": ("default",), "cross_attention_norm": (None,),
    "timestep_post_act": (None,), "time_embedding_act_fn": (None,), "addition_embed_type": (None, "text_time"),
    "class_embeddings_concat": (False,), "resnet_out_scale_factor": (1.0,), "reverse_transformer_layers_per_block": (None,),
}  # fmt: skip
AUTOENCODER: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",), "use_quant_conv": (True,), "use_post_quant_conv": (True,), "latents_mean": (None,),
    "latents_std": (None,),
}  # fmt: skip
NOISE = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}  # diffusers' names -> ours
PREDICTIONS: dict[str, Literal["epsilon", "v", "sample"]] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}


def _held(config: Mapping[str, Any], means: Mapping[str, tuple[Any, ...]], what: str) -> None:
    """Raises InputError where a config asks for something else than we compute."""
    for name, values in means.items():
        if name in config and config[name] not in values:
            raise InputError(f"{what} with {name} = {values[0]}", f"{config[name]!r}", "This departure is not known here.")


def shape(tensors: Tensors, name: str, dims: int, what: str) -> tuple[int, ...]:
    """Of one tensor. Raises InputError where it is missing, or of another kind."""
    if name not in tensors or tensors[name].dim() != dims:
        given = f"{tensors[name].dim()} dimensions" if name in tensors else f"{len(tensors)} tensors without it"
        raise InputError(f"{name} with {dims} dimensions in the {what}", given, "Is the file whole?")
    return tuple(tensors[name].shape)


def _per_level(value: Any, levels: int, name: str) -> list[int]:
    """A config's number, or list of them, as one a level."""
    values = list(value) if isinstance(value, list | tuple) else [value] * levels
    if len(values) != levels or not all(isinstance(v, int) and v > 0 for v in values):
        raise InputError(f"{name} with one whole number a level ({levels})", repr(value))
    return values


def denoiser_values(tensors: Tensors, config: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Values of a `UNetRecipe`. config: diffusers', or {} for a single file."""
    what = "U-Net"
    _held(config, DENOISER, what)
    names = levels_in_ours(tensors)
    count = len(names.attends)
    channels = tuple(shape(tensors, f"down_blocks.{i}.resnets.0.conv1.weight", 4, what)[0] for i in range(count))
    crosses = {n: v for n, v in tensors.items() if n.endswith("attn2.to_k.weight") and v.dim() == 2}
    if not crosses:
        raise InputError("a U-Net that attends to words", "one that does not", "Unconditional models are not read.")
    context = next(iter(crosses.values())).shape[1]
    middle = "mid_block.attentions.0." in " ".join(tensors)
    linear = shape_of_projection(tensors) == 2
    values: dict[str, Any] = {
        "in_channels": shape(tensors, "conv_in.weight", 4, what)[1],
        "out_channels": shape(tensors, "conv_out.weight", 4, what)[0],
        "channels": channels, "blocks": names.blocks, "attention": names.attends, "middle_attention": middle,
        "depth": tuple(_depth(tensors, i, i == count - 1 and middle) for i in range(count)),
        "linear_projection": linear, "context_width": context, "groups": config.get("norm_num_groups") or GROUPS,
        "time_width": shape(tensors, "time_embedding.linear_1.weight", 2, what)[0],
    }  # fmt: skip
    if "class_embedding.linear_1.weight" in tensors:
        pooled = shape(tensors, "class_embedding.linear_1.weight", 2, what)[1]
        values |= {"conditioning": "both", "pooled_width": pooled}
    said = config.get("num_attention_heads") or config.get("attention_head_dim")  # the second is misnamed: it counts heads
    if said is not None:
        values["heads"] = _per_level(said, count, "attention_head_dim")
    elif kind == "sd1":
        values["heads"] = [HEADS] * count
    else:
        values |= {"heads": None, "head_width": HEAD}
    return values


def shape_of_projection(tensors: Tensors) -> int:
    """Dimensions of the maps around transformers: 4 a convolution, 2 linear; 0 where there are none."""
    return next((v.dim() for n, v in tensors.items() if n.endswith("attentions.0.proj_in.weight")), 0)


def _depth(tensors: Tensors, level: int, last: bool) -> int:
    """Transformer blocks at a place of a level; of the last level also in the middle."""
    places = [f"down_blocks.{level}.attentions.0", *(["mid_block.attentions.0"] if last else [])]
    found = {
        m[1] for n in tensors for place in places if (m := re.match(re.escape(place) + r"\.transformer_blocks\.(\d+)\.", n))
    }
    return max(1, len(found))


def autoencoder_values(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a `KLRecipe`."""
    what = "autoencoder"
    _held(config, AUTOENCODER, what)
    levels, blocks = autoencoder_size(tensors)
    return {
        "picture_channels": shape(tensors, "encoder.conv_in.weight", 4, what)[1],
        "latent_channels": shape(tensors, "decoder.conv_in.weight", 4, what)[1],
        "channels": tuple(shape(tensors, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4, what)[0] for i in range(levels)),
        "blocks": blocks,
        "middle_attention": "encoder.mid_block.attentions.0.to_q.weight" in tensors,
        "groups": config.get("norm_num_groups") or GROUPS,
    }


def text_values(tensors: Tensors, config: Mapping[str, Any], usual: str) -> dict[str, Any]:
    """Values of a `ClipTextRecipe`. usual: the activation where the config does not say."""
    what = "text encoder"
    vocabulary, width = shape(tensors, "embeddings.token_embedding.weight", 2, what)
    layers = {found[1] for n in tensors if (found := re.match(r"encoder\.layers\.(\d+)\.", n))}
    if config.get("layer_norm_eps", 1e-5) != 1e-5:
        raise InputError("a text encoder with layer_norm_eps = 1e-05", repr(config["layer_norm_eps"]))
    activation = str(config.get("hidden_act", usual))
    return {
        "width": width, "layers": max(1, len(layers)), "heads": config.get("num_attention_heads") or max(1, width // HEAD),
        "inner": shape(tensors, "encoder.layers.0.mlp.fc1.weight", 2, what)[0],
        "activation": choose(activation, ACTIVATIONS, "activation of a text encoder"), "vocabulary": vocabulary,
        "length": shape(tensors, "embeddings.position_embedding.weight", 2, what)[0],
    }  # fmt: skip


def schedule_values(config: Mapping[str, Any], ends_pure: bool = False) -> dict[str, Any]:
    """Values of a `ScheduleRecipe` from diffusers' scheduler config; ends_pure: what else says that noise ends pure."""
    if config.get("trained_betas") is not None:
        raise InputError("a noise schedule by name", "trained_betas in the scheduler's config")
    kind = choose(str(config.get("beta_schedule", "scaled_linear")), NOISE, "beta_schedule")
    return {
        "kind": NOISE[kind], "steps": config.get("num_train_timesteps", 1000), "beta_start": config.get("beta_start", 0.00085),
        "beta_end": config.get("beta_end", 0.012), "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", ends_pure)),
    }  # fmt: skip


def scale_values(config: Mapping[str, Any], kind: Kind) -> dict[str, float]:
    """Values of a `LatentScale`."""
    return {"scale": config.get("scaling_factor") or SCALES[kind], "shift": config.get("shift_factor") or 0.0}


def prediction_said(model: Published) -> Literal["epsilon", "v", "sample"] | None:
    """What the model itself says its U-Net predicts: the scheduler's config, a header's notes, a mark, or a .yaml beside the
    file (as it came with Stable Diffusion 2). None where nothing says it."""
    said = model.configs.get("scheduler", {}).get("prediction_type") or model.metadata.get("modelspec.prediction_type")
    if said is not None:
        said = {"v": "v_prediction"}.get(str(said), str(said))
        return PREDICTIONS[choose(said, PREDICTIONS, "prediction type")]
    if "v_pred" in model.marks:
        return "v"
    beside = model.path.with_suffix(".yaml")
    if model.layout == "single file" and beside.is_file():
        found = re.search(r"""^\s*parameterization:\s*["']?(v|eps|x0)\b""", beside.read_text("utf-8", "replace"), re.MULTILINE)
        return {"v": "v", "eps": "epsilon", "x0": "sample"}[found[1]] if found else "epsilon"  # type: ignore[return-value]
    return None if model.kind == "sd2" else "epsilon"
