"""Pictures in other kinds of files, saved styles and lists of prompts: what `giverny paint` is given and what it leaves."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from giverny.base.errors import InputError
from giverny.base.infotext import infotext
from giverny.base.picture import Picture, Request, read_provenance
from giverny.checkpoints.infotext import parse_infotext
from giverny.checkpoints.picture_file import read_parameters
from giverny.cli import cli
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.pipelines.like import like
from giverny.pipelines.lists import Listed, read_list
from test_infotext import provenance

KINDS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
HARD = 'größe: "靴 👟", (a:1.2)\n\tzweite Zeile \\ Steps: 9, <lora:x:1>, ' + "sehr lang, " * 300


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


# -- kinds of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quality", [None, 60])
def test_every_kind_is_read_taken_for_a_pattern_and_reproduced(tiny, tmp_path, kind, quality):
    if kind == "png" and quality:
        assert "--format" in run("paint", "a", "-m", tiny, "--quality", quality, code=2)
        return
    how = ("--format", kind, *(("--quality", quality) if quality else ()))
    told = events("paint", HARD, "--negative", 'no "x", ü', "-m", tiny, "-n", 2, "--seed", 7, "-o", tmp_path, *how)
    files = [tmp_path / f"0000{i}{KINDS[kind]}" for i in range(2)]
    assert [event["file"] for event in told if event["event"] == "picture"] == [str(file) for file in files]
    with Image.open(files[0]) as image:
        assert image.format == kind.upper()
    (said,) = events("read", files[1])
    assert (said["prompt"], said["negative"], said["settings"]["Seed"]) == (HARD, 'no "x", ü', "8")
    made = read_provenance(files[1])
    assert run("read", "--infotext", files[1]).removesuffix("\n") == infotext(made, (16, 16))
    # a web interface, which knows the infotext alone, reads the same words
    plain = parse_infotext(infotext(made, (16, 16)))
    assert (plain.prompt.strip(), plain.negative) == (HARD.strip(), 'no "x", ü') and plain.settings["Seed"] == "8"
    assert events("reproduce", files[1], "-m", tiny)[-1]["same"] is True, "whatever the file keeps of its pixels"
    # numbers go on behind pictures of any kind
    run("paint", "--like", files[1], "-m", tiny, "-o", tmp_path)
    again = read_provenance(tmp_path / "00002.png")
    assert again.request.model_copy(update={"id": ""}) == made.request.model_copy(update={"id": "", "knobs": again.knobs})


def test_quality_is_what_it_says(tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (64, 48, 3), dtype=np.uint8)
    picture = Picture(pixels, provenance(prompt="a"))

    def size(suffix, quality=None):
        picture.save(tmp_path / f"a{suffix}", quality)
        return (tmp_path / f"a{suffix}").stat().st_size

    for suffix in (".jpg", ".webp"):
        assert size(suffix, 10) < size(suffix, 80) < size(suffix, 100)
    size(".webp")
    assert (np.asarray(Image.open(tmp_path / "a.webp")) == pixels).all() and read_provenance(tmp_path / "a.webp").pixels is None
    for suffix, quality in ((".jpg", None), (".webp", 90)):
        size(suffix, quality)
        assert read_provenance(tmp_path / f"a{suffix}").pixels == picture.digest
        assert read_parameters(tmp_path / f"a{suffix}").prompt == "a"
    assert picture.digest != Picture(pixels.reshape(48, 64, 3)).digest != Picture(pixels + np.uint8(1)).digest


def test_another_picture_in_a_lossy_file_is_told(tiny, tmp_path):
    run("paint", "a", "-m", tiny, "--seed", 1, "-o", tmp_path, "--format", "jpeg")
    told = read_provenance(tmp_path / "00000.jpg")
    with Image.open(tmp_path / "00000.jpg") as image:
        Picture(255 - np.asarray(image), told).save(tmp_path / "b.jpg")
    assert events("reproduce", tmp_path / "b.jpg", "-m", tiny, code=1)[-1]["same"] is False


def test_words_that_a_jpeg_has_no_room_for_cost_no_picture(tiny, tmp_path):
    said = run("paint", "a " + "boot " * 12_000, "a", "-m", tiny, "--seed", 1, "-o", tmp_path, "--format", "jpeg")
    assert "00000 is written as PNG" in said and "64 kB" in said
    assert read_provenance(tmp_path / "00000.png").request.prompt.endswith("boot ") and (tmp_path / "00001.jpg").is_file()


# -- styles -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def styles(tmp_path, monkeypatch):
    monkeypatch.setenv("GIVERNY_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    with (tmp_path / "models" / "styles.csv").open("w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([("name", "prompt", "negative_prompt"), ("Oil, thick", "oil painting of {prompt}, thick", "photo")])
        rows.writerow(("soft", "soft light", ""))
    return tmp_path / "models" / "styles.csv"


def test_styles_are_put_around_prompts_and_told(tiny, tmp_path, styles):
    out = tmp_path / "out"
    run("paint", "a ring", "-m", tiny, "--negative", "blue", "--style", "Oil, thick", "--style", "soft", "--seed", 3, "-o", out)
    made = read_provenance(out / "00000.png")
    assert (made.request.prompt, made.request.negative) == ("oil painting of a ring, thick, soft light", "blue, photo")
    assert made.request.styles == ("Oil, thick", "soft")
    text = infotext(made, (16, 16))
    assert 'Styles: "Oil, thick, soft"' in text and text.startswith("oil painting of a ring")
    # the words are in the prompt already: whoever takes the text over has all of it, and nothing is left to follow
    assert not [note for note in like(parse_infotext(text), DiffusionKnobs).notes if note.key == "Styles"]
    run("paint", "oil painting of a ring, thick, soft light", "-m", tiny, "--negative", "blue, photo", "--seed", 3, "-o", out)
    same = [np.asarray(Image.open(out / f"0000{i}.png")) for i in range(2)]
    assert (same[0] == same[1]).all() and read_provenance(out / "00001.png").request.styles is None
    assert "styles" not in read_provenance(out / "00001.png").model_dump_json()
    assert events("reproduce", out / "00000.png", "-m", tiny)[-1]["same"] is True


def test_unknown_styles_and_missing_files_are_said(tiny, tmp_path, styles):
    said = run("paint", "a", "-m", tiny, "--style", "sotf", "-o", tmp_path / "out", code=2)
    assert "style" in said and "did you mean 'soft'" in said and not (tmp_path / "out").exists()
    other = tmp_path / "mine.csv"
    assert "mine.csv" in run("paint", "a", "-m", tiny, "--style", "x", "--styles", other, "-o", tmp_path / "out", code=2)
    other.write_text("name,prompt\nx,in x\n")
    run("paint", "a", "-m", tiny, "--style", "x", "--styles", other, "-o", tmp_path / "out")
    assert read_provenance(tmp_path / "out" / "00000.png").request.prompt == "a, in x"
    assert [row["name"] for row in events("styles")] == ["Oil, thick", "soft"] and "in x" in run("styles", other)


# -- lists of prompts -------------------------------------------------------------------------------------------------

LIST = """# what the shop wants

