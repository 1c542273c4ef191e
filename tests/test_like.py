"""Other programs' words in picture files, what becomes of settings here, and the commands that use both."""

import json
from typing import Literal

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydantic import Field

from giverny.assembly.matching import match_model
from giverny.base.errors import InputError
from giverny.base.images import png_bytes
from giverny.base.infotext import Parameters
from giverny.base.knobs import Knobs
from giverny.base.picture import Picture, Request, Toward, Variation
from giverny.checkpoints.comfy import from_comfy
from giverny.checkpoints.foreign import from_fooocus, from_invokeai, from_novelai, from_old_invokeai
from giverny.checkpoints.infotext import parse_infotext
from giverny.checkpoints.picture_file import read_parameters
from giverny.cli import cli
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.painters.diffusion.painter import DiffusionPainter
from giverny.pipelines.like import like, like_ours
from test_infotext import PLAIN, SCANNED, provenance, scanned

CAN = DiffusionPainter.can
PIXELS = np.zeros((16, 16, 3), np.uint8)


def taken(line, knobs=DiffusionKnobs, **more):
    return like(parse_infotext(f"a\n{line}"), knobs, CAN, **more)


def told(notes):
    return {note.key: note.problem for note in notes}


# -- other programs ---------------------------------------------------------------------------------------------------


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph():
    """The usual graph of two passes, with a LoRA, clip skip and a ControlNet."""
    sampler = dict(cfg=8.0, sampler_name="dpmpp_2m", scheduler="karras", model=["10", 0], positive=["9", 0], negative=["9", 1])
    return {
        "12": node("KSampler", **sampler, seed=1, steps=10, denoise=0.5, latent_image=["13", 0]),
        "13": node("LatentUpscale", samples=["3", 0], width=1024, height=1536),
        "3": node("KSampler", **sampler, seed=["20", 0], steps=20, denoise=1, latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name="SD/v1-5-pruned-emaonly.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a bottle", clip=["11", 0]),
        "7": node("CLIPTextEncode", text=["21", 0], clip=["11", 0]),
        "8": node("VAELoader", vae_name="vae-ft-mse.safetensors"),
        "9": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], image=["12", 0]),
        "10": node("LoraLoader", lora_name="ink.safetensors", strength_model=0.8, model=["4", 0], clip=["4", 1]),
        "11": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["10", 1]),
        "20": node("PrimitiveInt", value=156680208700286),
        "21": node("String", string="text, watermark"),
    }


def test_a_comfyui_graph_is_followed_from_its_first_pass():
    found = from_comfy(graph())
    assert (found.prompt, found.negative, found.dialect) == ("a bottle", "text, watermark", "comfyui")
    assert found.settings == {
        "Steps": "20", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": "8", "Seed": "156680208700286",
        "Size": "512x768", "Model": "SD/v1-5-pruned-emaonly.safetensors", "VAE": "vae-ft-mse.safetensors", "Clip skip": "2",
        "RNG": "CPU", "Loras": "ink.safetensors: 0.8",
    }  # fmt: skip
    assert "1 more sampler" in found.notes[0].problem


def test_a_comfyui_graph_of_separate_parts():
    parts = {
        "1": node("Custom", noise=["2", 0], guider=["3", 0], sampler=["4", 0], sigmas=["5", 0], latent_image=["6", 0]),
        "2": node("RandomNoise", noise_seed=7),
        "3": node("CFGGuider", cfg=3.5, model=["7", 0], positive=["8", 0], negative=["9", 0]),
        "4": node("KSamplerSelect", sampler_name="euler_ancestral"),
        "5": node("BasicScheduler", scheduler="sgm_uniform", steps=12, denoise=1.0, model=["7", 0]),
        "6": node("EmptyLatentImage", width=64, height=64),
        "7": node("CheckpointLoaderSimple", ckpt_name="m.safetensors"),
        "8": node("CLIPTextEncode", text="a cat"),
        "9": node("ConditioningZeroOut", conditioning=["8", 0]),
    }  # fmt: skip
    found = from_comfy(parts)
    assert (found.prompt, found.negative) == ("a cat", "")
    assert {k: found.settings[k] for k in ("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Model")} == {
        "Steps": "12", "Sampler": "Euler a", "Schedule type": "SGM Uniform", "CFG scale": "3.5", "Seed": "7",
        "Model": "m.safetensors",
    }  # fmt: skip


