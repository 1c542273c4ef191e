"""LoRA and textual inversion: every spelling means the same sums, nothing is left of a LoRA that is taken off, and what does
not belong is said. The sums are held against plain float64 arithmetic and against convolutions one after the other."""

import json
import secrets

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from giverny.base.contracts import Condition
from giverny.base.errors import InputError
from giverny.checkpoints.embeddings import read_embedding
from giverny.checkpoints.keymaps import denoiser_modules, levels_in_ours, moved
from giverny.checkpoints.lora import merged, modules_of, placed, read_lora
from giverny.denoisers.unet import UNet, UNetRecipe
from giverny.painters.diffusion.adapters import adapted
from giverny.painters.diffusion.recipe import ModelRecipe, assemble
from giverny.text.clip import ClipText, ClipTextRecipe
from giverny.text.vocabulary import of_merges
from published_twins import MERGES

UNET = UNetRecipe(channels=(16, 24), attention=(True, False), depth=(1, 1), heads=(4, 4), groups=4, context_width=12, blocks=1)
TEXT = ClipTextRecipe(width=12, layers=2, heads=3, inner=20, vocabulary=514 + len(MERGES))
SITE = "down_blocks.0.attentions.0.transformer_blocks.0."
RANKS = {  # our tensor -> rank and alpha; linear maps, 1x1 and 3x3 convolutions, and the text encoder
    ("denoiser", SITE + "attn1.to_q"): (4, 2.0),
    ("denoiser", SITE + "attn2.to_out.0"): (3, None),
    ("denoiser", SITE + "ff.net.0.proj"): (1, 0.5),
    ("denoiser", "down_blocks.0.attentions.0.proj_in"): (2, 8.0),
    ("denoiser", "down_blocks.0.resnets.0.conv1"): (5, 1.0),
    ("denoiser", "down_blocks.0.downsamplers.0.conv"): (2, None),
    ("text", "encoder.layers.1.self_attn.v_proj"): (2, 1.5),
    ("text", "encoder.layers.0.mlp.fc1"): (3, 3.0),
}


TOLERANCE = 1e-5  # relative to the largest value, float32


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


@pytest.fixture
def base():
    torch.manual_seed(secrets.randbelow(2**31))
    return {"denoiser": UNet(UNET).eval(), "text": ClipText(TEXT).eval()}


def drawn(base):
    """{(part, module): (down, up, alpha)} and the tensors they give, in float64."""
    pairs, sums = {}, {}
    for (part, module), (rank, alpha) in RANKS.items():
        weight = base[part].state_dict()[module + ".weight"]
        down = torch.randn(rank, *weight.shape[1:])
        up = torch.randn(weight.shape[0], rank, *(1,) * (weight.dim() - 2))
        pairs[part, module] = (down, up, alpha)
        change = torch.zeros(weight.shape, dtype=torch.float64)
        for o in range(weight.shape[0]):
            for r in range(rank):
                change[o] += up[o, r].double().sum() * down[r].double()
        sums[part, module] = change * (1 if alpha is None else alpha / rank)
    return pairs, sums


def kohya(part, module):
    return ("lora_unet_" if part == "denoiser" else "lora_te_text_model_") + module.replace(".", "_")


