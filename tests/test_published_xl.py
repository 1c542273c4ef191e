"""Stable Diffusion XL, as tiny random twins that diffusers and transformers write and read on the spot: every tensor in its
place, networks that say the same, words read by both towers, and what is told beside them."""

import json
import logging
import secrets
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from giverny.assembly import open_painter
from giverny.assembly.published import add_published, describe_published
from giverny.autoencoders.kl import KLAutoencoder, KLRecipe
from giverny.base.contracts import Condition, Done, Failed, Request, Start
from giverny.base.errors import InputError
from giverny.base.images import png_bytes
from giverny.base.start import enclosed
from giverny.checkpoints import configs
from giverny.checkpoints.model_files import is_published, read_published
from giverny.checkpoints.single_file import from_ldm, to_ldm
from giverny.denoisers.unet import UNet, UNetRecipe
from giverny.painters.diffusion.convert import convert
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.painters.diffusion.published import Reading, find_published
from giverny.painters.diffusion.sizes import told_sizes
from giverny.text.clip import ClipText, ClipTextRecipe
from giverny.text.encoding import encode
from giverny.text.prompting import PromptSettings, prompt_plan
from published_twins import write_twin
from tiny_painters import painted
from xl_twins import XL, ours_of, told_by, write_xl, xl_single_file

TOLERANCE = 1e-5  # relative to the largest value, float32
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")

pytestmark = pytest.mark.xdist_group("oracles")


@pytest.fixture(scope="module", autouse=True)
def quiet():
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """kind -> (folder, single file, U-Net, autoencoder, both text towers), made when first asked for."""
    made = {}

    def twin(kind):
        if kind not in made:
            place, seed = tmp_path_factory.mktemp(kind), secrets.randbelow(2**31)
            print(f"{kind}: seed {seed}")
            theirs = write_xl(place / "folder", kind, seed)
            save_file(xl_single_file(kind, *theirs), place / "one.safetensors")
            made[kind] = (place / "folder", place / "one.safetensors", *theirs)
        return made[kind]

    return twin


@pytest.fixture(scope="module")
def xl(twins):
    """(diffusers' pipeline, our painter) over the same folder."""
    from diffusers import StableDiffusionXLPipeline

    folder, *_ = twins("xl")
    return StableDiffusionXLPipeline.from_pretrained(folder), open_painter(folder, backend="plain")


def relative(ours, theirs):
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())


def without_ids(network):
    return {n: v for n, v in network.state_dict().items() if not n.endswith("position_ids")}


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("kind", XL)
def test_folder_and_single_file_are_read_whole(kind, twins):
    folder, single, *theirs = twins(kind)
    assert is_published(folder) and is_published(single)
    for path in (folder, single):
        found = read_published(path)
        assert found.kind == "sdxl" and not found.ignored
        assert found.task == ("inpainting" if kind == "xl_inpainting" else "text to picture")
        for part, tensors in ours_of(*theirs).items():
            same(found.parts[part], tensors)
        assert found.parts.keys() == ours_of(*theirs).keys()


def test_what_carries_no_weights_is_left_out_by_name(twins, tmp_path):
    _, _, *theirs = twins("xl_two")
    left = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77),
        "conditioner.embedders.0.transformer.text_projection.weight": torch.ones(2, 2),
        "conditioner.embedders.0.logit_scale": torch.ones(()),
        "conditioner.embedders.1.model.logit_scale": torch.ones(()),
        "denoiser.sigmas": torch.ones(1000),
    }
    save_file(xl_single_file("xl_two", *theirs) | left, tmp_path / "more.safetensors")
    found = read_published(tmp_path / "more.safetensors")
    assert set(found.ignored) == set(left)
    for part, tensors in ours_of(*theirs).items():
        same(found.parts[part], tensors)