def test_a_drawn_comfyui_graph_is_read_where_the_other_is_missing(tmp_path):
    wires = (("model", 1), ("positive", 2), ("negative", 3), ("latent_image", 4))
    drawn = {
        "nodes": [
            {"id": 3, "type": "KSampler", "widgets_values": [5, "randomize", 20, 8, "euler", "normal", 1],
             "inputs": [{"name": name, "link": link} for name, link in wires]},
            {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["m.ckpt"]},
            {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 256, 1]},
            {"id": 6, "type": "CLIPTextEncode", "widgets_values": ["a cat"], "inputs": [{"name": "clip", "link": None}]},
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["a dog"]},
        ],
        "links": [[1, 4, 0, 3, 0, "MODEL"], [2, 6, 0, 3, 1, "C"], [3, 7, 0, 3, 2, "C"], [4, 5, 0, 3, 3, "LATENT"]],
    }  # fmt: skip
    (tmp_path / "a.png").write_bytes(png_bytes(PIXELS, {"workflow": json.dumps(drawn)}))
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "workflow:" + json.dumps(drawn), "prompt:" + json.dumps(graph())
    Image.fromarray(PIXELS).save(tmp_path / "a.webp", exif=exif)
    found = read_parameters(tmp_path / "a.png")
    assert (found.prompt, found.negative, found.size, found.settings["Seed"]) == ("a cat", "a dog", (512, 256), "5")
    assert read_parameters(tmp_path / "a.webp").prompt == "a bottle"


def test_invokeai_of_both_kinds():
    new = {
        "app_version": "3.3.0", "positive_prompt": "landscape", "negative_prompt": "low quality", "width": 768, "height": 432,
        "seed": 356120443, "rand_device": "cpu", "cfg_scale": 7.5, "steps": 50, "scheduler": "dpmpp_2m_sde_k", "clip_skip": 1,
        "model": {"model_name": "amixx", "base_model": "sd-1"}, "vae": {"model_name": "sd-vae-ft-mse"},
        "loras": [{"lora": {"model_name": "ink"}, "weight": 0.75}],
    }  # fmt: skip
    found = from_invokeai(new)
    assert (found.prompt, found.negative, found.size) == ("landscape", "low quality", (768, 432))
    assert found.settings["Sampler"] == "DPM++ 2M SDE" and found.settings["Schedule type"] == "Karras"
    assert found.settings["Clip skip"] == "2" and found.settings["RNG"] == "CPU" and found.settings["Loras"] == "ink: 0.75"
    old = {
        "model_weights": "sd-1.4", "model_hash": "fe4efff1e174c627256e44ec2991ba279b3816e364b49f9be2abc0b3ff3f8556",
        "app_version": "2.2.4", "image": {"prompt": [{"prompt": "a cat [ugly, blurry] [grey]", "weight": 1}], "steps": 30,
        "cfg_scale": 7.0, "seed": 3, "width": 512, "height": 512, "sampler": "k_euler_a"},
    }  # fmt: skip
    found = from_old_invokeai(old)
    assert (found.prompt, found.negative, found.settings["Sampler"]) == ("a cat", "ugly, blurry, grey", "Euler a")
    assert found.settings["Model hash"] == "fe4efff1e1" and found.settings["CFG scale"] == "7"


