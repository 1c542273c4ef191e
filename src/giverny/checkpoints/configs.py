"""Diffusers' and transformers' configs for a model that had none: what `architecture` reads, written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import DOWN, DOWN_ATTENDS, NOISE, PREDICTIONS, UP, UP_ATTENDS

VERSION = "0.32.0"  # of the diffusers whose configs these are: it wants to be told
CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"], "safety_checker": [None, None], "feature_extractor": [None, None],
}  # fmt: skip
CLASSES_XL = {  # besides
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
}  # fmt: skip


def written(recipe: Mapping[str, Any], side: int) -> dict[str, dict[str, Any]]:
    """Configs by part, and of scheduler and index. recipe: values of a `ModelRecipe`; side: of a picture, in pixels."""
    net, vae, text, noise = (recipe[name] for name in ("denoiser", "autoencoder", "text", "schedule"))
    heads = net["heads"] or [max(1, c // net["head_width"]) for c in net["channels"]]
    denoiser = {
        "_class_name": "UNet2DConditionModel", "in_channels": net["in_channels"], "out_channels": net["out_channels"],
        "block_out_channels": list(net["channels"]), "layers_per_block": net["blocks"],
        "down_block_types": [DOWN_ATTENDS if a else DOWN for a in net["attention"]],
        "up_block_types": [UP_ATTENDS if a else UP for a in reversed(net["attention"])],
        "transformer_layers_per_block": list(net["depth"]), "attention_head_dim": list(heads),
        "cross_attention_dim": net["context_width"], "norm_num_groups": net["groups"],
        "use_linear_projection": net["linear_projection"], "sample_size": side // 2 ** (len(vae["channels"]) - 1),
        "mid_block_type": "UNetMidBlock2DCrossAttn", "act_fn": "silu", "norm_eps": 1e-05, "flip_sin_to_cos": True,
        "freq_shift": 0, "center_input_sample": False, "downsample_padding": 1, "mid_block_scale_factor": 1,
    }  # fmt: skip
    inpaints = "Inpaint" if net["in_channels"] == 9 else ""
    told = {
        "denoiser": denoiser,
        "autoencoder": autoencoder(vae, recipe["scale"]),
        "text": clip_text(text, "CLIPTextModel", text["width"]),
        "scheduler": scheduler(noise, recipe["prediction"]),
    }
    index = {"_diffusers_version": VERSION, **CLASSES}
    if (second := recipe.get("second")) is None:
        name = f"StableDiffusion{inpaints}Pipeline"
        return {**told, "index": {**index, "_class_name": name, "requires_safety_checker": False}}
    for unread in ("safety_checker", "feature_extractor"):
        del index[unread]
    pooled = recipe["pooled_width"]
    told["denoiser"] |= {
        "addition_embed_type": "text_time", "addition_time_embed_dim": (net["pooled_width"] - pooled) // 6,
        "projection_class_embeddings_input_dim": net["pooled_width"],
    }  # fmt: skip
    told["text_2"] = clip_text(second["text"], "CLIPTextModelWithProjection", pooled)
    told["scheduler"] = euler(told["scheduler"])
    name = f"StableDiffusionXL{inpaints}Pipeline"
    return {**told, "index": {**index, **CLASSES_XL, "_class_name": name, "force_zeros_for_empty_prompt": True}}


def clip_text(text: Mapping[str, Any], made: str, projection: int) -> dict[str, Any]:
    """Of a text tower. made: its class; projection: the width that it is projected to."""
    return {
        "architectures": [made], "model_type": "clip_text_model", "hidden_size": text["width"],
        "num_hidden_layers": text["layers"], "num_attention_heads": text["heads"], "intermediate_size": text["inner"],
        "hidden_act": text["activation"], "vocab_size": text["vocabulary"], "max_position_embeddings": text["length"],
        "layer_norm_eps": 1e-05, "bos_token_id": text["vocabulary"] - 2, "eos_token_id": text["vocabulary"] - 1,
        "pad_token_id": 1, "projection_dim": projection,
    }  # fmt: skip


def autoencoder(vae: Mapping[str, Any], scale: Mapping[str, Any]) -> dict[str, Any]:
    levels = len(vae["channels"])
    return {
        "_class_name": "AutoencoderKL", "in_channels": vae["picture_channels"], "out_channels": vae["picture_channels"],
        "latent_channels": vae["latent_channels"], "block_out_channels": list(vae["channels"]),
        "layers_per_block": vae["blocks"], "norm_num_groups": vae["groups"], "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": vae["middle_attention"], "scaling_factor": scale["scale"],
        "shift_factor": scale["shift"] or None, "sample_size": 512,
    }  # fmt: skip


def scheduler(noise: Mapping[str, Any], prediction: str) -> dict[str, Any]:
    """As Stable Diffusion's own, which tells diffusers to skip the first of its times."""
    names = {ours: theirs for theirs, ours in NOISE.items()}
    return {
        "_class_name": "PNDMScheduler", "beta_schedule": names[noise["kind"]], "beta_start": noise["beta_start"],
        "beta_end": noise["beta_end"], "num_train_timesteps": noise["steps"], "skip_prk_steps": True, "steps_offset": 1,
        "set_alpha_to_one": False, "timestep_spacing": "leading", "trained_betas": None,
        "rescale_betas_zero_snr": noise["zero_terminal_snr"],
        **predicting(prediction),
    }  # fmt: skip


def euler(pndm: Mapping[str, Any]) -> dict[str, Any]:
    """As Stable Diffusion XL's own, of the same noise."""
    unknown = ("skip_prk_steps", "set_alpha_to_one")
    return {**{n: v for n, v in pndm.items() if n not in unknown}, "_class_name": "EulerDiscreteScheduler"}


def predicting(prediction: str) -> dict[str, str]:
    """The part of a scheduler's config that says what a U-Net predicts."""
    return {"prediction_type": next(theirs for theirs, ours in PREDICTIONS.items() if ours == prediction)}