def write(path, spelling, pairs):
    """The same LoRA in one of its spellings."""
    out, alphas = {}, {}
    for (part, module), (down, up, alpha) in pairs.items():
        down, up = down.contiguous(), up.contiguous()
        dotted = f"unet.{module}" if part == "denoiser" else f"text_encoder.text_model.{module}"
        if spelling == "kohya":
            names = [f"{kohya(part, module)}.lora_{x}.weight" for x in ("down", "up")]
        elif spelling == "ldm":  # as files for SDXL name a U-Net's maps
            new = moved(module, denoiser_modules(levels_in_ours(UNet(UNET).state_dict()))) if part == "denoiser" else None
            stem = f"lora_unet_{new.replace('.', '_')}" if new else kohya(part, module)
            names = [f"{stem}.lora_{x}.weight" for x in ("down", "up")]
        elif spelling == "diffusers":
            stem = dotted.replace("attn1.to_q", "attn1.processor.to_q_lora")
            stem = stem.replace("attn2.to_out.0", "attn2.processor.to_out_lora")
            stem = stem if stem.endswith("_lora") else stem + (".lora_linear_layer" if part == "text" else ".lora")
            names = [f"{stem}.{x}.weight" for x in ("down", "up")]
        else:
            prefix = "base_model.model." if spelling == "peft" else ""
            names = [f"{prefix}{dotted}.lora_{x}.weight" for x in ("A", "B")]
        out |= dict(zip(names, (down, up), strict=True))
        if alpha is not None and spelling in ("kohya", "ldm"):
            out[names[0].removesuffix(".lora_down.weight") + ".alpha"] = torch.tensor(alpha)
        elif alpha is not None and spelling == "diffusers":
            out[dotted + ".alpha"] = torch.tensor(alpha)
        else:
            alphas[part, module] = len(down) if alpha is None else alpha
    metadata = {}
    if spelling == "diffusers with notes":
        noted = {}
        for part, prefix in (("denoiser", "unet"), ("text", "text_encoder")):
            noted |= {f"{prefix}.lora_alpha": 1, f"{prefix}.alpha_pattern": {m: a for (p, m), a in alphas.items() if p == part}}
        metadata = {"lora_adapter_metadata": json.dumps(noted)}
    if spelling == "peft":
        config = {"lora_alpha": 1, "alpha_pattern": {m: a for (_, m), a in alphas.items()}}
        (path.parent / "adapter_config.json").write_text(json.dumps(config))
    save_file(out, path, metadata)
    return len(out)


SPELLINGS = ("kohya", "ldm", "diffusers", "diffusers with notes", "peft")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_sum(spelling, base, tmp_path):
    pairs, sums = drawn(base)
    write(tmp_path / "adapter_model.safetensors", spelling, pairs)
    tensors = {part: network.state_dict() for part, network in base.items()}
    before = {part: {n: v.clone() for n, v in held.items()} for part, held in tensors.items()}
    lora = read_lora(tmp_path if spelling == "peft" else tmp_path / "adapter_model.safetensors")
    assert len(placed(lora, tensors)) == len(RANKS)
    apart = {"denoiser": 1.5, "text": -0.5}
    for weight, times in ((0.7, {"denoiser": 0.7, "text": 0.7}), (apart, apart)):
        out = merged(tensors, [(lora, weight)])
        for part, held in tensors.items():
            for name, value in held.items():
                change = sums.get((part, name.removesuffix(".weight")))
                if change is None or not name.endswith(".weight"):
                    assert out[part][name] is value, "what nothing changes is shared"
                    continue
                expected = value.double() + times[part] * change
                assert relative(out[part][name].double(), expected) < TOLERANCE and out[part][name].dtype == value.dtype
                assert not torch.equal(out[part][name], value)
    assert all(torch.equal(v, tensors[p][n]) for p, held in before.items() for n, v in held.items()), "nothing is left behind"
    assert all(merged(tensors, [(lora, 0.0)])[p][n] is v for p, held in tensors.items() for n, v in held.items())
    twice, halves = merged(tensors, [(lora, 1.0)]), merged(tensors, [(lora, 0.5), (lora, 0.5)])
    assert all(relative(halves[p][n], twice[p][n]) < TOLERANCE for p in twice for n in twice[p])


def test_convolutions_one_after_the_other(base, tmp_path):
    """LoCon: a 3x3 to r channels, then a 1x1; with a middle map (CP) a 1x1, a 3x3 and a 1x1."""
    module, x = "down_blocks.0.resnets.0.conv1", torch.randn(2, 16, 7, 9)
    weight = base["denoiser"].state_dict()[module + ".weight"]
    down, up = torch.randn(3, 16, 3, 3), torch.randn(16, 3, 1, 1)
    narrow, mid = torch.randn(3, 16, 1, 1), torch.randn(4, 3, 3, 3)
    wide = torch.randn(16, 4, 1, 1)
    stem = kohya("denoiser", module)
    for tensors, expected in (
        ({"lora_down": down, "lora_up": up}, F.conv2d(F.conv2d(x, down, padding=1), up)),
        (
            {"lora_down": narrow, "lora_mid": mid, "lora_up": wide},
            F.conv2d(F.conv2d(F.conv2d(x, narrow), mid, padding=1), wide),
        ),
    ):
        save_file({f"{stem}.{n}.weight": v for n, v in tensors.items()}, tmp_path / "locon.safetensors")
        after = merged({"denoiser": base["denoiser"].state_dict()}, [(read_lora(tmp_path / "locon.safetensors"), 1.0)])
        change = after["denoiser"][module + ".weight"] - weight
        assert relative(F.conv2d(x, change, padding=1), expected) < 10 * TOLERANCE  # three sums against one