def test_novelai_and_fooocus(tmp_path):
    comment = {"steps": 28, "sampler": "k_euler_ancestral", "seed": 9, "scale": 11.0, "uc": "lowres", "strength": 0.7}
    words = {"Software": "NovelAI", "Description": "a girl", "Comment": json.dumps(comment)}
    found = from_novelai(words, (512, 768))
    assert (found.prompt, found.negative, found.size) == ("a girl", "lowres", (512, 768))
    assert found.settings["Sampler"] == "Euler a" and found.settings["ENSD"] == "31337" and found.settings["Clip skip"] == "2"
    own = {
        "prompt": "a cat", "negative_prompt": "dog", "full_prompt": ["a cat, cinematic", "sharp"], "steps": 30,
        "resolution": "(1152, 896)", "guidance_scale": 4, "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "77",
        "base_model": "juggernautXL", "base_model_hash": "aeb7e9e689", "version": "Fooocus v2.4.1", "refiner_model": "None",
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x9286], exif[0x927C] = json.dumps(own), "fooocus"
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.png").write_bytes(png_bytes(PIXELS, {"parameters": json.dumps(own), "fooocus_scheme": "fooocus"}))
    for name in ("a.jpg", "a.png"):
        found = read_parameters(tmp_path / name)
        assert (found.dialect, found.prompt, found.size) == ("fooocus", "a cat", (1152, 896))
        assert (
            found.settings["Sampler"] == "DPM++ 2M SDE" and found.settings["Seed"] == "77" and "Refiner" not in found.settings
        )
        assert "a cat, cinematic, sharp" in found.notes[0].suggestion


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["3", "4", "5", "6", "7", "9", "10", "11", "12"])
VALUES = JSONS | st.tuples(NAMES, st.integers(0, 1)).map(list)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted({k for n in graph().values() for k in n["inputs"]})), VALUES)),
    JSONS,
)
def test_no_graph_and_no_json_is_too_odd(changes, value):
    odd = graph()
    for name, (key, new) in changes.items():
        odd[name]["inputs"][key] = new
    for read in (from_comfy, from_invokeai, from_old_invokeai, from_fooocus):
        for given_ in (odd, value, {"image": value, "prompt": value, "positive_prompt": value, "model": value, "loras": value}):
            found = read(given_)
            assert found is None or like(found, DiffusionKnobs, CAN).dialect == found.dialect
    from_comfy(
        value, {"nodes": [value, {"id": 1, "type": "KSampler", "inputs": value, "widgets_values": value}], "links": value}
    )
    from_novelai({"Software": "NovelAI", "Comment": json.dumps(value)}, (8, 8))


# -- settings become knobs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SCANNED[:5], ids=lambda case: str(case[3]))
def test_the_texts_of_the_source_become_exact_requests(case):
    words, _, _, seed, model = case
    made = like(parse_infotext(scanned(*case)), DiffusionKnobs, CAN)
    wanted = {"steps": 70, "sampler": "dpmpp_2m", "spacing": "karras", "guidance": 7.0}
    # What the painter has no knob for is said, not passed over; a knob that is there is set.
    for knob, value in (
        ("noise", "nv"),
        ("dialect", "a1111"),
        ("seeding", "a1111"),
        ("vae", "vae-ft-mse-840000-ema-pruned.ckpt"),
    ):
        if knob in DiffusionKnobs.model_fields and (knob != "vae" or model != PLAIN):
            wanted[knob] = value
    assert made.request() == Request(prompt=words[0], negative=words[1], seed=seed, size=(512, 512), knobs=wanted)
    lacking = {"RNG"} - ({"RNG"} if "noise" in wanted else set()) | (
        {"VAE"} if model != PLAIN and "vae" not in wanted else set()
    )
    assert set(told(made.notes)) - {""} == lacking


def test_a_painter_that_learns_a_knob_follows_its_setting():
    class More(DiffusionKnobs):
        s_min_uncond: float = 0
        strength: float = Field(0.75, ge=0, le=1)

    line = "Steps: 5, Sampler: Euler a, Seed: 1, Clip skip: 2, NGMS: 0.5, Denoising strength: 0.4, Own key: 3"
    without, having = taken(line), taken(line, More)
    assert set(told(without.notes)) >= {"NGMS", "Denoising strength", "Own key"}
    assert not {"Clip skip", "RNG"} & set(told(without.notes))
    assert having.knobs | {"spacing": "normal"} == {
        "steps": 5, "sampler": "euler_a", "spacing": "normal", "clip_skip": 2, "s_min_uncond": 0.5, "noise": "nv",
        "strength": 0.4, "dialect": "a1111", "seeding": "a1111",
    }  # fmt: skip
    assert not {"Clip skip", "NGMS", "RNG", "Denoising strength"} & set(told(having.notes)) and "Own key" in told(having.notes)
    assert taken(f"{line}, RNG: CPU", More).knobs["noise"] == "cpu" and "RNG" not in told(taken(f"{line}, RNG: CPU").notes)
    assert "beyond" in told(taken("Steps: 5, Clip skip: 400, Seed: 1", More).notes)["Clip skip"]

    class Other(Knobs):
        needed: int

    assert taken(line, Other).knobs == {} and "Sampler" in told(taken(line, Other).notes)


