"""Published Stable Diffusion models, as tiny random twins that diffusers and transformers write and read on the spot: every
tensor in its place, networks that say the same, and pictures painted."""

import json
import logging
import secrets

import pytest
import torch
from safetensors.torch import load_file, save_file

from giverny.assembly import open_painter
from giverny.autoencoders.kl import KLAutoencoder, KLRecipe
from giverny.base.contracts import Condition, Done, Failed, Request
from giverny.base.errors import InputError
from giverny.checkpoints import keymaps
from giverny.checkpoints.architecture import denoiser_values, schedule_values
from giverny.checkpoints.model_files import is_published, read_published
from giverny.checkpoints.single_file import from_ldm, to_ldm
from giverny.denoisers.unet import UNet, UNetRecipe
from giverny.painters.diffusion.convert import checked, convert
from giverny.painters.diffusion.published import Reading, build, find_published
from giverny.text.clip import ClipText, ClipTextRecipe
from published_twins import UNETS, networks, openclip_names, single_file, unet_name, vae_name, vae_only, write_twin

TOLERANCE = 1e-5  # relative to the largest value, float32

pytestmark = pytest.mark.xdist_group("oracles")


@pytest.fixture(scope="module", autouse=True)
def quiet():
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """kind -> (folder, single file, U-Net, autoencoder, text tower), made when first asked for."""
    made = {}

    def twin(kind):
        if kind not in made:
            place, seed = tmp_path_factory.mktemp(kind), secrets.randbelow(2**31)
            print(f"{kind}: seed {seed}")
            theirs = write_twin(place / "folder", kind, seed)
            save_file(single_file(kind, *theirs), place / "one.safetensors")
            made[kind] = (place / "folder", place / "one.safetensors", *theirs)
        return made[kind]

    return twin


def relative(ours, theirs):
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())


def ours_of(unet, vae, text):
    strip = {n.removeprefix("text_model."): v for n, v in text.state_dict().items()}
    return {"denoiser": unet.state_dict(), "autoencoder": vae.state_dict(), "text": strip}


@pytest.mark.parametrize("kind", UNETS)
def test_folder_and_single_file_are_read_whole(kind, twins):
    folder, single, *theirs = twins(kind)
    assert is_published(folder) and is_published(single)
    for path in (folder, single):
        found = read_published(path)
        assert found.kind == ("sd2" if kind == "sd2" else "sd1") and not found.ignored
        assert found.task == ("inpainting" if kind == "inpainting" else "text to picture")
        for part, tensors in ours_of(*theirs).items():
            same(found.parts[part], tensors)


@pytest.mark.parametrize("kind", UNETS)
def test_the_layout_of_the_twins_is_what_diffusers_reads(kind, twins):
    """The referee: the single files of these tests, written from the rules, mean to diffusers what they mean to us."""
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

    folder, single, *theirs = twins(kind)
    made = StableDiffusionInpaintPipeline if kind == "inpainting" else StableDiffusionPipeline
    pipe = made.from_single_file(str(single), config=str(folder), local_files_only=True)
    for mine, network in zip(theirs, (pipe.unet, pipe.vae, pipe.text_encoder), strict=True):
        same({n: v for n, v in network.state_dict().items() if not n.endswith("position_ids")}, mine.state_dict())


@pytest.mark.parametrize("kind", UNETS)
def test_networks_say_what_theirs_say(kind, twins):
    folder, single, unet, vae, text = twins(kind)
    seed = secrets.randbelow(2**31)
    for path, reading in ((folder, Reading()), (single, Reading(configs=folder, words=folder / "tokenizer"))):
        found = find_published(path, reading=reading)
        made = {name: network.eval() for name, network in found.built.networks.items()}
        torch.manual_seed(seed)
        ids = torch.randint(0, found.built.recipe.text.vocabulary, (2, 77))
        x, t = torch.randn(2, unet.config.in_channels, 8, 8), torch.rand(2) * 999
        pixels, z = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 8, 8)
        with torch.inference_mode():
            words = text(ids).last_hidden_state
            assert relative(made["text"](ids), words) < TOLERANCE, f"seed {seed}"
            prepared = made["denoiser"].prepare(Condition(vectors=words))
            assert relative(made["denoiser"](x, t, prepared), unet(x, t, words).sample) < TOLERANCE, f"seed {seed}"
            belief, theirs = made["autoencoder"].encode(pixels), vae.encode(pixels).latent_dist
            assert relative(belief.mean, theirs.mean) < TOLERANCE and relative(belief.logvar, theirs.logvar) < TOLERANCE
            assert relative(made["autoencoder"].decode(z), vae.decode(z).sample) < TOLERANCE, f"seed {seed}"


