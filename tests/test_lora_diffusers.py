"""LoRA against diffusers' own loader: what the text encoder and the U-Net of a published model say under `<lora:name:weight>`
is what they say in diffusers after `load_lora_weights`, whose sums PEFT makes.

Runs where PEFT is: `pip install --no-deps peft accelerate psutil`."""

import secrets

import pytest
import torch
from safetensors.torch import save_file

from giverny.assembly import open_painter
from giverny.base.contracts import Condition, Request
from published_twins import write_twin

pytest.importorskip("peft", reason="diffusers reads LoRAs by PEFT, which wants accelerate")
pytestmark = pytest.mark.xdist_group("oracles")
TOLERANCE = 1e-4  # relative to the largest value; found: about 1e-6
KINDS = ("two_levels", "three_levels", "sd2")
SPELLINGS = ("kohya", "diffusers", "old diffusers")
SITES = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = tuple(f"{attention}.{site}" for attention in ("attn1", "attn2") for site in SITES)
WORDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")


def drawn(model, choices, draw, alpha, always=""):
    """{module: (down, up, alpha)} of about two thirds of the maps whose names end so; ranks at random."""
    found = {}
    for name, weight in model.state_dict().items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.endswith(choices) and (draw.random() < 0.7 or module.endswith(always or "?")):
            rank = draw.randint(1, 6)
            wide, *narrow = weight.shape
            scale = 0.5 / (rank * narrow[0]) ** 0.5
            down, up = torch.randn(rank, *narrow), scale * torch.randn(wide, rank, *(1,) * (weight.dim() - 2))
            found[module] = (down, up, alpha)
    return found


def tensors_of(spelling, unet, words):
    """A LoRA file's tensors."""
    out = {}
    for part, maps in (("unet", unet), ("text_encoder", words)):
        for module, (down, up, alpha) in maps.items():
            module = module.removeprefix("text_model.")
            if spelling == "kohya":
                stem = "lora_unet_" if part == "unet" else "lora_te_text_model_"
                stem += module.replace(".", "_")
                names = [f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"]
                out |= dict(zip(names, (down, up, torch.tensor(alpha)), strict=True))
                continue
            stem = f"{part}.{module}" if part == "unet" else f"{part}.text_model.{module}"
            if spelling == "diffusers":
                names = [f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"]
            elif part == "unet":
                names = [f"{stem}.lora.down.weight", f"{stem}.lora.up.weight"]
            else:
                names = [f"{stem}.lora_linear_layer.down.weight", f"{stem}.lora_linear_layer.up.weight"]
            out |= dict(zip(names, (down, up), strict=True))
    return {name: value.contiguous() for name, value in out.items()}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_says_what_diffusers_makes_of_it(kind, spelling, tmp_path, monkeypatch):
    import random

    from diffusers import StableDiffusionPipeline

    seed = secrets.randbelow(2**31)
    torch.manual_seed(seed)
    draw = random.Random(seed)
    unet, _, text = write_twin(tmp_path / "model", kind, seed)
    # As kohya's trainer writes them: one alpha for all linear maps of a part, one for convolutions; out_proj is always there.
    # Of several alphas in one part diffusers 0.42 keeps the most frequent one for attention, and q, k and v of a text encoder
    # only beside out_proj (convert_state_dict_to_diffusers): that maps are read one by one is shown in test_adapters.
    alpha, wide, text_alpha = (draw.choice([0.5, 1.0, 3.0, 8.0]) for _ in range(3))
    maps = drawn(unet, (*LINEAR, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"), draw, alpha)
    if spelling == "kohya":
        maps |= drawn(unet, ("resnets.0.conv1", "resnets.1.conv2", "downsamplers.0.conv"), draw, wide)
    parts = maps, drawn(text, WORDS, draw, text_alpha, always="layers.0.self_attn.out_proj")
    assert len(parts[0]) > 10 and parts[1]
    path = tmp_path / "models" / "lora" / "ink.safetensors"
    path.parent.mkdir(parents=True)
    save_file(tensors_of(spelling, *parts), path)
    monkeypatch.setenv("GIVERNY_MODELS", str(tmp_path / "models"))

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    painter = open_painter(tmp_path / "model", backend="plain")
    x, t = torch.randn(2, unet.config.in_channels, 16, 8), torch.tensor([draw.uniform(0, 999), draw.uniform(0, 999)])
    ids = torch.tensor(pipe.tokenizer(["a red cat"], padding="max_length").input_ids)

    def theirs():
        told = pipe.text_encoder(ids)[0]
        return told, pipe.unet(x, t, told.expand(2, -1, -1)).sample

    def ours(prompt):
        prompts = painter._prompts(painter.parts, *settled(painter, prompt))
        parts = painter.adapters.worn(prompts.calls).parts if prompts.calls else painter.parts
        told = parts.condition(["a red cat"]).vectors
        here = Condition(vectors=told.expand(2, -1, -1))
        return told, parts.network(x, t, parts.network.prepare(here))

    with torch.inference_mode():
        for one, other in zip(ours("a red cat"), theirs(), strict=True):
            assert relative(one, other) < TOLERANCE
        plain = theirs()
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="ink")
        for weight in (1.0, draw.choice((-1, 1)) * draw.uniform(0.4, 1.5)):
            pipe.set_adapters(["ink"], [weight])
            for one, other, before in zip(ours(f"a red cat<lora:ink:{weight}>"), theirs(), plain, strict=True):
                assert relative(one, other) < TOLERANCE, (kind, spelling, seed, weight)
                assert relative(other, before) > 5 * TOLERANCE, "the LoRA does something"
        # text encoder and U-Net apart
        pipe.set_adapters(["ink"], [{"text_encoder": 0.3, "unet": 0.8}])
        for one, other in zip(ours("a red cat<lora:ink:0.3:0.8>"), theirs(), strict=True):
            assert relative(one, other) < TOLERANCE, (kind, spelling, seed)


def settled(painter, prompt):
    request = Request(prompt=prompt, seed=1, size=(16, 16))
    return painter.settle(request)[0], [request]


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())