@pytest.mark.parametrize(
    ("line", "sampler", "spacing"),
    [
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M", "dpmpp_2m", "normal"),  # before 1.9
        ("Sampler: DPM++ 2M, Version: v1.8.0", "dpmpp_2m", "normal"),
        ("Sampler: DPM++ 2M, Version: v1.9.3", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M, Version: f2.0.1v1.10.1-previous-1", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic, Version: v1.10.1", "dpmpp_2m", "karras"),
        ("Sampler: DPM++ 2M, Schedule type: Uniform, Version: v1.10.1", "dpmpp_2m", "normal"),
        ("Sampler: Euler a, Schedule type: Automatic, Version: v1.9.3", "euler_a", "normal"),
        ("Sampler: Euler, Schedule type: karras", "euler", "karras"),
        ("Sampler: Euler, Schedule type: DDIM", "euler", "ddim"),
        ("Sampler: Heun, Schedule type: Trailing, Version: giverny 0.1", "heun", "trailing"),
    ],
)
def test_sampler_and_schedule_mean_what_they_meant_in_their_version(line, sampler, spacing):
    made = taken(f"Steps: 5, {line}, Seed: 1")
    assert (made.knobs["sampler"], made.knobs["spacing"]) == (sampler, spacing)


@pytest.mark.parametrize(
    ("more", "dialect", "old"),
    [("Version: v1.8.0", "a1111", None), ("Version: v1.5.1", "a1111", True), ("Model hash: 45dee52b", "a1111", True),
     ("Foo: 1", "a1111", None), ("Version: v1.10.1, Old prompt editing timelines: True", "a1111", True),
     ("Version: giverny 0.1", None, None)],
)  # fmt: skip
def test_brackets_are_those_of_the_program_that_wrote_them(more, dialect, old):
    class Reads(Knobs):
        dialect: Literal["plain", "a1111", "a1111-old", "comfyui"] = "plain"
        old_timelines: bool = False

    class Cannot(Knobs):
        steps: int = 1

    text = f"a (b:1.2)\nSteps: 5, Sampler: Euler, Seed: 1, {more}"
    assert like(parse_infotext(text), Reads).knobs.get("dialect") == dialect
    edited = like(parse_infotext(text.replace("(b:1.2)", "[b:1]")), Reads).knobs
    assert (edited.get("dialect"), edited.get("old_timelines")) == (dialect, old)
    assert like(from_comfy(graph()), Reads).knobs["dialect"] == "comfyui"
    said = [note.problem for note in like(parse_infotext(text), Cannot).notes]
    assert any("brackets" in problem for problem in said) == (dialect is not None)
    plain = [note.problem for note in like(parse_infotext(text.replace("(b:1.2)", "b")), Cannot).notes]
    assert not any("brackets" in problem for problem in plain)


def test_samplers_and_numbers_that_are_not_here_are_said():
    made = taken("Steps: many, Sampler: DPM eager, CFG scale: 99, Seed: 99999999999999999999, Size: big, Hires upscale: 0.5")
    assert (
        made.knobs == {"dialect": "a1111", "noise": "nv", "seeding": "a1111"}
        and made.seed is None
        and made.size is None
        and made.request(7).seed == 7
    )
    assert {"Steps", "Sampler", "CFG scale", "Seed", "Size", "Hires upscale"} <= set(told(made.notes))