@pytest.mark.parametrize("kind", XL)
def test_the_layout_of_the_twins_is_what_diffusers_reads(kind, twins):
    """The referee: the single files of these tests, written from the rules, mean to diffusers what they mean to us."""
    from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline

    folder, single, *theirs = twins(kind)
    made = StableDiffusionXLInpaintPipeline if kind == "xl_inpainting" else StableDiffusionXLPipeline
    pipe = made.from_single_file(str(single), config=str(folder), local_files_only=True)
    for mine, name in zip(theirs, COMPONENTS, strict=True):
        same(without_ids(getattr(pipe, name)), mine.state_dict())


@pytest.mark.parametrize("kind", XL)
def test_conversion_there_and_back_is_the_identity(kind, twins, tmp_path):
    folder, _, *theirs = twins(kind)
    made = convert(folder, tmp_path / "one.safetensors")
    assert made.tensors == sum(len(network.state_dict()) for network in theirs)
    same(load_file(tmp_path / "one.safetensors"), xl_single_file(kind, *theirs))
    convert(tmp_path / "one.safetensors", tmp_path / "two", Reading(words=folder / "tokenizer"))
    for part in COMPONENTS:
        name = ("model" if part.startswith("text") else "diffusion_pytorch_model") + ".safetensors"
        strip = lambda path: {n.removeprefix("text_model."): v for n, v in load_file(path).items()}  # noqa: E731
        same(strip(tmp_path / "two" / part / name), strip(folder / part / name))
    first, second = find_published(folder), find_published(tmp_path / "two")
    assert first.built.recipe == second.built.recipe and first.card.size == second.card.size
    assert first.tokenizer(["a red cat"]).ids.equal(second.tokenizer(["a red cat"]).ids)


def test_configs_that_are_written_for_a_model_without_are_what_diffusers_opens(twins, tmp_path):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    folder, single, *theirs = twins("xl")
    reading = Reading(configs=folder, words=folder / "tokenizer")
    found = find_published(single, reading=reading)
    told = configs.written(found.built.recipe.model_dump(mode="json"), 16)
    convert(single, tmp_path / "out", reading)
    places = {"text": "text_encoder", "text_2": "text_encoder_2", "denoiser": "unet", "autoencoder": "vae"}
    for part, place in places.items():
        (tmp_path / "out" / place / "config.json").write_text(json.dumps(told[part]))
    assert find_published(tmp_path / "out").built.recipe == find_published(folder).built.recipe
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler) and pipe.config.force_zeros_for_empty_prompt
    for mine, name in zip(theirs, COMPONENTS, strict=True):
        same(without_ids(getattr(pipe, name)), mine.state_dict())
    vectors, pooled = told_by(pipe, PROMPTS)
    told = open_painter(folder).parts.condition(PROMPTS)
    assert relative(told.vectors, vectors) < TOLERANCE and relative(told.pooled, pooled) < TOLERANCE
    x, t, sizes = torch.randn(3, 4, 8, 8), torch.rand(3) * 999, torch.rand(3, 6) * 2000
    with torch.inference_mode():
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        assert torch.equal(pipe.unet(x, t, vectors, **more).sample, theirs[0](x, t, vectors, **more).sample)


def test_a_model_goes_by_a_name_and_is_described(twins, tmp_path, monkeypatch):
    folder, _, *theirs = twins("xl_two")
    monkeypatch.setenv("GIVERNY_MODELS", str(tmp_path / "models"))
    told = describe_published(folder)
    assert told["paints"] and told["kind"] == "Stable Diffusion XL" and told["prediction"] == "epsilon"
    counted = {part: sum(v.numel() for v in tensors.values()) for part, tensors in ours_of(*theirs).items()}
    assert told["parameters"] == counted
    add_published(folder, "mine")
    add_published(folder, "copied", copy=True)
    first = pixels(open_painter(folder))
    for name in ("mine", "copied"):
        painter = open_painter(name)
        assert (pixels(painter) == first).all() and painter.parts.encoder.pad == 0
    config = json.loads((tmp_path / "models" / "mine" / "card.json").read_text())
    assert config["recipe"]["second"]["pad"] == 0 and config["parameters"] == counted