def test_half_precision_is_summed_in_float32(base, tmp_path):
    pairs, sums = drawn(base)
    write(tmp_path / "a.safetensors", "kohya", pairs)
    tensors = {part: {n: v.half() for n, v in net.state_dict().items()} for part, net in base.items()}
    out = merged(tensors, [(read_lora(tmp_path / "a.safetensors"), 1e-3)])
    for (part, module), change in sums.items():
        expected = (tensors[part][module + ".weight"].double() + 1e-3 * change).half()
        off = (out[part][module + ".weight"].double() - expected.double()).abs()
        assert off.max() <= 2e-3 * expected.abs().max() and out[part][module + ".weight"].dtype == torch.float16


def test_adapted_parts_paint_anew_and_leave_the_model_alone(base, tmp_path):
    pairs, sums = drawn(base)
    write(tmp_path / "a.safetensors", "diffusers", pairs)
    recipe = ModelRecipe(
        autoencoder=None, picture_channels=4, text=TEXT, pooled_width=12, projected=False, denoiser=UNET, mask_padding=False,
        schedule={}, prediction="epsilon",
    )  # fmt: skip
    words = of_merges(MERGES)
    parts = assemble(recipe, words, base["text"], None, base["denoiser"], None)
    other = adapted(parts, [(read_lora(tmp_path / "a.safetensors"), 0.1)])
    assert other.encoder.tokenizer is words
    shared = dict(other.network.named_parameters())
    assert sum(p.data_ptr() == shared[n].data_ptr() for n, p in parts.network.named_parameters()) == len(shared) - 6
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([20.0])
    said = []
    with torch.inference_mode():
        for each in (parts, other, parts):
            told = each.condition(["a red cat"])
            said.append((told.vectors, each.network(x, t, each.network.prepare(Condition(vectors=told.vectors)))))
    assert torch.equal(said[0][0], said[2][0]) and torch.equal(said[0][1], said[2][1])
    assert not torch.allclose(said[0][0], said[1][0]) and not torch.allclose(said[0][1], said[1][1])
    for (part, module), change in sums.items():  # the same by hand
        base[part].get_submodule(module).weight.data += (0.1 * change).float()
    with torch.inference_mode():
        told = parts.condition(["a red cat"])
        by_hand = parts.network(x, t, parts.network.prepare(Condition(vectors=told.vectors)))
    assert relative(by_hand, said[1][1]) < 10 * TOLERANCE  # through two networks


def test_full_size_inventory():
    """192 maps of a U-Net's transformers and 72 of the text encoder: what a kohya file for Stable Diffusion 1 changes."""
    with torch.device("meta"):
        unet, text = UNet(UNetRecipe()).state_dict(), ClipText(ClipTextRecipe()).state_dict()
    names = modules_of("denoiser", unet)
    ours = {name for name in names.values() if "attentions" in name and "norm" not in name}
    assert len(ours) == 192
    assert names["down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"] == SITE + "attn1.to_q.weight"
    assert names["input_blocks_1_1_transformer_blocks_0_attn1_to_q"] == SITE + "attn1.to_q.weight"
    assert sum(".layers." in name and "norm" not in name for name in modules_of("text", text).values()) == 72
    flat = [name.removesuffix(".weight").replace(".", "_") for name in [*unet, *text] if name.endswith(".weight")]
    assert len(flat) == len(set(flat)), "no two maps are spelt alike with underscores"