def test_the_second_pass():
    made = taken(
        "Steps: 8, Seed: 1, Size: 64x96, Denoising strength: 0.4, Hires upscale: 1.5, Hires upscaler: Latent (nearest)"
    )
    assert {k: made.knobs[k] for k in ("upscale", "upscale_strength", "upscale_in")} == {
        "upscale": 1.5, "upscale_strength": 0.4, "upscale_in": "latents",
    }  # fmt: skip
    assert made.size == (64, 96) and "Denoising strength" not in told(made.notes)
    made = taken(
        "Steps: 8, Seed: 1, Size: 64x96, Denoising strength: 0.4, Hires resize: 128x192, Hires upscaler: 4x-UltraSharp"
    )
    assert made.knobs["upscale"] == 2 and made.knobs["upscale_in"] == "pixels" and "Hires upscaler" in told(made.notes)
    made = taken("Steps: 8, Seed: 1, Size: 64x96, Hires resize: 128x128, Hires upscaler: Latent")
    assert "upscale" not in made.knobs and "Hires resize" in told(made.notes)
    # up to 1.4 the size was the final one
    made = taken("Steps: 8, Seed: 1, Size: 1024x1536, Denoising strength: 0.7, First pass size: 512x768")
    assert made.size == (512, 768) and made.knobs["upscale"] == 2
    assert taken("Steps: 8, Seed: 1, Size: 1024x1536, First pass size: 0x0").size == (448, 640)
    taken("Steps: 8, Seed: 1, First pass size: 0x0")


def test_ways_to_other_prompts_and_seeds():
    line = 'Steps: 8, Seed: 1, Variation seed: 5, Variation seed strength: 0.25, Toward: "b, c", Toward share: 0.5'
    made = taken(line)
    assert made.variation == Variation(seed=5, strength=0.25) and made.toward == Toward(prompt="b, c", share=0.5)
    assert "Variation seed" not in told(made.notes) and made.knobs["seeding"] == "a1111"

    class Otherwise(Knobs):
        steps: int = 1

    assert "column" in told(taken(line, Otherwise).notes)["Variation seed"]
    assert "Variation seed" not in told(taken(f"{line}, Version: giverny 0.1.0").notes)
    cannot = like(parse_infotext(f"a\n{line}"), DiffusionKnobs)
    assert cannot.variation is None and cannot.toward is None and {"Variation seed", "Toward"} <= set(told(cannot.notes))
    assert taken("Steps: 8, Seed: 1, Variation seed: 5, Variation seed strength: 3").variation is None


def test_a_picture_of_ours_is_taken_whole():
    knobs = {"steps": 3, "guidance_rescale": 0.5, "unheard_of": 1}
    request = {"prompt": "a", "negative": "b", "seed": 5, "size": (16, 16), "variation": Variation(seed=2, strength=0.5)}
    made = like_ours(provenance(knobs, **request), DiffusionKnobs, CAN)
    assert made.request() == Request(**request, knobs={"steps": 3, "guidance_rescale": 0.5})
    assert [note.key for note in made.notes] == ["unheard_of"]
    assert like_ours(provenance(knobs, **request), DiffusionKnobs).variation is None


# -- models and commands ----------------------------------------------------------------------------------------------