def test_models_of_one_text_tower_are_written_as_they_were(tmp_path):
    write_twin(tmp_path / "twin", "sd1", 1)
    recipe = find_published(tmp_path / "twin").card.recipe
    assert "second" not in recipe and set(recipe) == {
        "autoencoder", "scale", "picture_channels", "text", "image", "pooled_width", "projected", "denoiser", "mask_padding",
        "schedule", "prediction",
    }  # fmt: skip


def test_every_tensor_of_stable_diffusion_xl_has_a_place_in_both_layouts():
    """At full size, without weights: the counts of the released model."""
    net = UNetRecipe(
        channels=(320, 640, 1280), attention=(False, True, True), depth=(1, 2, 10), heads=None, head_width=64,
        context_width=2048, linear_projection=True, conditioning="both", pooled_width=2816,
    )  # fmt: skip
    second = ClipTextRecipe(width=1280, layers=32, heads=20, inner=5120, activation="gelu")
    with torch.device("meta"):
        networks = {
            "denoiser": UNet(net), "autoencoder": KLAutoencoder(KLRecipe()), "text": ClipText(ClipTextRecipe()),
            "text_2": ClipText(second), "projection": torch.nn.Linear(1280, 1280, bias=False),
        }  # fmt: skip
        parts = {name: network.state_dict() for name, network in networks.items()}
        assert [len(held) for held in parts.values()] == [1680, 248, 196, 516, 1]
        sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
        assert sizes["denoiser"] == 2_567_463_684 and sizes["text"] == 123_060_480 and sizes["autoencoder"] == 83_653_863
        assert sizes["text_2"] + sizes["projection"] == 694_659_840
        single = to_ldm(parts, "sdxl")
        assert sum(n.startswith("model.diffusion_model.") for n in single) == 1680
        assert sum(n.startswith("conditioner.embedders.0.") for n in single) == 196
        assert sum(n.startswith("conditioner.embedders.1.") for n in single) == 12 * 32 + 4 + 1
        back, unknown = from_ldm(single, "sdxl")
        assert not unknown and {p: {n: v.shape for n, v in held.items()} for p, held in back.items()} == {
            p: {n: v.shape for n, v in held.items()} for p, held in parts.items()
        }


# ---------------------------------------------------------------------------------------------------------------------
# Networks and words


@pytest.mark.parametrize("kind", XL)
def test_networks_say_what_theirs_say(kind, twins):
    folder, single, unet, vae, text, text_2 = twins(kind)
    seed = secrets.randbelow(2**31)
    for path, reading in ((folder, Reading()), (single, Reading(configs=folder, words=folder / "tokenizer"))):
        found = find_published(path, reading=reading)
        recipe, made = found.built.recipe, {name: network.eval() for name, network in found.built.networks.items()}
        torch.manual_seed(seed)
        end = recipe.text.vocabulary - 1
        ids = torch.randint(0, end, (2, 77))
        ids[:, -9:] = end
        x, t = torch.randn(2, unet.config.in_channels, 8, 8), torch.rand(2) * 999
        pixels, z = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 8, 8)
        sizes = torch.rand(2, 6) * 2000
        with torch.inference_mode():
            for skip in (2, 3):
                read, other = made["text"].read(ids, skip, normed=False)[0], made["text_2"].read(ids, skip, normed=False)
                assert relative(read, text(ids, output_hidden_states=True).hidden_states[-skip]) < TOLERANCE, f"seed {seed}"
                second = text_2(ids, output_hidden_states=True)
                assert relative(other[0], second.hidden_states[-skip]) < TOLERANCE, f"seed {seed}"
                pooled = made["projection"](made["text_2"].pool(ids, other[1], end))
                assert relative(pooled, second.text_embeds) < TOLERANCE, f"seed {seed}"
            words = torch.cat([read, other[0]], -1)
            numbers = unet.add_time_proj(sizes.flatten()).reshape(2, -1)
            prepared = made["denoiser"].prepare(Condition(vectors=words, pooled=torch.cat([pooled, numbers], -1)))
            told = {"text_embeds": pooled, "time_ids": sizes}
            expected = unet(x, t, words, added_cond_kwargs=told).sample
            assert relative(made["denoiser"](x, t, prepared), expected) < TOLERANCE, f"seed {seed}"
            belief, theirs = made["autoencoder"].encode(pixels), vae.encode(pixels).latent_dist
            assert relative(belief.mean, theirs.mean) < TOLERANCE
            assert relative(made["autoencoder"].decode(z), vae.decode(z).sample) < TOLERANCE, f"seed {seed}"
        assert recipe.scale.scale == 0.13025


