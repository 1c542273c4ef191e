"""Tiny random Stable Diffusion XL models, written by diffusers and transformers, and their single files, written from the rules
of the layout."""

import torch

from published_twins import MERGES, openclip_names, randomise, unet_name, vae_only, write_words

# Three levels, the first of which does not attend, as in the model that was released; and two.
XL = {
    "xl": dict(channels=(16, 32, 32), attends=(0, 1, 1), heads=(2, 4, 4), depth=(1, 2, 3), widths=(24, 40), pooled=20, size=8),
    "xl_two": dict(channels=(16, 24), attends=(0, 1), heads=(2, 3), depth=(1, 2), widths=(16, 24), pooled=28, size=16),
    "xl_inpainting": dict(
        channels=(16, 24), attends=(0, 1), heads=(2, 3), depth=(1, 2), widths=(16, 24), pooled=24, size=4, enters=9
    ),
}  # fmt: skip


def networks(kind, seed):
    """(U-Net, autoencoder, first and second text tower, scheduler) of diffusers and transformers."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    c = {"enters": 4, **XL[kind]}
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=c["enters"], block_out_channels=c["channels"], layers_per_block=2,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in c["attends"]],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c["attends"])],
        transformer_layers_per_block=list(c["depth"]), attention_head_dim=list(c["heads"]), norm_num_groups=8,
        cross_attention_dim=sum(c["widths"]), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=c["size"], projection_class_embeddings_input_dim=c["pooled"] + 6 * c["size"],
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=2, sample_size=32, scaling_factor=0.13025,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
    )  # fmt: skip

    def tower(made, width, layers, act):
        return made(
            CLIPTextConfig(
                vocab_size=512 + len(MERGES) + 2, hidden_size=width, intermediate_size=40, num_hidden_layers=layers,
                num_attention_heads=4, max_position_embeddings=77, hidden_act=act, bos_token_id=512 + len(MERGES),
                eos_token_id=513 + len(MERGES), pad_token_id=1, projection_dim=c["pooled"],
            )
        )  # fmt: skip

    first, second = c["widths"]
    texts = tower(CLIPTextModel, first, 3, "quick_gelu"), tower(CLIPTextModelWithProjection, second, 4, "gelu")
    noise = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    )
    return [randomise(n, seed + i) for i, n in enumerate((unet, vae, *texts))] + [noise]


def write_xl(folder, kind, seed, **saving):
    """A diffusers folder of such networks; returns them."""
    from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    unet, vae, text, text_2, noise = networks(kind, seed)
    words = []
    for place, pad in (("words", None), ("words_2", "!")):
        write_words(folder / place, pad)
        words.append(CLIPTokenizer.from_pretrained(folder / place))
    made = StableDiffusionXLInpaintPipeline if kind == "xl_inpainting" else StableDiffusionXLPipeline
    made(vae, text, text_2, *words, unet, noise, add_watermarker=False).save_pretrained(folder, **saving)
    return unet, vae, text, text_2


def xl_single_file(kind, unet, vae, text, text_2):
    """Tensors by the names of a single file."""
    added = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}

    def net_name(name):
        module, _, last = name.rpartition(".")
        return f"{added[module]}.{last}" if module in added else unet_name(name, 2, XL[kind]["attends"])

    out = {"model.diffusion_model." + net_name(n): v for n, v in unet.state_dict().items()}
    out |= {"first_stage_model." + n: v for n, v in vae_only(vae).items()}
    named = {n.removeprefix("text_model."): v for n, v in text.state_dict().items()}
    out |= {"conditioner.embedders.0.transformer.text_model." + n: v for n, v in named.items()}
    tensors = dict(text_2.state_dict())
    projection = tensors.pop("text_projection.weight")
    out |= {"conditioner.embedders.1.model." + n: v for n, v in openclip_names(tensors).items()}
    out["conditioner.embedders.1.model.text_projection"] = projection.T
    return {n: v.clone().contiguous() for n, v in out.items()}


def ours_of(unet, vae, text, text_2):
    """{part: tensors} by our names."""
    strip = lambda tensors: {n.removeprefix("text_model."): v for n, v in tensors.items()}  # noqa: E731
    second = strip(text_2.state_dict())
    projection = {"weight": second.pop("text_projection.weight")}
    net = {n.replace("add_embedding.", "class_embedding."): v for n, v in unet.state_dict().items()}
    return {
        "denoiser": net, "autoencoder": vae.state_dict(), "text": strip(text.state_dict()), "text_2": second,
        "projection": projection,
    }  # fmt: skip


def told_by(pipe, texts, skip=None):
    """(vectors, pooled) that diffusers' pipeline makes of texts."""
    with torch.no_grad():
        vectors, _, pooled, _ = pipe.encode_prompt(list(texts), device="cpu", do_classifier_free_guidance=False, clip_skip=skip)
    return vectors, pooled