def run(*args, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert code in (None, result.exit_code), result.output
    return result.output


def events(*args, code=0):
    return [json.loads(line) for line in run(*args, "--json", code=code).splitlines()]


@pytest.fixture
def tiny(tiny_runs):
    return tiny_runs["diffusion"]


def test_a_model_is_found_by_hash_or_name(tiny):
    from giverny.checkpoints.native import read_card

    known = {"Some-Name": tiny / "model"}
    card = read_card(tiny / "model")
    for whole in (card.fingerprint, card.files["weights.safetensors"]):
        found = match_model(Parameters(settings={"Model hash": whole[:10].upper(), "Model": "other"}), known)
        assert found == ("Some-Name", "hash")
    assert match_model(Parameters(settings={"Model": "SD\\some-name.safetensors", "Model hash": "0" * 10}), known).by == "name"
    assert match_model(Parameters(settings={"Model hash": card.fingerprint[:8]}), known) is None  # of another kind
    assert match_model(Parameters(settings={}), known) is None


def foreign(path, line, text="a red circle"):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", f"{text}\nNegative prompt: grey\n{line}")
    Image.fromarray(PIXELS).save(path, pnginfo=chunks)
    return path


LINE = "Steps: 3, Sampler: DPM++ 2M Karras, CFG scale: 2, Seed: 5, Size: 16x16, NGMS: 1, Model hash: 6ce0161689, Model: v1-5"


def test_read_prints_a_table_json_or_the_text(tmp_path):
    file = foreign(tmp_path / "a.png", LINE)
    said = run("read", file)
    assert "a red circle" in said and "guidance = 2" in said and "note: NGMS" in said
    (told_,) = events("read", file)
    assert told_["dialect"] == "a1111" and told_["knobs"]["spacing"] == "karras" and told_["settings"]["Seed"] == "5"
    assert run("read", "--infotext", file).strip() == f"a red circle\nNegative prompt: grey\n{LINE}"
    Image.fromarray(PIXELS).save(tmp_path / "b.png")
    assert "says nothing" in run("read", tmp_path / "b.png", code=2)
    ours = tmp_path / "c.png"
    Picture(PIXELS, provenance({"steps": 3, "guidance_rescale": 0.5}, prompt="a")).save(ours)
    assert events("read", ours)[0]["knobs"] == {"steps": 3, "guidance_rescale": 0.5} and "guidance_rescale" in run("read", ours)


def test_paint_like_takes_the_settings_and_flags_win(tiny, tmp_path):
    from giverny.base.picture import read_provenance

    file = foreign(tmp_path / "a.png", LINE)
    assert "v1-5 6ce0161689" in run("paint", "--like", file, "-o", tmp_path / "x", code=2)
    assert "--like" in run("paint", "-m", tiny, code=2)
    said = events("paint", "--like", file, "-m", tiny, "-o", tmp_path / "out")
    made = read_provenance(tmp_path / "out" / "00000.png")
    assert (made.request.prompt, made.request.negative, made.request.seed) == ("a red circle", "grey", 5)
    assert (made.request.size, made.knobs["steps"], made.knobs["spacing"]) == ((16, 16), 3, "karras")
    assert {note["key"] for note in said[0]["notes"]} >= {"NGMS"}
    flags = ("a ring", "--negative", "", "--seed", 8, "--steps", 2, "--size", "24x16")
    run("paint", "--like", file, "-m", tiny, "-o", tmp_path / "out", *flags)
    made = read_provenance(tmp_path / "out" / "00001.png")
    assert (made.request.prompt, made.request.negative, made.request.seed) == ("a ring", "", 8)
    assert (made.request.size, made.knobs["steps"], made.knobs["guidance"]) == ((24, 16), 2, 2.0)
    run("paint", "--like", tmp_path / "out" / "00001.png", "-m", tiny, "-o", tmp_path / "again")
    same = [np.asarray(Image.open(tmp_path / folder)) for folder in ("out/00001.png", "again/00000.png")]
    assert (same[0] == same[1]).all()


def test_reproduce_repaints_what_others_painted_and_lists_what_differs(tiny, tmp_path):
    file = foreign(tmp_path / "a.png", LINE)
    assert "v1-5" in run("reproduce", file, code=2)
    found = events("reproduce", file, "-m", tiny, "-o", tmp_path / "b.webp", code=1)[-1]
    assert found["same"] is False and set(found["differs"]) >= {"Model", "Model hash", "Version", "device"}
    assert found["differs"]["RNG"] == ["GPU", "NV"]  # a card's random numbers, drawn without one
    assert found["differs"]["Model hash"][0] == "6ce0161689"
    assert "seed" in run("reproduce", foreign(tmp_path / "c.png", LINE.replace("Seed: 5, ", "")), "-m", tiny, code=2)
    # what was painted is ours, in a file that keeps every pixel; and in one that does not
    assert events("reproduce", tmp_path / "b.webp", "-m", tiny, "-o", tmp_path / "b.jpg")[-1]["same"] is True
    run("reproduce", tmp_path / "b.jpg", "-m", tiny, code=None)
    # as if another program had painted what we did: only what it says of itself differs
    again = Image.open(tmp_path / "b.webp").convert("RGB")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", f"a red circle\nNegative prompt: grey\n{LINE}, RNG: NV")
    again.save(tmp_path / "d.png", pnginfo=chunks)
    found = events("reproduce", tmp_path / "d.png", "-m", tiny)[-1]
    assert found["same"] is True and "RNG" not in found["differs"]


def test_damaged_words_of_ours_fall_back_to_infotext(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(PIXELS, {"giverny": "{", "parameters": f"a\n{LINE}"}))
    found = read_parameters(tmp_path / "a.png")
    assert found.prompt == "a" and "damaged" in found.notes[0].problem
    (tmp_path / "b.png").write_bytes(png_bytes(PIXELS, {"prompt": "{", "workflow": "[]"}))
    with pytest.raises(InputError, match="prompt, workflow"):
        read_parameters(tmp_path / "b.png")
