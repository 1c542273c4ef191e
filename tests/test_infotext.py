"""Infotext: written as web interfaces read it, into every kind of file; read back exactly; read from damaged text with an
account of the damage. The texts of `SCANNED` are facts of a public slide deck (prompts shortened to their beginnings and ends).
"""

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from giverny.base.embedded import decoded, read_words
from giverny.base.errors import InputError
from giverny.base.infotext import (
    Parameters,
    folded,
    infotext,
    parameters_of,
    sampler_label,
    schedule_label,
    split_sampler,
    write_infotext,
)
from giverny.base.picture import Picture, Provenance, Request, Variation, read_provenance
from giverny.checkpoints.infotext import parse_infotext, read_settings
from giverny.checkpoints.picture_file import read_parameters
from giverny.sampling.samplers import SAMPLER_NAMES
from giverny.sampling.schedules import SPACINGS

KNOBS = {"steps": 20, "sampler": "dpmpp_2m", "spacing": "karras", "guidance": 7.0}


def provenance(knobs=KNOBS, **more):
    parts = {name: more.pop(name) for name in list(more) if name in Provenance.model_fields}
    told = {
        "request": Request(**more), "knobs": knobs, "painter": "diffusion", "model": "m", "fingerprint": "0123456789abcdef",
        "versions": {"giverny": "1.2.3"}, "device": "cpu", "precision": "float32", "backend": "plain", "threads": 1, "batch": 1,
    }  # fmt: skip
    return Provenance(**{**told, **parts})


# -- writing ----------------------------------------------------------------------------------------------------------


def test_the_line_has_the_keys_names_and_order_of_a1111():
    knobs = {**KNOBS, "clip_skip": 2, "ensd": 31337, "upscale": 1.5, "upscale_strength": 0.4, "upscale_in": "latents"}
    further = {"Lora hashes": "ink: 0123456789ab, wool: ba9876543210", "VAE hash": "c6a580b13a", "VAE": "vae.ckpt", "Own": "1"}
    made = provenance(knobs, prompt="a", seed=5, size=(32, 48), variation=Variation(seed=9, strength=0.25), further=further)
    assert infotext(made, (48, 72)).split("\n") == [
        "a",
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 32x48, Model hash: 0123456789, "
        "Model: m, VAE hash: c6a580b13a, VAE: vae.ckpt, Variation seed: 9, Variation seed strength: 0.25, "
        "Denoising strength: 0.4, Clip skip: 2, ENSD: 31337, RNG: CPU, Hires upscale: 1.5, "
        'Hires upscaler: Latent (antialiased), Lora hashes: "ink: 0123456789ab, wool: ba9876543210", Own: 1, '
        "Version: giverny 1.2.3",
    ]
    plain = infotext(provenance({"sampler": "DDIM", "eta": 0.5, "clip_skip": 1, "upscale": 1.0}, noise="nv"))
    assert "Sampler: DDIM" in plain and "Eta DDIM: 0.5" in plain and "RNG: NV" in plain
    assert "Clip skip" not in plain and "Hires" not in plain and "Denoising" not in plain and "Size" not in plain


def test_a_spacing_that_the_samplers_name_says_goes_before_the_knobs():
    said = infotext(provenance({"sampler": "DPM++ 2M SDE Karras", "spacing": "normal", "steps": 3}))
    assert "Sampler: DPM++ 2M SDE, Schedule type: Karras," in said and "Uniform" not in said