PROMPTS = ["a red cat, 2 dogs", "", "Dog's " * 60]


def test_words_mean_what_they_mean_to_diffusers(xl):
    pipe, painter = xl
    vectors, pooled = told_by(pipe, PROMPTS)
    told = painter.parts.condition(PROMPTS)
    assert told.mask is None and relative(told.vectors, vectors) < TOLERANCE and relative(told.pooled, pooled) < TOLERANCE


def read_of(painter, prompt, inversions=None, **settings):
    """The first reading of a prompt by a painter's encoder."""
    encoder = painter.parts.encoder
    plan = prompt_plan(prompt, "", PromptSettings(**settings), encoder.tokenizer, 1, None, inversions)
    (read,) = encode([plan], encoder, inversions)
    return read.positive[0][0]


@pytest.mark.parametrize(("skip", "theirs"), [(1, None), (2, None), (3, 1)])
def test_clip_skip_counts_from_the_last_layer_of_which_the_last_is_never_read(skip, theirs, xl):
    pipe, painter = xl
    vectors, pooled = told_by(pipe, PROMPTS[:1], theirs)
    read = read_of(painter, PROMPTS[0], clip_skip=skip)
    assert relative(read.vectors, vectors[0]) < TOLERANCE and relative(read.pooled, pooled[0]) < TOLERANCE


def test_long_prompts_are_chunks_through_both_towers_and_pooled_from_the_first(xl):
    pipe, painter = xl
    vectors, pooled = told_by(pipe, ["a red cat", "dog dog"])
    read = read_of(painter, "a red cat BREAK dog dog", dialect="a1111")
    assert relative(read.vectors, vectors.flatten(0, 1)) < TOLERANCE
    assert relative(read.pooled, pooled[0]) < TOLERANCE


@pytest.mark.parametrize("dialect", ["a1111", "comfyui"])
def test_weights_act_on_each_tower_by_itself(dialect, xl):
    pipe, painter = xl
    vectors, pooled = told_by(pipe, ["a red cat", ""])
    plain, blank = vectors.double()
    many = torch.ones(77, 1, dtype=torch.float64)
    many[2] = 1.4  # start, a, red
    expected = []
    for part in (slice(0, XL["xl"]["widths"][0]), slice(XL["xl"]["widths"][0], None)):
        if dialect == "comfyui":
            expected.append(blank[:, part] + many * (plain[:, part] - blank[:, part]))
        else:
            changed = plain[:, part] * many
            expected.append(changed * plain[:, part].mean() / changed.mean())
    assert abs(float(plain.mean())) > 1e-4, "a mean near 0 would make this loose"
    read = read_of(painter, "a (red:1.4) cat", dialect=dialect)
    assert relative(read.vectors.double(), torch.cat(expected, -1)) < 1e-3
    assert relative(read.pooled, pooled[0]) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Beside the words


def pixels(painter, prompt="a red cat", **more):
    knobs = {"steps": 2, **more.pop("knobs", {})}
    events = list(painter.paint([Request(prompt=prompt, seed=3, knobs=knobs, **more)]))
    assert isinstance(events[-1], Done), events[-1]
    return events[-1].artifact.pixels


class Listening:
    """A denoiser that keeps what it is told."""

    def __init__(self, denoise):
        self.denoise, self.can, self.told = denoise, denoise.can, []

    def prepare(self, condition):
        self.told.append(condition)
        return self.denoise.prepare(condition)

    def __call__(self, *given):
        return self.denoise(*given)


def heard(painter, prompt="a red cat", **more):
    """The conditions that the denoiser is told while painting."""
    before, painter.denoise = painter.denoise, Listening(painter.denoise)
    try:
        pixels(painter, prompt, **more)
        return painter.denoise.told
    finally:
        painter.denoise = before