@pytest.mark.parametrize("kind", UNETS)
def test_twins_paint(kind, twins):
    folder, single, *_ = twins(kind)
    request = Request(prompt="a red cat", negative="dog", seed=3, knobs={"steps": 2})

    def pixels(painter):
        events = list(painter.paint([request]))
        assert isinstance(events[-1], Done), events[-1]
        return events[-1].artifact

    first = open_painter(folder)
    picture = pixels(first)
    side = 32 if len(UNETS[kind]["channels"]) > 2 else 16
    assert picture.pixels.shape == (side, side, 3) and picture.pixels.std() > 1
    assert (
        picture.provenance.knobs["guidance"] == 7 and picture.provenance.fingerprint and picture.provenance.backend == "plain"
    )
    again = open_painter(single, reading=Reading(configs=folder, words=folder / "tokenizer"))
    assert (pixels(again).pixels == picture.pixels).all()
    packed = pixels(open_painter(folder, backend="packed")).pixels
    assert abs(packed.astype(int) - picture.pixels).max() <= 1


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_words_mean_what_they_mean_to_diffusers(kind, twins):
    from diffusers import StableDiffusionPipeline

    folder, *_ = twins(kind)
    prompts = ["a red cat, 2 dogs", "", "Dog's " * 60]
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    theirs, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
    told = open_painter(folder).parts.condition(prompts)
    assert told.mask is None and relative(told.vectors, theirs) < TOLERANCE


@pytest.mark.parametrize("kind", UNETS)
def test_conversion_there_and_back_is_the_identity(kind, twins, tmp_path):
    folder, _, *theirs = twins(kind)
    convert(folder, tmp_path / "one.safetensors")
    same(load_file(tmp_path / "one.safetensors"), single_file(kind, *theirs))
    convert(tmp_path / "one.safetensors", tmp_path / "two", Reading(words=folder / "tokenizer"))
    for part in ("unet", "vae", "text_encoder"):
        name = ("model" if part == "text_encoder" else "diffusion_pytorch_model") + ".safetensors"
        strip = lambda path: {n.removeprefix("text_model."): v for n, v in load_file(path).items()}  # noqa: E731
        same(strip(tmp_path / "two" / part / name), strip(folder / part / name))
    first, second = find_published(folder), find_published(tmp_path / "two")
    assert first.built.recipe == second.built.recipe and first.card.size == second.card.size
    assert first.tokenizer(["a red cat"]).ids.equal(second.tokenizer(["a red cat"]).ids)
    assert {p.name for p in tmp_path.iterdir()} == {"one.safetensors", "two"}, "nothing half-written stays"
    with pytest.raises(InputError, match="a place where nothing is"):
        convert(folder, tmp_path / "one.safetensors")


def test_what_convert_writes_without_configs_is_what_diffusers_opens(twins, tmp_path):
    from diffusers import StableDiffusionPipeline

    folder, single, unet, vae, text = twins("sd1")
    made = convert(single, tmp_path / "out", Reading(configs=folder, words=folder / "tokenizer"))
    assert made.tensors == sum(len(n.state_dict()) for n in (unet, vae, text))
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    for mine, network in zip((unet, vae, text), (pipe.unet, pipe.vae, pipe.text_encoder), strict=True):
        same(network.state_dict(), mine.state_dict())
    x, words = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 24)
    with torch.inference_mode():
        assert relative(pipe.unet(x, 7, words).sample, unet(x, 7, words).sample) == 0
    ids = pipe.tokenizer(["a red cat"], padding="max_length").input_ids
    assert ids == find_published(folder).tokenizer(["a red cat"]).ids.tolist()