def test_every_sampler_and_spacing_has_a_label_that_leads_back():
    labels = {name: sampler_label(name) for name in SAMPLER_NAMES}
    assert all(folded(label) == folded(name) for name, label in labels.items()) and len(set(labels.values())) == len(labels)
    assert labels["euler_a"] == "Euler a" and labels["dpmpp_2m"] == "DPM++ 2M" and labels["ddim"] == "DDIM"
    own = [spacing for spacing in SPACINGS if schedule_label(spacing) != "Automatic"]  # the one that a sampler has
    assert len({schedule_label(spacing) for spacing in own}) == len(own) == len(SPACINGS) - 3
    assert (schedule_label("normal"), schedule_label("karras"), schedule_label("sgm_uniform")) == (
        "Uniform", "Karras", "SGM Uniform",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ("DPM++ 2M SDE Heun Exponential", ("DPM++ 2M SDE Heun", "Exponential")),
        ("DPM2 a Karras", ("DPM2 a", "Karras")),
        ("Euler a", ("Euler a", None)),
        ("k_dpmpp_2s_ancestral", ("DPM++ 2S a", None)),
        ("dpmpp_2m_sde_gpu", ("DPM++ 2M SDE", None)),
        ("uni_pc", ("UniPC", None)),
        ("DPM++ 4M Karras", ("DPM++ 4M Karras", None)),
        ("", ("", None)),
    ],
)
def test_old_names_carry_sampler_and_schedule(name, split):
    assert split_sampler(name) == split


# -- files ------------------------------------------------------------------------------------------------------------


def told_of(path):
    """What a file says of where its picture came from, but for what a JPEG adds: the digest of pixels it does not keep."""
    return read_provenance(path).model_copy(update={"pixels": None})


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
@pytest.mark.parametrize("prompt", ["a boot", "", 'größer: "靴 👟",\nzweite Zeile \\'])
def test_every_kind_of_file_tells_web_interfaces_and_us(tmp_path, suffix, prompt):
    pixels = np.random.default_rng().integers(0, 256, (24, 16, 3), dtype=np.uint8)
    made = provenance(prompt=prompt, negative="ü", seed=2**63 - 1)
    path = tmp_path / f"a{suffix}"
    Picture(pixels, made).save(path)
    assert told_of(path) == made and read_parameters(path) == parameters_of(made, (16, 24))
    with Image.open(path) as image:
        if suffix == ".png":
            assert image.info["parameters"] == infotext(made, (16, 24))
        else:
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf_16_be") == infotext(made, (16, 24))
        # a program that re-encodes and keeps EXIF or chunks keeps our words
        kept = {"exif": image.info["exif"]} if "exif" in image.info else {}
        off = abs(np.asarray(image.convert("RGB")).astype(int) - pixels)
        if kept:
            image.save(tmp_path / f"again{suffix}", **kept)
            assert told_of(tmp_path / f"again{suffix}") == made
    assert off.max() == 0 if suffix in (".png", ".webp") else off.mean() < 10
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_exif_is_what_the_library_of_web_interfaces_reads(tmp_path):
    piexif = pytest.importorskip("piexif")
    helper = pytest.importorskip("piexif.helper")
    made = provenance(prompt="a boot, 靴", negative="ü")
    for name in ("a.jpg", "a.webp"):
        Picture(np.zeros((8, 8, 3), np.uint8), made).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            comment = piexif.load(image.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
        assert helper.UserComment.load(comment) == infotext(made, (8, 8))
        # and what it writes, we read
        there = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: helper.UserComment.dump("b, 靴", encoding="unicode")}})
        Image.new("RGB", (8, 8)).save(tmp_path / name, exif=there)
        assert read_words(tmp_path / name)["parameters"] == "b, 靴"


@pytest.mark.parametrize(
    "raw",
    [
        b"UNICODE\0" + "ein Café, 5".encode("utf_16_be"),
        b"UNICODE\0" + "ein Café, 5".encode("utf_16_le"),
        b"ASCII\0\0\0" + "ein Café, 5".encode(),
        bytes(8) + "ein Café, 5".encode() + b"\0",
        "ein Café, 5".encode(),
        "ein Café, 5",
    ],
)
def test_comments_in_every_encoding(raw):
    assert decoded(raw) == "ein Café, 5"