def test_sizes_are_those_of_the_picture_of_each_pass_unless_said_otherwise(xl, twins):
    _, painter = xl
    unet, width = twins("xl")[2], XL["xl"]["size"]

    def numbers(*six):
        return unet.add_time_proj(torch.tensor(six, dtype=torch.float32)).flatten()

    first, second = heard(painter, size=(24, 40), knobs={"upscale": 2, "upscale_strength": 1})
    for condition, six in ((first, (40, 24, 0, 0, 40, 24)), (second, (80, 48, 0, 0, 80, 48))):
        for row in condition.pooled:  # of both branches of guidance
            assert relative(row[-6 * width :], numbers(*six)) < TOLERANCE
    said = {"original_size": "640x480", "crop": "7x11"}
    (told,) = heard(painter, "a (red:1.2) cat", size=(24, 40), knobs=said)
    assert relative(told.pooled[0, -6 * width :], numbers(480, 640, 11, 7, 40, 24)) < TOLERANCE
    again = told_sizes(painter.parts.recipe, DiffusionKnobs(original_size="640 x 480", crop="7x11"), (24, 40))
    assert torch.equal(again, told.pooled[0, -6 * width :])
    assert not (pixels(painter, knobs=said) == pixels(painter)).all()


@pytest.mark.parametrize("prompt", ["a red cat", "a (red:1.2) cat"])
@pytest.mark.parametrize(
    ("dialect", "knob", "silent"),
    [("a1111", "auto", True), ("comfyui", "auto", False), ("a1111", "encoded", False), ("comfyui", "zeros", True)],
)
def test_an_empty_negative_prompt_is_zeros_or_encoded(prompt, dialect, knob, silent, xl):
    pipe, painter = xl
    knobs = {"steps": 1, "dialect": dialect, "empty_negative": knob}
    words = XL["xl"]["pooled"]
    asked = [Request(prompt=prompt, negative=n, knobs=knobs) for n in ("", "dog")]
    before, painter.denoise = painter.denoise, Listening(painter.denoise)
    try:
        assert isinstance(list(painter.paint(asked))[-1], Done)
        (told,) = painter.denoise.told
    finally:
        painter.denoise = before
    empty, dog = told_by(pipe, ["", "dog"])
    for row, i in ((2, 0), (3, 1)):  # two prompts, then two negative ones
        vectors, pooled = (empty[i], dog[i]) if i or not silent else (0 * empty[0], 0 * dog[0])
        assert float((told.vectors[row] - vectors).abs().max()) < 1e-4
        assert float((told.pooled[row, :words] - pooled).abs().max()) < 1e-4
    assert told.pooled[2, words:].equal(told.pooled[0, words:]), "sizes are told all the same"