def test_half_precision_stays_until_cast(twins, tmp_path):
    folder, *theirs = twins("sd1")
    half = {n: v.half() for n, v in single_file("sd1", *theirs[1:]).items()}
    save_file(half, tmp_path / "half.safetensors")
    found = read_published(tmp_path / "half.safetensors")
    assert {v.dtype for tensors in found.parts.values() for v in tensors.values()} == {torch.float16}
    convert(tmp_path / "half.safetensors", tmp_path / "again.safetensors", Reading(configs=folder))
    same(load_file(tmp_path / "again.safetensors"), half)
    painter = open_painter(tmp_path / "half.safetensors", reading=Reading(configs=folder, words=folder / "tokenizer"))
    assert next(painter.parts.network.parameters()).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------------
# Full size, without weights


def test_every_tensor_of_stable_diffusion_has_a_place_in_both_layouts():
    with torch.device("meta"):
        parts = {
            "denoiser": UNet(UNetRecipe()).state_dict(), "autoencoder": KLAutoencoder(KLRecipe()).state_dict(),
            "text": ClipText(ClipTextRecipe()).state_dict(),
        }  # fmt: skip
        assert {part: len(held) for part, held in parts.items()} == {"denoiser": 686, "autoencoder": 248, "text": 196}
        single = to_ldm(parts, "sd1")
        assert len(single) == 686 + 248 + 196
        for name, place in (
            ("denoiser", "model.diffusion_model."), ("autoencoder", "first_stage_model."), ("text", "cond_stage_model."),
        ):  # fmt: skip
            assert sum(n.startswith(place) for n in single) == len(parts[name])
        assert sum(n.startswith("first_stage_model.encoder.") for n in single) == 106
        assert sum(n.startswith("first_stage_model.decoder.") for n in single) == 138
        back, unknown = from_ldm(single, "sd1")
        assert not unknown and {p: {n: v.shape for n, v in held.items()} for p, held in back.items()} == {
            p: {n: v.shape for n, v in held.items()} for p, held in parts.items()
        }
        for name in parts["denoiser"]:
            assert "model.diffusion_model." + unet_name(name, 2, (1, 1, 1, 0)) in single
        for name in parts["autoencoder"]:
            assert "first_stage_model." + vae_name(name, 4) in single


def test_full_size_recipes_come_out_of_the_shapes():
    with torch.device("meta"):
        for recipe, kind in (
            (UNetRecipe(), "sd1"),
            (UNetRecipe(in_channels=9), "sd1"),
            (UNetRecipe(heads=None, head_width=64, context_width=1024, linear_projection=True), "sd2"),
            (
                UNetRecipe(
                    channels=(320, 640, 1280), attention=(False, True, True), depth=(1, 2, 10), heads=None, head_width=64,
                    context_width=2048, linear_projection=True, conditioning="both", pooled_width=2816,
                ),
                "sdxl",
            ),
        ):  # fmt: skip
            network = UNet(recipe)
            tensors = network.state_dict()
            found = UNetRecipe(**denoiser_values(tensors, {}, kind))
            assert found.model_copy(update={"time_width": None}) == recipe
            modules = keymaps.denoiser_modules(keymaps.levels_in_ours(tensors))
            named = {keymaps.moved(n, modules): v for n, v in tensors.items()}
            assert None not in named and len(named) == len(tensors)
            assert keymaps.levels_in_ldm(named) == keymaps.levels_in_ours(tensors)
        assert sum(p.numel() for p in network.parameters()) == 2_567_463_684, "SDXL's U-Net is carried as it is"