def test_words_survive_pixels_cut_short_and_too_many_words_are_refused(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Picture(noise, provenance(prompt="a boot")).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    assert read_parameters(tmp_path / "a.png").prompt == "a boot"
    long = Picture(noise, provenance(prompt="boot " * 10_000))
    with pytest.raises(InputError, match="64 kB"):
        long.save(tmp_path / "long.jpg")
    long.save(tmp_path / "long.webp")
    assert read_provenance(tmp_path / "long.webp") == long.provenance and not (tmp_path / "long.jpg").exists()


def test_a_text_file_and_files_that_say_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Model: m")
    assert read_parameters(tmp_path / "a.txt").settings["Seed"] == "1"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", comment=b"made with a paint program")
    (tmp_path / "b.txt").write_text("")
    for name in ("a.png", "a.jpg", "b.txt", "missing.txt", "missing.png"):
        with pytest.raises(InputError, match=name):
            read_parameters(tmp_path / name)
    out = io.BytesIO()
    Image.new("P", (4, 4)).save(out, "GIF", comment=(tmp_path / "a.txt").read_bytes())
    (tmp_path / "a.gif").write_bytes(out.getvalue())
    assert read_parameters(tmp_path / "a.gif").prompt == "a cat"


# -- reading ----------------------------------------------------------------------------------------------------------

LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b"


def problems(parameters):
    return {note.key: note for note in parameters.notes}


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        (f"a beret, ((eyes))\nNegative prompt: ugly, [blurry]\n{LINE}", "a beret, ((eyes))", "ugly, [blurry]"),
        (f"a beret\n{LINE}", "a beret", ""),
        (LINE, "", ""),
        (f"\n{LINE}", "", ""),
        (f"Negative prompt: ugly\n{LINE}", "", "ugly"),
        (f"one\nSteps: 5, a stair\nthree\nNegative prompt: x\ny: z\n{LINE}\n", "one\nSteps: 5, a stair\nthree", "x\ny: z"),
        (f"a, b: c, d: e, f: g\n{LINE}", "a, b: c, d: e, f: g", ""),
        (f"a\r\nNegative prompt: b\r\n{LINE}\r\n", "a", "b"),
        (f"a\nNegative prompt: b\n{LINE}\n\nWarning: too many tokens", "a", "b"),
        (f"a Negative prompt: b {LINE}", "a", "b"),
        (f"a\nNegative prompt: b {LINE}", "a", "b"),
        (f"say Negative prompt: aloud\n{LINE}", "say Negative prompt: aloud", ""),
    ],
)  # fmt: skip
def test_prompts_and_settings_are_told_apart(text, prompt, negative):
    told = parse_infotext(text)
    assert (told.prompt, told.negative) == (prompt, negative)
    assert told.settings == {
        "Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "965400086", "Size": "512x512", "Model hash": "45dee52b",
    }  # fmt: skip
    assert not [note for note in told.notes if note.key]


def test_blocks_of_extensions():
    control = '"Module: openpose_full, Model: None, Weight: 1, Resize Mode: Crop and Resize"'
    face = r'"a \"pretty\" face,\nsmiling: 1"'
    told = parse_infotext(
        f"a\nSteps: 20, Sampler: DPM++ 2S a, CFG scale: 7, Seed: 1934093539, Size: 512 x 512, Model hash: 6ce0161689, "
        f'Model: v1-5-pruned-emaonly, ControlNet 0: {control}, ADetailer model: face_yolov8n.pt, ADetailer prompt: {face}, '
        f'ControlNet-1 Enabled: True, Lora hashes: "ink: ab12, wool: cd34", Hashes: {{"model": "6ce0", "lora:ink": "ab12"}}, '
        f'Hires fix, Template: x, Version: v1.7.0-225-g1234\nTemplate: a {{b|c}}, d: e\nNegative Template: f, g'
    )  # fmt: skip
    said = told.settings
    assert said["ControlNet 0"] == control.strip('"') and said["ADetailer prompt"] == 'a "pretty" face,\nsmiling: 1'
    assert said["Lora hashes"] == "ink: ab12, wool: cd34" and said["Hashes"] == '{"model": "6ce0", "lora:ink": "ab12"}'
    assert said["ControlNet-1 Enabled"] == "True" and said["Hires fix"] == "Hires fix" and told.size == (512, 512)
    assert list(said)[:3] == ["Steps", "Sampler", "CFG scale"]