a red circle
  a "blue" ring -- on snow   --steps 2 --seed 5 --cfg_scale 3.5 --width 24 --height 16
--prompt "a (big) square" --negative_prompt ugly, it\\'s grey --sampler_name "euler a"
a dot --seed -1 --size 16x24
"""


def test_lines_say_what_differs(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeff" + LIST)
    found = read_list(tmp_path / "a.txt", DiffusionKnobs).lines
    assert found == (
        Listed(prompt="a red circle"),
        Listed(prompt='a "blue" ring -- on snow', seed=5, size=(24, 16), knobs={"steps": 2, "guidance": 3.5}),
        Listed(prompt="a (big) square", negative="ugly, it's grey", knobs={"sampler": "euler a"}),
        Listed(prompt="a dot", size=(16, 24)),
    )
    asked = found[1].of(Request(prompt="x", seed=1, negative="n", knobs={"steps": 9, "eta": 0.5}), 2)
    assert (asked.seed, asked.negative, asked.knobs) == (7, "n", {"steps": 2, "eta": 0.5, "guidance": 3.5})


def test_tables_say_the_same(tmp_path):
    rows = [("Prompt", "Category", "Negative prompt", "seed", "steps"), ('a, "b"', "x", "", 5, ""), ("c", "", "ugly", "", 3)]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (tmp_path / "a.tsv").write_text('Prompt\tCategory\tNegative prompt\tseed\tsteps\na, "b"\tx\t\t5\nc\t\tugly\t\t3\n')
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a, \\"b\\"", "seed": 5, "Category": 1}\n{"prompt": "c", "steps": 3, "negative": "ugly"}'
    )
    wanted = (Listed(prompt='a, "b"', seed=5), Listed(prompt="c", negative="ugly", knobs={"steps": 3}))
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        assert read_list(tmp_path / name, DiffusionKnobs) == (wanted, ("category",))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "a\nb --stepps 3", r"line 2.*did you mean 'steps'"),
        ("a.txt", "b --steps 'x", "line 1: No closing quotation"),
        ("a.txt", "b --seed x", "seed"),
        ("a.txt", "b --seed 99999999999999999999", "seed"),
        ("a.txt", "b --width 5", "both width and height"),
        ("a.txt", "--steps 5", "a prompt"),
        ("a.txt", "# nothing\n\n", "one prompt or more"),
        ("a.csv", "words\na\n", "a column prompt"),
        ("a.csv", "prompt,size\na,big\n", "row 1: 'big'"),
        ("a.doc", "a", "ending"),
        ("b.txt", None, "readable file"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_read_are_said(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_list(tmp_path / name, DiffusionKnobs)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(max_size=30) | st.sampled_from(["--steps 3", "a --seed 5", "--", '"', "# x", "--prompt a"]), max_size=6)
)
def test_no_list_is_too_odd(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "odd.txt"
    path.write_text("\n".join(lines), "utf-8", errors="replace")
    try:
        found = read_list(path, DiffusionKnobs).lines
    except InputError:
        return
    assert found and all(line.prompt for line in found)


def test_a_list_is_painted_line_by_line(tiny, tmp_path):
    (tmp_path / "a.txt").write_text(LIST)
    out = tmp_path / "out"
    run(
        "paint",
        "a cross",
        "--prompts",
        tmp_path / "a.txt",
        "-m",
        tiny,
        "-n",
        2,
        "--seed",
        40,
        "--steps",
        3,
        "-o",
        out,
        "--batch",
        3,
    )
    made = [read_provenance(out / f"{i:05d}.png") for i in range(10)]
    assert [m.request.prompt for m in made[::2]] == [
        "a cross", "a red circle", 'a "blue" ring -- on snow', "a (big) square", "a dot",
    ]  # fmt: skip
    assert [m.request.seed for m in made] == [40, 41, 40, 41, 5, 6, 40, 41, 40, 41]
    assert [m.knobs["steps"] for m in made[::2]] == [3, 3, 2, 3, 3] and made[5].request.size == (24, 16)
    assert max(m.batch for m in made) <= 3 and made[0].batch > 1
    assert events("reproduce", out / "00005.png", "-m", tiny)[-1]["same"] is True


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_leaves_what_is_done(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"circle {i}" for i in range(400)))
    wanted = ["paint", "--prompts", tmp_path / "a.txt", "-m", tiny, "--seed", 1, "-o", tmp_path / "out", "--batch", 1]
    words = [sys.executable, "-c", "from giverny.cli import main; main()", *map(str, wanted), "--steps", "50"]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 120
        while not (tmp_path / "out" / "00001.png").exists() and time.monotonic() < limit and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=60)[0]
    finally:
        child.kill()
    assert child.returncode == 130
    files = sorted((tmp_path / "out").glob("?????.png"))
    assert 2 <= len(files) < 400 and "400 pictures are done" in said
    assert [read_provenance(file).request.prompt for file in files] == [f"circle {i}" for i in range(len(files))]


# -- like a picture that began with another ---------------------------------------------------------------------------


def test_like_a_picture_that_began_with_another(tiny, tmp_path):
    draw = np.random.default_rng()
    Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "other.png")
    white = np.zeros((40, 48), np.uint8)
    white[8:20, 10:22] = 255
    Image.fromarray(white).save(tmp_path / "m.png")
    out, begin = tmp_path / "out", ("--from", tmp_path / "a.png")
    how = ("--strength", 0.8, "--fit", "stretch", "--mask", tmp_path / "m.png", "--fill", "noise", "--only-masked")
    run("paint", "a ring", "-m", tiny, "--seed", 3, *begin, *how, "-o", out)
    made = read_provenance(out / "00000.png").request
    like_it = ("paint", "--like", out / "00000.png", "-m", tiny, "-o", out)

    # without the files it is painted from noise, and that is said
    said = events(*like_it)[0]
    assert [note["suggestion"] for note in said["notes"]] == ["give it with --from", "give it with --mask"]
    assert "strength 0.8, fit stretch, fill noise" in said["became"]["start"]
    assert read_provenance(out / "00001.png").request.start is None

    said = run(*like_it, *begin, "--mask", tmp_path / "m.png")
    again = read_provenance(out / "00002.png").request
    assert again.start == made.start and "another" not in said
    same = [np.asarray(Image.open(out / f"0000{i}.png")) for i in (0, 2)]
    assert (same[0] == same[1]).all()

    # what is said wins; a file that is another is told, and its mask asks for a box of its own
    said = run(*like_it, "--from", tmp_path / "other.png", "--mask", tmp_path / "m.png", "--strength", 0.5)
    again = read_provenance(out / "00003.png").request.start
    assert "other.png is another picture than" in said and made.start.picture.sha256[:12] in said
    assert (again.strength, again.fill, again.fit, again.box) == (0.5, "noise", "stretch", made.start.box)
    run(*like_it, *begin)
    again = read_provenance(out / "00004.png").request.start
    assert again.mask is None and again.box is None and again.strength == 0.8


def test_a_transparent_part_is_painted_again(tiny, tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (16, 16, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[4:9, 4:9, 3] = 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    out = tmp_path / "out"
    run("paint", "a ring", "-m", tiny, "--seed", 3, "--from", tmp_path / "a.png", "--mask", "alpha", "-o", out)
    run("paint", "--like", out / "00000.png", "-m", tiny, "--from", tmp_path / "a.png", "-o", out)
    assert read_provenance(out / "00001.png").request.start == read_provenance(out / "00000.png").request.start