def test_sdxl_unet_equals_diffusers():
    from diffusers import UNet2DConditionModel

    config = dict(
        block_out_channels=(32, 64), layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4),
        cross_attention_dim=24, use_linear_projection=True, norm_num_groups=8, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=10 + 6 * 8,
    )  # fmt: skip
    theirs = UNet2DConditionModel(**config).eval()
    tensors = {n.replace("add_embedding.", "class_embedding."): v for n, v in theirs.state_dict().items()}
    ours = UNet(UNetRecipe(**denoiser_values(tensors, {**theirs.config}, "sdxl"))).eval()
    ours.load_state_dict(tensors)
    x, words, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24), torch.randn(2, 10)
    ids = torch.tensor([[64.0, 48, 0, 0, 64, 48], [32, 32, 1, 2, 32, 32]])
    with torch.inference_mode():
        expected = theirs(x, 9, words, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample
        sizes = theirs.add_time_proj(ids.flatten()).reshape(2, -1)
        told = Condition(vectors=words, pooled=torch.cat([pooled, sizes], -1))
        assert relative(ours(x, torch.tensor([9.0, 9.0]), ours.prepare(told)), expected) < TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# What a model means


def test_velocity_is_told_by_config_by_yaml_or_found_out(twins, tmp_path):
    folder, _, *theirs = twins("sd2")
    assert find_published(folder).built.recipe.prediction == "v"
    flat = single_file("sd2", *theirs)
    bare = tmp_path / "bare.safetensors"
    (tmp_path / "configs").mkdir()
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / "configs" / part).mkdir()
        (tmp_path / "configs" / part / "config.json").write_text((folder / part / "config.json").read_text())
    bias = "model.diffusion_model.out.2.bias"
    asked = lambda **more: build(read_published(bare, configs=tmp_path / "configs"), Reading(**more)).recipe.prediction  # noqa: E731
    for level, expected in ((-50.0, "v"), (50.0, "epsilon")):  # what it says of a flat picture is far below, or is not
        save_file(flat | {bias: torch.full((4,), level)}, bare)
        assert asked() == expected
    assert asked(prediction="sample") == "sample"
    bare.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert asked() == "v"
    save_file(flat, bare, {"modelspec.prediction_type": "epsilon"})
    assert asked() == "epsilon"


def test_schedules_of_folders():
    assert schedule_values({"beta_schedule": "squaredcos_cap_v2"})["kind"] == "cosine"
    assert schedule_values({"rescale_betas_zero_snr": True})["zero_terminal_snr"]
    assert schedule_values({})["beta_end"] == 0.012
    with pytest.raises(InputError, match="did you mean 'linear'"):
        schedule_values({"beta_schedule": "linaer"})


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit


