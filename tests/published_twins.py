"""Tiny random Stable Diffusion models, written by diffusers and transformers, and their single files, written from the rules
of the layout (one rule a line, apart from the package's own maps)."""

import json
import re

import torch

from giverny.text.vocabulary import byte_letters

MERGES = [("a", "</w>"), ("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("r", "e"), ("re", "d</w>")][1:]
UNETS = {
    "sd1": dict(channels=(16, 32, 32, 32), attends=(1, 1, 1, 0), heads=4, groups=8, width=24),
    "three_levels": dict(
        channels=(24, 48, 40), attends=(0, 1, 1), heads=[2, 4, 5], groups=4, width=20, blocks=1, depth=[1, 2, 1]
    ),
    "two_levels": dict(channels=(20, 30), attends=(1, 0), heads=5, groups=5, width=16, blocks=3),
    "sd2": dict(
        channels=(16, 32, 32, 32), attends=(1, 1, 1, 0), heads=[2, 4, 4, 4], groups=4, width=32, linear=True, act="gelu",
        prediction="v_prediction",
    ),
    "inpainting": dict(channels=(16, 32), attends=(1, 1), heads=4, groups=8, width=24, enters=9),
}  # fmt: skip
AUTOENCODER = (
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"), ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
    ("mid_block.attentions.0.to_", "mid.attn_1."), (".resnets.", ".block."), ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"), ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
)  # fmt: skip
OPENCLIP = (
    ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"), ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"), ("final_layer_norm", "ln_final"),
)  # fmt: skip


def randomise(module, seed):
    """Every tensor non-zero and of a size that keeps activations of unit order."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        fan = p[0].numel() if p.dim() > 1 else 1
        scale = 0.7 / fan**0.5 if p.dim() > 1 else 0.2
        p.data = scale * noise + (1.0 if "norm" in name and name.endswith("weight") and p.dim() == 1 else 0.0)
        p.data[p.data == 0] = 0.01
    return module.eval()


def write_words(folder, pad=None):
    """A vocabulary of bytes and a few words, as vocab.json and merges.txt. Returns its size."""
    letters = byte_letters()
    symbols = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in MERGES), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in MERGES) + "\n")
    marks = {"pad_token": pad or "<|endoftext|>", "unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>"}
    settings = {**marks, "eos_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(symbols)


def networks(kind, seed):
    """(U-Net, autoencoder, text tower, scheduler) of diffusers and transformers."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    c = {"blocks": 2, "linear": False, "act": "quick_gelu", "enters": 4, "depth": 1, "prediction": "epsilon", **UNETS[kind]}
    attends, levels = c["attends"], len(c["channels"])
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=c["enters"], block_out_channels=c["channels"], layers_per_block=c["blocks"],
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        attention_head_dim=c["heads"], norm_num_groups=c["groups"], cross_attention_dim=c["width"],
        use_linear_projection=c["linear"], transformer_layers_per_block=c["depth"],
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 12, 16)[:levels], norm_num_groups=4, layers_per_block=c["blocks"], sample_size=32,
        down_block_types=["DownEncoderBlock2D"] * min(levels, 3), up_block_types=["UpDecoderBlock2D"] * min(levels, 3),
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=512 + len(MERGES) + 2, hidden_size=c["width"], intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=77, hidden_act=c["act"], bos_token_id=512 + len(MERGES),
            eos_token_id=513 + len(MERGES), pad_token_id=0, projection_dim=c["width"],
        )
    )  # fmt: skip
    noise = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=c["prediction"], steps_offset=1,
        clip_sample=False, set_alpha_to_one=False,
    )  # fmt: skip
    return [randomise(n, seed + i) for i, n in enumerate((unet, vae, text))] + [noise]


def write_twin(folder, kind, seed, **saving):
    """A diffusers folder of such networks; returns them."""
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    unet, vae, text, noise = networks(kind, seed)
    write_words(folder / "words", "!" if kind == "sd2" else None)
    words = CLIPTokenizer.from_pretrained(folder / "words")
    made = StableDiffusionInpaintPipeline if kind == "inpainting" else StableDiffusionPipeline
    pipe = made(vae, text, words, unet, noise, None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder, **saving)
    return unet, vae, text


# ---------------------------------------------------------------------------------------------------------------------
# The single-file layout, from its rules


RESIDUAL = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
            ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")]  # fmt: skip


def unet_name(name, blocks, attends):
    step = blocks + 1
    if m := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        way, i, what, j, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
        if what == "downsamplers":
            return f"input_blocks.{step * i + step}.0." + rest.replace("conv", "op")
        if what == "upsamplers":
            return f"output_blocks.{step * i + blocks}.{2 if attends[-1 - i] else 1}.{rest}"
        place = f"input_blocks.{step * i + j + 1}" if way == "down" else f"output_blocks.{step * i + j}"
        if what == "attentions":
            return f"{place}.1.{rest}"
        name, prefix = rest, f"{place}.0."
    elif m := re.match(r"mid_block\.resnets\.(\d)\.(.*)", name):
        name, prefix = m[2], f"middle_block.{2 * int(m[1])}."
    else:
        for ours, theirs in (("mid_block.attentions.0", "middle_block.1"), ("conv_in", "input_blocks.0.0"),
                             ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
                             ("conv_norm_out", "out.0"), ("conv_out", "out.2")):  # fmt: skip
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        raise AssertionError(name)
    for ours, theirs in RESIDUAL:
        name = name.replace(ours, theirs)
    return prefix + name


def vae_name(name, levels):
    name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"encoder\.down_blocks\.(\d+)", r"encoder.down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in AUTOENCODER:
        name = name.replace(ours, theirs)
    return name


def openclip_names(state):
    out = {}
    for name, value in state.items():
        name = name.removeprefix("text_model.").replace("encoder.layers", "transformer.resblocks")
        for a, b in OPENCLIP:
            name = name.replace(a, b)
        if m := re.match(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name):
            stem = m[1].replace("transformer.resblocks", "encoder.layers") + ".self_attn."
            whole = {k.removeprefix("text_model."): v for k, v in state.items()}
            out[f"{m[1]}.attn.in_proj_{m[2]}"] = torch.cat([whole[f"{stem}{p}_proj.{m[2]}"] for p in "qkv"])
        elif "k_proj" not in name and "v_proj" not in name:
            out[name] = value
    return out


def single_file(kind, unet, vae, text):
    """Tensors by the names of a single file."""
    blocks, attends = UNETS[kind].get("blocks", 2), UNETS[kind]["attends"]
    out = {"model.diffusion_model." + unet_name(n, blocks, attends): v for n, v in unet.state_dict().items()}
    out |= {"first_stage_model." + n: v for n, v in vae_only(vae).items()}
    if kind == "sd2":
        out |= {"cond_stage_model.model." + n: v for n, v in openclip_names(text.state_dict()).items()}
    else:
        named = {n.removeprefix("text_model."): v for n, v in text.state_dict().items()}
        out |= {"cond_stage_model.transformer.text_model." + n: v for n, v in named.items()}
    return {n: v.clone() for n, v in out.items()}


def vae_only(vae):
    levels = len(vae.config.block_out_channels)
    wide = lambda n, v: v[:, :, None, None] if re.search(r"attentions\.0\.to_.*weight", n) else v  # noqa: E731
    return {vae_name(n, levels): wide(n, v).clone() for n, v in vae.state_dict().items()}