def test_line_breaks_inside_quotations_and_one_setting_a_line():
    broken = 'a\nSteps: 20, Sampler: Euler, Seed: 1, Note: "one\n\ntwo: 2, three: 3, four: 4", CFG scale: 7'
    told = parse_infotext(broken)
    assert (
        told.prompt == "a" and told.settings["Note"] == "one\n\ntwo: 2, three: 3, four: 4" and told.settings["CFG scale"] == "7"
    )
    told = parse_infotext("a\nSteps: 20\nSampler: Euler\nSeed: 1")
    assert told.prompt == "a" and told.settings == {"Steps": "20", "Sampler": "Euler", "Seed": "1"}


def test_what_could_not_be_read_is_told():
    said, notes = read_settings('Steps: 20, (odd), Seed: 1, Seed: 2, Note: "open, Size: 8x8')
    assert said == {"Steps": "20", "Seed": "2", "Note": '"open', "Size": "8x8"}
    assert [note.key for note in notes] == ["", "Seed", "Note"] and "(odd)" in notes[0].problem
    assert parse_infotext("only words, no settings").notes[0].problem == "no settings were found"
    assert {"Seed", "Size", "CFG scale", "Model"} <= set(problems(parse_infotext("a\nSteps: 3, Sampler: Euler, Foo: 1")))


SANTA = ("santa clause eating a chocolate chip cookie", "ugly, bad anatomy, disgusting")
BIRD = ("this bird had brown primaries, a brown crown, and white belly", "ugly, deformed, disgusting")
SKIERS = ("The skiers are standing next to a large crowd", "ugly, deformed, disgusting")
PLAIN = "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Version: v1.8.0"
CYBER = (
    "Model hash: 93ed864a22, Model: cyberrealistic_v42, VAE hash: c6a580b13a, VAE: vae-ft-mse-840000-ema-pruned.ckpt, "
    "Version: v1.8.0"
)
SCANNED = [  # words, what parts prompt, negative and settings on the page, seed, model
    (SANTA, " ", " ", 422078003, PLAIN),
    (SANTA, " ", " ", 3889559361, CYBER),
    (BIRD, " ", " ", 1085542589, PLAIN),
    (BIRD, " ", " ", 250506351, CYBER),
    (SKIERS, " ", "\n\n", 1179824724, PLAIN),
    (SKIERS, "\n\n \n", "\n\n", 435320631, CYBER.replace("v1.8.0", "v1 8 0")),
]


def scanned(words, first, second, seed, model):
    start = f"{words[0]}{first}Negative prompt: {words[1]}{second}Steps: 70, Sampler: DPM++ 2M Karras"
    return f"{start}, CFG scale: 7, Seed: {seed}, Size: 512x512, {model}"


@pytest.mark.parametrize("case", SCANNED, ids=lambda case: str(case[3]))
def test_the_texts_of_the_source_are_read_with_every_value(case):
    words, _, _, seed, model = case
    told = parse_infotext(scanned(*case))
    assert (told.prompt, told.negative) == words
    assert told.settings == {
        "Steps": "70", "Sampler": "DPM++ 2M Karras", "CFG scale": "7", "Seed": str(seed), "Size": "512x512",
        **dict(pair.split(": ") for pair in model.split(", ")),
    }  # fmt: skip