def test_what_does_not_belong_is_said(base, tmp_path):
    tensors = {part: network.state_dict() for part, network in base.items()}
    path, (down, up) = tmp_path / "bad.safetensors", (torch.ones(2, 16), torch.ones(16, 2))
    stem = kohya("denoiser", SITE + "attn1.to_q")

    def held(names):
        save_file({n: v.clone() for n, v in names.items()}, path, {"ss_base_model_version": "sdxl_base_v1-0"})
        return read_lora(path)

    other = held({"lora_unet_down_blocks_7_attn.lora_down.weight": down, "lora_unet_down_blocks_7_attn.lora_up.weight": up})
    with pytest.raises(InputError, match=r"1 maps that it has not, as denoiser down_blocks_7_attn.* another model \(sdxl"):
        merged(tensors, [(other, 1.0)])
    wide = held({f"{stem}.lora_down.weight": torch.ones(2, 1024), f"{stem}.lora_up.weight": up})
    with pytest.raises(InputError, match=r"1 of another size, as .*attn1\.to_q\.weight, here 16 x 16"):
        merged(tensors, [(wide, 1.0)])
    uneven = held({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": torch.ones(16, 3)})
    with pytest.raises(InputError, match="of another size"):
        merged(tensors, [(uneven, 1.0)])
    for names, words in (
        ({f"{stem}.lora_down.weight": down}, "lacks one for 1"),
        ({f"{stem}.lokr_w1": down, f"{stem}.lokr_w2": up}, r"LoKr \(2 tensors\)"),
        ({f"{stem}.hada_w1_a": down}, r"LoHa \(1 tensors\)"),
        ({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.dora_scale": up}, r"DoRA \(1 tensors\)"),
        ({"model.weight": down}, "unknown tensors: 1"),
    ):
        with pytest.raises(InputError, match=words):
            held(names)


# ---------------------------------------------------------------------------------------------------------------------
# Textual inversion


def test_embeddings_of_all_layouts(tmp_path):
    vectors, one = torch.randn(3, 12), torch.randn(12)
    settings = {"string_to_token": {"*": 265}, "name": "other", "step": 100, "sd_checkpoint": "6ce01616"}
    for kept in ({"*": vectors}, torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})):
        torch.save({**settings, "string_to_param": kept}, tmp_path / "style.pt")
        word, found = read_embedding(tmp_path / "style.pt")
        assert word == "style" and found.keys() == {"text"} and torch.equal(found["text"], vectors)
    save_file({"emb_params": vectors.half()}, tmp_path / "half.safetensors")
    word, found = read_embedding(tmp_path / "half.safetensors")
    assert word == "half" and found["text"].dtype == torch.float32 and torch.equal(found["text"], vectors.half().float())
    save_file({"clip_l": vectors, "clip_g": torch.randn(3, 20)}, tmp_path / "xl.safetensors")
    assert {e: tuple(v.shape) for e, v in read_embedding(tmp_path / "xl.safetensors")[1].items()} == {
        "text": (3, 12),
        "text_2": (3, 20),
    }
    torch.save({"<cat-toy>": one}, tmp_path / "learned_embeds.bin")
    word, found = read_embedding(tmp_path / "learned_embeds.bin")
    assert word == "<cat-toy>" and torch.equal(found["text"], one[None])


def test_what_is_no_embedding(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "went off"), "w"))

    torch.save({"string_to_param": {"*": torch.ones(1, 2)}, "x": Bomb()}, tmp_path / "bomb.pt")
    torch.save([1], tmp_path / "list.pt")
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "two.safetensors")
    save_file({"emb_params": torch.ones(1, 2, 3)}, tmp_path / "deep.safetensors")
    for name, words in (
        ("bomb.pt", r"asks to run (io|_io|builtins)\.open"),
        ("list.pt", "holds something else"),
        ("two.safetensors", "with 2 tensors"),
        ("deep.safetensors", "vectors"),
        ("none.pt", "not there"),
    ):
        with pytest.raises(InputError, match=words):
            read_embedding(tmp_path / name)
    assert not (tmp_path / "went off").exists()