def test_a_folder_may_say_that_empty_negative_prompts_are_encoded(twins, tmp_path):
    folder, *_ = twins("xl_two")
    shutil.copytree(folder, tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    assert "empty_negative" not in find_published(tmp_path / "copy").card.knobs
    (tmp_path / "copy" / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    assert find_published(tmp_path / "copy").card.knobs["empty_negative"] == "encoded"


# ---------------------------------------------------------------------------------------------------------------------
# Painting


@pytest.mark.parametrize("kind", XL)
def test_twins_paint(kind, twins):
    folder, single, *_ = twins(kind)
    more = {"negative": "dog", "size": (24, 40)}
    picture = pixels(open_painter(folder), **more)
    assert picture.shape == (40, 24, 3) and picture.std() > 1
    again = open_painter(single, reading=Reading(configs=folder, words=folder / "tokenizer"))
    assert (pixels(again, **more) == picture).all()
    packed = pixels(open_painter(folder, backend="packed"), **more)
    assert abs(packed.astype(int) - picture).max() <= 1


@pytest.mark.parametrize("kind", XL)
@pytest.mark.parametrize("masked", [False, True])
def test_pictures_are_painted_over_and_under_a_mask(kind, masked, twins, tmp_path):
    painter = open_painter(twins(kind)[0])
    size, mask = (32, 24), np.zeros((24, 32), np.uint8)
    mask[8:16, 8:24] = 255
    picture = np.random.default_rng(secrets.randbelow(2**31)).integers(0, 256, (24, 32, 3), np.uint8)
    for name, drawn in (("picture", picture), ("mask", mask)):
        (tmp_path / f"{name}.png").write_bytes(png_bytes(drawn))
    held = enclosed(tmp_path / "mask.png") if masked else None
    made = pixels(painter, size=size, start=Start(picture=enclosed(tmp_path / "picture.png"), strength=0.6, mask=held))
    changed = (made != picture).any(-1)
    assert changed[8:16, 8:24].mean() > 0.9 and changed[mask == 0].any() != masked


def test_textual_inversions_go_to_both_towers(xl, tmp_path):
    """Theirs: the same vectors as embeddings of two tokens that the prompt names."""
    pipe, painter = xl
    widths = XL["xl"]["widths"]
    drawn = [torch.randn(2, width) for width in widths]
    save_file({"clip_l": drawn[0], "clip_g": drawn[1]}, tmp_path / "glow.safetensors")
    ids = pipe.tokenizer("x y", add_special_tokens=False).input_ids
    expected = []
    for tower, tokenizer, vectors in (
        (pipe.text_encoder, pipe.tokenizer, drawn[0]), (pipe.text_encoder_2, pipe.tokenizer_2, drawn[1]),
    ):  # fmt: skip
        table = tower.get_input_embeddings().weight
        before = table.data.clone()
        table.data[ids] = vectors
        told = tokenizer("red x y cat", padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            read = tower(told, output_hidden_states=True)
        expected.append(read.hidden_states[-2][0])
        table.data.copy_(before)
    painter.adapters.words = lambda: {"glow": tmp_path / "glow.safetensors"}
    found = painter.adapters.inversions(["red glow cat"])
    read = read_of(painter, "red glow cat", found, dialect="a1111")
    assert relative(read.vectors, torch.cat(expected, -1)) < TOLERANCE
    assert (pixels(painter, "red glow cat") != pixels(painter, "red cat")).any()
    for tensors in (
        {"clip_l": drawn[0]}, {"clip_g": drawn[1]}, {"clip_l": drawn[1], "clip_g": drawn[0]},
        {"clip_l": drawn[0], "clip_g": drawn[1][:1]},
    ):  # fmt: skip
        save_file(tensors, tmp_path / "glow.safetensors")
        (event,) = painter.paint([Request(prompt="red glow cat")])
        assert isinstance(event, Failed) and f"of width {widths[0]} and {widths[1]}" in event.reason
    painter.adapters.words = None


LORA = {  # part, our tensor -> kohya's name of its map (of a U-Net by LDM's names), diffusers'
    ("denoiser", "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"): (
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k",
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    ),
    ("denoiser", "mid_block.attentions.0.proj_in"): ("lora_unet_middle_block_1_proj_in", "unet.mid_block.attentions.0.proj_in"),
    ("text", "encoder.layers.0.self_attn.q_proj"): (
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    ),
    ("text_2", "encoder.layers.0.self_attn.q_proj"): (
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj",
    ),
    ("text_2", "encoder.layers.3.mlp.fc2"): (
        "lora_te2_text_model_encoder_layers_3_mlp_fc2", "text_encoder_2.text_model.encoder.layers.3.mlp.fc2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", ["kohya", "diffusers"])
def test_loras_change_both_towers_and_are_gone_when_not_called(spelling, xl, twins, tmp_path):
    _, painter = xl
    theirs = ours_of(*twins("xl")[2:])
    tensors, sums = {}, {}
    for (part, module), names in LORA.items():
        weight = theirs[part][module + ".weight"]
        down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
        name, slots = names[spelling != "kohya"], ("lora_down", "lora_up") if spelling == "kohya" else ("lora_A", "lora_B")
        tensors |= {f"{name}.{slots[0]}.weight": down, f"{name}.{slots[1]}.weight": up}
        sums[part, module + ".weight"] = weight + 0.5 * up @ down
    save_file(tensors, tmp_path / "warm.safetensors")
    painter.adapters.lora = lambda name: tmp_path / f"{name}.safetensors"
    plain, prompt = pixels(painter), "a red cat<lora:warm:0.5>"
    (settled,) = (painter.settle(Request(prompt=prompt))[0],)
    parts = painter.adapters.worn(painter._prompts(painter.parts, settled, [Request(prompt=prompt)]).calls).parts
    for part, network in parts.networks().items():
        for name, value in network.state_dict().items():
            expected = sums.get((part, name))
            assert torch.equal(value, theirs[part][name]) if expected is None else relative(value, expected) < TOLERANCE
    assert parts.encoder.second.state_dict()["encoder.layers.1.mlp.fc1.weight"].data_ptr() == (
        painter.parts.encoder.second.state_dict()["encoder.layers.1.mlp.fc1.weight"].data_ptr()
    ), "what nothing changes is shared"
    assert (pixels(painter, prompt) != plain).any() and (pixels(painter) == plain).all()
    (only,) = painted(painter, ("a red cat<lora:warm:te=0:unet=0.5>", 3), steps=2)
    assert (only.pixels != pixels(painter, prompt)).any()
    painter.adapters.lora = None


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit


def test_what_is_wrong_is_said_in_one_sentence(twins, tmp_path):
    folder, _, *theirs = twins("xl_two")
    flat = xl_single_file("xl_two", *theirs)
    refiner = {n.replace("embedders.1", "embedders.0"): v for n, v in flat.items() if "embedders.0" not in n}
    wide = "model.diffusion_model.label_emb.0.0.weight"
    projection = "conditioner.embedders.1.model.text_projection"
    reading = Reading(configs=folder, words=folder / "tokenizer")
    for words, tensors in (
        ("paints by itself; given .* the refiner of Stable Diffusion XL. Use the base model.", refiner),
        ("room for 28 numbers of the words and for 6 sizes; given one of width 125", flat | {wide: torch.ones(64, 125)}),
        ("a U-Net that reads words of width 40; given one of width 48",
         {n: torch.ones(len(v), 48) if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) else v for n, v in flat.items()}),
        ("with its second text encoder's projection; given", {n: v for n, v in flat.items() if n != projection}),
    ):  # fmt: skip
        save_file(tensors, tmp_path / "bad.safetensors")
        with pytest.raises(InputError, match=words):
            find_published(tmp_path / "bad.safetensors", reading=reading)
    shutil.copytree(folder, tmp_path / "copy")
    index = json.loads((folder / "model_index.json").read_text())
    gone = {"text_encoder": [None, None], "tokenizer": [None, None]}
    (tmp_path / "copy" / "model_index.json").write_text(json.dumps(index | gone))
    with pytest.raises(InputError, match="the refiner of Stable Diffusion XL"):
        find_published(tmp_path / "copy")
    (tmp_path / "copy" / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(tmp_path / "copy" / "tokenizer_2")
    shutil.copytree(folder / "words_2", tmp_path / "copy" / "tokenizer_2")
    symbols = json.loads((folder / "words_2" / "vocab.json").read_text())
    symbols["c"], symbols["d"] = symbols["d"], symbols["c"]
    (tmp_path / "copy" / "tokenizer_2" / "vocab.json").write_text(json.dumps(symbols))
    with pytest.raises(InputError, match="two text encoders of one vocabulary"):
        find_published(tmp_path / "copy")


def test_settings_of_sizes_are_for_models_that_are_told_of_them(tmp_path):
    write_twin(tmp_path / "twin", "two_levels", 1)
    painter = open_painter(tmp_path / "twin")
    for knobs in ({"original_size": "64x64"}, {"crop": "0x1"}):
        (event,) = painter.paint([Request(prompt="a", knobs=knobs)])
        assert isinstance(event, Failed) and "Stable Diffusion XL for original_size and crop" in event.reason
    for bad in ("64", "axb", "1x2x3", "-1x3", [64, 64]):
        with pytest.raises(InputError, match="original_size"):
            painter.settle(Request(prompt="a", knobs={"original_size": bad}))