def test_the_damaged_text_has_a_clear_account():
    told = parse_infotext(scanned(*SCANNED[5]))
    (note,) = told.notes
    assert note.key == "Version" and "v1 8 0" in note.problem and "'v1.8.0'" in note.suggestion
    assert told.settings["Version"] == "v1 8 0"  # never silently put right
    assert not [n for case in SCANNED[:5] for n in parse_infotext(scanned(*case)).notes if n.key]
    worse = "Steps: 7O. Sampler: DPM++ 2M Karras, CFG scaIe: 7, Seed: 1l797 24724, Size: 5l2x512, Model hash: 6ceO161689"
    found = problems(parse_infotext(worse))
    assert "'70'" in found["Steps"].suggestion and "'Sampler'" in found["Steps"].suggestion
    assert found["Sampler"].problem == "missing" and "CFG scaIe" in found["CFG scale"].suggestion
    assert "'1179724724'" in found["Seed"].suggestion and "'512x512'" in found["Size"].suggestion
    assert "'6ce0161689'" in found["Model hash"].suggestion
    bad = problems(
        parse_infotext("Steps: 0, Sampler: DPM+ 2M Karas, CFG scale: 7.5, Seed: -1, Size: 0x5, Denoising strength: 2")
    )
    assert "'DPM++ 2M Karras'" in bad["Sampler"].suggestion
    assert {"Steps", "Seed", "Size", "Denoising strength"} <= set(bad) and "CFG scale" not in bad


# -- any text ---------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from([
    "Steps: 20, Sampler: Euler, ", "Steps:", "Negative prompt", "Seed: 5", '"', "\\", ",", ":", "\n", " ", "{", "[", '{"a": 1}',
    "é", "靴", "👟", "\x85", "\u2028", "a b", "<lora:x:1>", "(y:1.2)", "\\n", "\t",
])  # fmt: skip
LETTERS = st.lists(PIECES | st.text(max_size=5).filter(lambda t: "\r" not in t), max_size=12).map("".join)
WORDS = LETTERS.map(str.strip).filter(lambda t: "Negative prompt:" not in t)
FIELDS = st.from_regex(r"[A-Za-z][A-Za-z0-9 \-/]{0,12}[A-Za-z0-9]", fullmatch=True).filter(lambda k: "emplate" not in k)


@settings(max_examples=600, deadline=None)
@given(WORDS, WORDS, st.integers(0, 10**6), st.dictionaries(FIELDS, LETTERS | st.text(max_size=20), max_size=6))
def test_what_is_written_is_read_back(prompt, negative, steps, more):
    made = Parameters(
        prompt=prompt, negative=negative, settings={"Steps": str(steps), "Sampler": "Euler a", "Seed": "1", **more}
    )
    told = parse_infotext(write_infotext(made))
    assert (told.prompt, told.negative) == (made.prompt, made.negative)
    assert list(told.settings.items()) == list(made.settings.items())


@settings(max_examples=600, deadline=None)
@given(st.text() | st.lists(PIECES, max_size=30).map("".join))
def test_no_text_is_too_much(text):
    told = parse_infotext(text)
    assert Parameters.model_validate_json(told.model_dump_json()) == told
    assert told.settings or told.notes


@pytest.mark.parametrize(
    "text",
    ["a", " ", "\n", '"', "\\", 'a: "', "a: [[[[", "Steps: 1\n", "a b", "\t ", "{", "Steps: 1, a: b, ", "a: b,\t "],
    ids=repr,
)
def test_long_texts_take_linear_time(text):
    began = time.perf_counter()
    parse_infotext("x: y, z: w, q: r, " + text * 60_000)
    parse_infotext(text * 60_000)
    assert time.perf_counter() - began < 20


def test_halves_of_letters_do_no_harm():
    told = parse_infotext('a\ud800\nSteps: 1, Sampler: Euler, Seed: 1, Note: "\\ud83d, x"')
    assert "\ud800" not in told.prompt and "\ud83d" not in told.settings["Note"]
