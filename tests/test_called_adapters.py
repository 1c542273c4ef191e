"""LoRAs and textual inversions that prompts call by name: painted, kept apart, taken off, and written into the picture."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from giverny.assembly import open_painter
from giverny.assembly.adapters import find_lora
from giverny.assembly.matching import match_model
from giverny.assembly.published import add_published
from giverny.base.contracts import Failed, Toward
from giverny.base.errors import InputError
from giverny.base.infotext import parameters_of
from giverny.checkpoints.hashes import data_hash
from giverny.painters.diffusion.adapters import FILES, MODELS
from giverny.painters.diffusion.published import Reading
from published_twins import randomise, single_file, vae_only, write_twin
from tiny_painters import painted, requests

SIZE = {"steps": 2}


def another_autoencoder():
    """One that can be read without a config."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return randomise(AutoencoderKL(block_out_channels=(32, 32), layers_per_block=2, **blocks), 8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A twin as a folder and a single file; two LoRAs of attention and words; embeddings of three and of one vector."""
    root = tmp_path_factory.mktemp("models")
    networks = write_twin(root / "twin", "two_levels", 7)
    save_file(single_file("two_levels", *networks), root / "one.safetensors")
    save_file(vae_only(another_autoencoder()), root / "vae.safetensors")
    draw = torch.Generator().manual_seed(5)
    (root / "lora" / "own").mkdir(parents=True)
    (root / "embeddings").mkdir()
    modules = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (20, 16),
        "lora_unet_mid_block_resnets_0_conv1": (30, 30, 3, 3),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (40, 16),
    }
    for name in ("warm", "own/cold"):
        tensors = {}
        for module, (wide, *narrow) in modules.items():
            tensors[f"{module}.lora_up.weight"] = torch.randn(wide, 2, *(1,) * (len(narrow) - 1), generator=draw)
            tensors[f"{module}.lora_down.weight"] = torch.randn(2, *narrow, generator=draw)
        save_file(tensors, root / "lora" / f"{name}.safetensors")
    save_file({"lora_unet_nowhere.lora_up.weight": torch.ones(2, 1), "lora_unet_nowhere.lora_down.weight": torch.ones(1, 2)},
              root / "lora" / "strange.safetensors")  # fmt: skip
    save_file({"emb_params": torch.randn(3, 16, generator=draw)}, root / "embeddings" / "glow-on.safetensors")
    torch.save({"string_to_param": {"*": torch.randn(1, 16, generator=draw)}}, root / "embeddings" / "cat.pt")
    save_file({"emb_params": torch.ones(1, 17)}, root / "embeddings" / "wide.safetensors")
    return root


@pytest.fixture
def painter(place, monkeypatch):
    monkeypatch.setenv("GIVERNY_MODELS", str(place))
    return open_painter(place / "twin", backend="plain")


def pixels(painter, *asked, **knobs):
    return [p.pixels for p in painted(painter, *asked, **{**SIZE, **knobs})]


def test_a_lora_acts_as_its_sums_do_and_is_gone_when_it_is_not_called(painter, place):
    before = {n: v.clone() for n, v in painter.parts.network.state_dict().items()}
    (plain,) = pixels(painter, ("a red dog", 1))
    (warm,) = pixels(painter, ("a red dog<lora:warm:0.5>", 1))
    parts = painter.adapters.worn(painter._prompts(painter.parts, *settled(painter, "a red dog<lora:warm:0.5>")).calls).parts
    name = "mid_block.resnets.0.conv1.weight"
    lora = dict(painter.adapters._files)  # the file as it was read
    (held,) = [file.lora for file in lora.values()]
    change = held.changes["denoiser", "mid_block_resnets_0_conv1"]
    by_hand = before[name] + 0.5 * torch.einsum("or,rihw->oihw", change.up.flatten(1), change.down)
    assert torch.allclose(parts.network.state_dict()[name], by_hand, atol=1e-5)
    assert not np.array_equal(plain, warm)
    assert np.array_equal(plain, pixels(painter, ("a red dog", 1))[0]), "to the bit"
    assert all(torch.equal(v, before[n]) for n, v in painter.parts.network.state_dict().items())
    assert parts.network.conv_in.weight.data_ptr() == painter.parts.network.conv_in.weight.data_ptr(), "shared"
    path = place / "lora" / "warm.safetensors"
    assert np.array_equal(warm, pixels(painter, (f"a red dog<lora:{path}:0.5>", 1))[0]), "by path"
    assert np.array_equal(plain, pixels(painter, ("a red dog<lora:warm:0>", 1))[0])
    words, image = (pixels(painter, (f"a red dog<lora:warm:{w}>", 1))[0] for w in ("0.5:0", "0:0.5"))
    assert not np.array_equal(words, image) and not np.array_equal(words, warm)


def settled(painter, prompt):
    (request,) = requests((prompt, 1), **SIZE)
    return painter.settle(request)[0], [request]


def test_requests_with_different_adapters_are_what_they_are_alone(painter):
    asked = [("dog<lora:warm:0.7>", 1), ("dog", 1), ("dog<lora:own/cold:0.4>".replace("own/", ""), 1),
             ("<lora:cold:0.4> dog <lora:warm:0.7>", 1), ("glow-on dog", 1)]  # fmt: skip
    together = pixels(painter, *asked)
    alone = [pixels(painter, one)[0] for one in asked]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert len({p.tobytes() for p in together}) == len(asked)
    with ThreadPoolExecutor(3) as pool:
        threads = list(pool.map(lambda one: pixels(painter, one)[0], asked[:3]))
    assert all(np.array_equal(a, b) for a, b in zip(threads, alone, strict=False))
    pixels(painter, *((f"dog<lora:warm:{i / 9}>", 1) for i in range(5)))
    assert len(painter.adapters._worn) == MODELS and len(painter.adapters._files) <= FILES