def test_what_is_wrong_is_said_in_one_sentence(twins, tmp_path):
    folder, single, *theirs = twins("sd1")
    flat = single_file("sd1", *theirs)
    reading = Reading(configs=folder, words=folder / "tokenizer")
    first = "model.diffusion_model.input_blocks.2.0.in_layers.2.weight"
    changed = {
        "short": {n: v for n, v in flat.items() if n != first},
        "wide": flat | {first: torch.ones(16, 17, 3, 3)},
        "more": flat | {"model.diffusion_model.adapter.weight": torch.ones(1), "strange.weight": torch.ones(1)},
        "no text": {n: v for n, v in flat.items() if not n.startswith("cond_stage_model.")},
        "no vae": {n: v for n, v in flat.items() if not n.startswith("first_stage_model.")},
        "lora": {"lora_unet_down_blocks_0.lora_down.weight": torch.ones(1, 1)},
        "control": {"control_model.input_blocks.0.0.weight": torch.ones(1)},
    }
    for words, tensors in (
        ("tensors that fit the denoiser; given 1 missing, 0 unknown", "short"),
        ("1 of another shape", "wide"),
        (r"no known meaning: 2 \(denoiser: adapter.weight, strange.weight\)", "more"),
        ("its text encoder; given .* with autoencoder, denoiser alone|its text encoder; given .* alone", "no text"),
        ("its autoencoder .VAE.; .* alone. Use the whole model. Or give one with --vae", "no vae"),
        ("a LoRA, which changes a model", "lora"),
        ("a ControlNet", "control"),
    ):
        save_file(changed[tensors], tmp_path / "bad.safetensors")
        with pytest.raises(InputError, match=words):
            find_published(tmp_path / "bad.safetensors", reading=reading)
    (tmp_path / "cut.safetensors").write_bytes(single.read_bytes()[: single.stat().st_size // 2])
    with pytest.raises(InputError, match="a readable safetensors file"):
        find_published(tmp_path / "cut.safetensors", reading=reading)
    with pytest.raises(InputError, match=r"averaged weights \(EMA\).* lacks"):
        find_published(single, reading=reading.model_copy(update={"ema": True}))
    with pytest.raises(InputError, match="divisible by groups = 32"):
        find_published(single, reading=Reading(words=folder / "tokenizer"))  # 32 groups do not fit 16 channels
    painter = open_painter(folder)
    events = list(painter.paint([Request(prompt="a", size=(30, 32))]))
    assert isinstance(events[-1], Failed) and "divisible by 4" in events[-1].reason


def test_departures_that_a_config_asks_for_are_refused(twins, tmp_path):
    import shutil

    folder, *_ = twins("two_levels")
    for part, change, words in (
        ("unet", {"time_cond_proj_dim": 256}, "U-Net with time_cond_proj_dim = None; given 256"),
        ("unet", {"attention_head_dim": [5, 5, 5]}, "one whole number a level"),
        ("unet", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ("vae", {"use_quant_conv": False}, "autoencoder with use_quant_conv = True"),
        ("text_encoder", {"hidden_act": "relu"}, "activation of a text encoder"),
        ("text_encoder", {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        config = json.loads((copy / part / "config.json").read_text())
        (copy / part / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=words):
            find_published(copy)
    index = json.loads((folder / "model_index.json").read_text())
    for change, words in (
        ({"unet": ["diffusers", "UNet2DModel"]}, "unet of class UNet2DConditionModel; given UNet2DModel"),
        ({"prior": ["diffusers", "PriorTransformer"]}, "with prior"),
        ({"vae": [None, None]}, "the component vae; given .*without it"),
    ):
        (copy / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(InputError, match=words):
            find_published(copy)
    shutil.copy(folder / "model_index.json", copy / "model_index.json")
    shutil.rmtree(copy / "vae")
    with pytest.raises(InputError, match=r"the component vae; given .* without that folder"):
        find_published(copy)


def test_other_autoencoders_take_the_place_of_a_models_own(twins, tmp_path):
    folder, *_ = twins("sd1")
    _, other, _, _ = networks("sd1", secrets.randbelow(2**31))
    save_file(vae_only(other), tmp_path / "vae.safetensors")
    other.save_pretrained(tmp_path / "vae")
    z = torch.randn(1, 4, 8, 8)
    for path in (tmp_path / "vae", tmp_path / "vae.safetensors"):
        reading = Reading(autoencoder=path)
        if path.is_file():  # 32 groups do not fit, and a file says nothing of that
            with pytest.raises(InputError, match="groups = 32"):
                find_published(folder, reading=reading)
            continue
        painter = open_painter(folder, reading=reading)
        assert painter.fingerprint != open_painter(folder).fingerprint
        with torch.inference_mode():
            assert relative(painter.codec.decode(z), other.decode(z / 0.18215).sample) < TOLERANCE
    checked_alone, told, recipe = checked(read_published(tmp_path / "vae"), Reading())
    assert recipe is None and told["autoencoder"]["norm_num_groups"] == 4 and len(checked_alone["autoencoder"])
    convert(tmp_path / "vae", tmp_path / "again.safetensors")
    same(load_file(tmp_path / "again.safetensors"), load_file(tmp_path / "vae.safetensors"))
    convert(tmp_path / "again.safetensors", tmp_path / "again")
    same(load_file(tmp_path / "again/diffusion_pytorch_model.safetensors"), other.state_dict())
    assert open_painter(folder, reading=Reading(autoencoder=tmp_path / "again.safetensors")).parts.step == 4


def test_openclip_names_of_the_tests_are_ours():
    _, _, text, _ = networks("sd2", 1)
    ours = {n.removeprefix("text_model."): v for n, v in text.state_dict().items()}
    same(keymaps.text_to_openclip(ours), openclip_names(text.state_dict()))