def test_packed_networks_take_adapters_too(place, monkeypatch, painter):
    monkeypatch.setenv("GIVERNY_MODELS", str(place))
    packed = pixels(open_painter(place / "twin", backend="packed"), ("dog<lora:warm>", 1))[0]
    assert abs(packed.astype(int) - pixels(painter, ("dog<lora:warm>", 1))[0]).max() <= 1


def test_textual_inversions_are_vectors_in_the_place_of_words(painter, place):
    knobs, wanted = settled(painter, "a Glow-On dog")
    prompts = painter._prompts(painter.parts, knobs, wanted)
    assert prompts.inverted == [("glow-on",)]
    vectors = prompts.inversions.vectors["glow-on"]
    encoder, tokenizer = painter.parts.encoder, painter.parts.encoder.tokenizer
    a, dog = tokenizer.split("a")[0], tokenizer.split("dog")[0]
    ids = torch.tensor([[tokenizer.start, *a, 0, 0, 0, *dog, tokenizer.end] + [tokenizer.pad] * (77 - 5 - len(a) - len(dog))])
    hook = encoder.tower.embeddings.token_embedding.register_forward_hook(
        lambda module, given, out: torch.cat([out[:, : 1 + len(a)], vectors[None], out[:, 4 + len(a) :]], 1)
    )
    by_hand = encoder.tower(ids)
    hook.remove()
    plan = prompts.plans(painter.device, painter.precision)(2, None)
    told = plan.at(0, 2, painter.levels(knobs)[0])[0].condition.vectors
    assert torch.allclose(told, by_hand, atol=1e-5)
    assert np.array_equal(pixels(painter, ("a glow dog", 1))[0], pixels(painter, ("a  glow dog", 1))[0])
    assert painter._prompts(painter.parts, *settled(painter, "scatter")).inverted == [()], "part of a word is none"
    assert painter._prompts(painter.parts, *settled(painter, "(cat:1.2)")).inverted == [("cat",)]


def test_what_cannot_be_followed_fails_alone_and_says_why(painter, place):
    asked = requests(("dog<lora:wram>", 1), ("dog<lora:strange>", 1), ("dog<hypernet:warm:1>", 1), ("dog<lora:warm:1:1:4>", 1),
                     ("wide", 1), ("dog", 1), **SIZE)  # fmt: skip
    failed = {e.id: e.reason for e in painter.paint(asked) if isinstance(e, Failed)}
    assert set(failed) == {"0", "1", "2", "3", "4"}
    for i, said in enumerate(["did you mean 'warm'", "a LoRA made for this model", "hypernet", "rank of 4", "width 16"]):
        assert said in failed[str(i)]
    way = asked[5].model_copy(update={"prompt": "dog<lora:warm>", "toward": Toward(prompt="cat", share=0.5)})
    with pytest.raises(InputError, match="the same adapters at both ends"):
        painter.settle(way)
    with pytest.raises(InputError, match="the path of a LoRA"):
        find_lora(str(place / "embeddings" / "cat.pt"))


def test_pictures_say_what_they_were_painted_with(place, monkeypatch):
    monkeypatch.setenv("GIVERNY_MODELS", str(place))
    single = place / "one.safetensors"
    reading = Reading(configs=place / "twin", words=place / "twin" / "tokenizer", autoencoder=place / "vae.safetensors")
    painter = open_painter(single, reading=reading)
    assert {k: painter.defaults[k] for k in ("dialect", "steps", "guidance", "spacing")} == {
        "dialect": "a1111", "steps": 20, "guidance": 7.0, "spacing": "karras"
    }  # fmt: skip
    long = "a red dog, " * 40
    whole, less = pixels(painter, (long, 1)), pixels(painter, (long, 1), windows=1)
    assert not np.array_equal(whole[0], less[0]), "all windows are read"
    picture = painted(painter, ("cat glow-on <lora:warm:0.5> <lora:cold:0.2>", 1), **SIZE)[0]
    said = parameters_of(picture.provenance, picture.size)
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()  # noqa: E731
    loras = {name: data_hash(find_lora(name)) for name in ("warm", "cold")}
    words = {"cat": "cat.pt", "glow-on": "glow-on.safetensors"}
    expected = {
        "Model hash": digest(single)[:10],
        "Model": "one",
        "VAE hash": digest(place / "vae.safetensors")[:10],
        "VAE": "vae.safetensors",
        "Lora hashes": ", ".join(f"{n}: {h}" for n, h in loras.items()),
        "TI hashes": ", ".join(f"{n}: {digest(place / 'embeddings' / f)[:12]}" for n, f in words.items()),
    }
    assert {key: said.settings.get(key) for key in expected} == expected
    folder = add_published(single, "kept", reading, place=place / "added")
    assert match_model(said, {"other": place / "added" / "kept", "kept": folder}).by == "hash"
    plain = painted(painter, ("cat", 1), **SIZE, dialect="plain")[0].provenance.further
    assert set(plain) == {"Model hash", "VAE", "VAE hash"}
