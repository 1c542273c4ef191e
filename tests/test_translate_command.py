"""`giverny translate`: files and folders, what is left out and why, going on where it was."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from giverny.assembly import train
from giverny.base.errors import InputError
from giverny.base.images import read_picture
from giverny.base.picture import read_provenance
from giverny.pipelines.translate import jobs_for
from test_cli import events, run
from test_pairs import tiny as tiny_double
from test_translator import BAD, smooth

pytestmark = pytest.mark.xdist_group("contract")


@pytest.fixture
def model(tiny_runs):
    return str(tiny_runs["translator"])


@pytest.fixture
def folder(tmp_path):
    """Three photographs, one of them further down, and a note."""
    place = tmp_path / "photos"
    (place / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "more/a.webp")):
        Image.fromarray(smooth(40 + i, 30, i)).save(place / name, lossless=True)
    (place / "note.txt").write_text("no picture")
    return place


def files(place):
    return sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())


def test_a_photo_becomes_a_picture_of_its_own_size(model, folder, tmp_path):
    said = run("translate", folder / "a.png", "--to", model, "-o", tmp_path / "painting.png").output
    assert "1 translated" in said
    painted = read_picture(tmp_path / "painting.png")
    assert painted.shape == (30, 40, 3) and not np.array_equal(painted, read_picture(folder / "a.png"))
    told = read_provenance(tmp_path / "painting.png")
    assert told.painter == "translator" and told.request.start.picture.name == str(folder / "a.png")
    assert run("reproduce", tmp_path / "painting.png", "-m", model).exit_code == 0
    assert "already there" in run("translate", folder / "a.png", "--to", model, "-o", tmp_path / "painting.png").output
    run(
        "translate", folder / "a.png", "--to", model, "-o", tmp_path / "painting.png", "--seed", 7
    )  # its strokes fall otherwise
    assert not np.array_equal(painted, read_picture(tmp_path / "painting.png"))
    assert read_provenance(tmp_path / "painting.png").request.seed == 7


def test_a_folder_keeps_its_order_and_is_not_done_twice(model, folder, tmp_path):
    out = tmp_path / "painted"
    first = events("translate", folder, "--to", model, "-o", out)
    assert files(out) == ["a.png", "b.png", "more/a.png"]
    assert first[-1] == {"event": "translated", "painted": 3, "there": 0, "failed": 0}
    (out / "b.png").unlink()
    assert events("translate", folder, "--to", model, "-o", out)[-1]["painted"] == 1
    assert events("translate", folder, "--to", model, "-o", out, "--strength", 0.5)[-1]["painted"] == 3  # other settings
    Image.fromarray(smooth(40, 30, 9)).save(folder / "a.png")  # another picture
    assert events("translate", folder, "--to", model, "-o", out, "--strength", 0.5)[-1]["painted"] == 1
    assert events("translate", folder, "--to", model, "-o", out, "--strength", 0.5, "--again")[-1]["painted"] == 3


def test_bad_files_are_named_and_the_rest_is_done(model, folder, tmp_path):
    for name, content in BAD.items():
        (folder / f"{name}.jpg").write_bytes(content)
    (folder / "empty.png").write_bytes(b"")
    told = events("translate", folder, "--to", model, "-o", tmp_path / "out", code=2)
    assert told[-1] == {"event": "translated", "painted": 3, "there": 0, "failed": len(BAD) + 1}
    assert {e["file"].split("/")[-1] for e in told if e["event"] == "failed"} == {*(f"{n}.jpg" for n in BAD), "empty.png"}
    said = run("translate", folder, "--to", model, "-o", tmp_path / "out", code=2).output
    assert said.count("left out: ") == len(BAD) + 1 and "3 already there" in said
    assert "that cannot" in run("translate", folder / "empty.png", "--to", model, "-o", tmp_path / "out", code=2).output


def test_other_kinds_of_files_and_sizes(model, folder, tmp_path):
    run("translate", folder / "a.png", "--to", model, "-o", tmp_path / "o", "--as", "jpg", "--size", "32x16", "--denoise", 1)
    assert read_picture(tmp_path / "o" / "a.jpg").shape == (16, 32, 3)


def test_files_of_one_name_are_told_apart(folder, tmp_path):
    (folder / "least").mkdir()
    Image.fromarray(smooth(16, 16)).save(folder / "least" / "a.jpg")
    jobs = jobs_for([folder / "a.png", folder / "more" / "a.webp", folder / "least" / "a.jpg"], tmp_path / "out")
    assert [j.target.name for j in jobs] == ["a.png", "a-2.png", "a-3.png"]


def test_what_is_named_twice_is_done_once(folder, tmp_path, monkeypatch):
    once = jobs_for([folder], tmp_path / "out")
    assert len(once) == 3 and jobs_for([folder, folder, folder / "a.png", folder / "more"], tmp_path / "out") == once
    monkeypatch.chdir(folder)
    jobs = jobs_for([Path("a.png"), folder / "more" / ".." / "a.png"], tmp_path / "one.png")
    assert [(j.file, j.target) for j in jobs] == [(Path("a.png"), tmp_path / "one.png")]


def kinds_of_files(place):
    """Pictures as cameras, scanners and programs leave them, by name; each has colours or greys that a wrong reading shows."""
    pixels, exif = smooth(40, 24, 3), Image.Exif()
    grey = Image.fromarray(pixels).convert("L")
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(place / "sixteen.png")
    Image.merge("LA", (grey, grey.rotate(180))).save(place / "grey-alpha.png")
    Image.fromarray(pixels).save(place / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE).save(place / "palette.gif")
    grey.convert("1").save(place / "bits.png")


def test_files_of_every_kind_are_translated_as_they_are_seen(model, tmp_path):
    for name in ("kinds", "seen"):
        (tmp_path / name).mkdir()
    kinds_of_files(tmp_path / "kinds")
    for file in (tmp_path / "kinds").iterdir():
        Image.fromarray(read_picture(file)).save(tmp_path / "seen" / f"{file.stem}.png")
    for name in ("kinds", "seen"):
        assert events("translate", tmp_path / name, "--to", model, "-o", tmp_path / f"of-{name}")[-1]["painted"] == 5
    for file in files(tmp_path / "of-seen"):
        one, other = (read_picture(tmp_path / f"of-{name}" / file) for name in ("kinds", "seen"))
        assert np.array_equal(one, other), file
    assert read_picture(tmp_path / "of-kinds" / "turned.png").shape == (40, 24, 3)


def test_a_file_that_was_cut_short_says_so_and_the_rest_is_done(model, folder, tmp_path):
    whole = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    told = events("translate", folder, "--to", model, "-o", tmp_path / "out", code=2)
    assert told[-1]["painted"] == 3 and told[-1]["failed"] == 1
    (failed,) = (e for e in told if e["event"] == "failed")
    assert failed["file"].endswith("cut.jpg") and "truncated" in failed["reason"].lower()
    assert files(tmp_path / "out") == ["a.png", "b.png", "more/a.png"]


def test_an_animation_says_what_to_do(model, tmp_path):
    (tmp_path / "moving.gif").write_bytes(BAD["animation"])
    said = run("translate", tmp_path / "moving.gif", "--to", model, "-o", tmp_path / "out", code=2).output
    assert "an animation of 2 frames" in said and "Save the frame you mean as PNG" in said


PANORAMA = """
import re, sys
from pathlib import Path
from PIL import Image
from giverny.cli import cli
model, folder = sys.argv[1:]
peaks = []
for name, size, memory in (("small", (64, 64), "64"), ("wide", (20_000, 200), "64"), ("wide", (20_000, 200), "0")):
    Image.linear_gradient("L").resize(size).convert("RGB").save(f"{folder}/{name}.png")
    words = [f"{folder}/{name}.png", "--to", model, "-o", f"{folder}/{memory}-{name}.png", "--memory", memory]
    try:
        cli(["translate", *words], standalone_mode=False)
    except SystemExit as end:
        assert not end.code
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)  # of this program alone
print(peaks[1] - peaks[0], peaks[2] - peaks[0])
"""


def test_a_panorama_goes_through_in_the_memory_it_is_given(model, tmp_path):
    """Beside the tiles a pixel takes 60 bytes at most: as it was read, and three numbers each of what it was and becomes. glibc
    gives back at once what it has mapped, so that the peak is what was held, and not how the heap lay (270 to 390 MiB)."""
    steady = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    told = subprocess.run([sys.executable, "-c", PANORAMA, model, tmp_path], capture_output=True, text=True, env=steady)
    assert told.returncode == 0, told.stderr
    tiled, whole = map(float, told.stdout.split()[-2:])
    assert read_picture(tmp_path / "64-wide.png").shape == (200, 20_000, 3)
    assert tiled < 64 + 20_000 * 200 * 60 / 2**20 < whole, (tiled, whole)


def test_a_training_from_an_empty_set_says_which(folder, tmp_path):
    (tmp_path / "none").mkdir()
    for given, wanted in ((folder, tmp_path / "none"), (tmp_path / "none", folder)):
        words = ("--set", f"data.given={given}", "--set", f"data.source={wanted}", "--out", tmp_path / "run")
        said = run("train", "monet-cyclegan", "--preset", "cpu", *words, code=2).output
        assert str(tmp_path / "none") in said and "picture" in said


def test_what_was_made_into_the_folder_itself_is_not_translated_again(folder):
    out = folder / "painted"
    out.mkdir()
    Image.fromarray(smooth(8, 8)).save(out / "old.png")
    assert [j.file.name for j in jobs_for([folder], out)] == ["a.png", "b.jpg", "a.webp"]


def test_places_that_hold_nothing_are_refused(tmp_path, tiny_runs):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="there is none"):
        jobs_for([tmp_path / "none"], tmp_path / "out")
    with pytest.raises(InputError, match="not there"):
        jobs_for([tmp_path / "no.png"], tmp_path / "out")
    Image.fromarray(smooth(16, 16)).save(tmp_path / "a.png")
    assert "a model's name" in run("translate", tmp_path / "a.png", "--to", "no-such-model", code=2).output
    words = ("--to", tiny_runs["diffusion"], "-o", tmp_path / "out")
    assert "starts from a picture" not in run("translate", tmp_path / "a.png", *words).output


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    """A model that has learnt two kinds, at toy size."""
    run = tmp_path_factory.mktemp("double") / "run"
    for _ in train(tiny_double(), run):
        pass
    return str(run)


def test_a_diffusion_model_translates_at_its_own_size_with_settings_by_name(double, folder, tmp_path):
    photo, out = folder / "a.png", tmp_path / "out"

    def painted(*more):
        assert events("translate", photo, "--to", double, "-o", out, *more)[-1]["painted"] == 1
        assert read_picture(out / "a.png").shape == (16, 16, 3)
        return read_provenance(out / "a.png"), read_picture(out / "a.png")

    told, over = painted()
    assert told.request.start.strength == 0.6 and told.knobs["begin"] == "noise"
    told, crossed = painted("--set", "begin=crossed", "--set", "steps=4")
    assert told.knobs["begin"] == "crossed" and told.knobs["steps"] == 4 and not np.array_equal(over, crossed)
    assert events("translate", photo, "--to", double, "-o", out, "--set", "begin=crossed", "--set", "steps=4")[-1]["there"] == 1
    assert run("reproduce", out / "a.png", "-m", double).exit_code == 0
    paint = run(
        "paint", "", "-m", double, "--from", photo, "--begin", "crossed", "--steps", 4, "--seed", 0, "-o", tmp_path / "p"
    )
    assert paint.exit_code == 0 and np.array_equal(read_picture(tmp_path / "p" / "00000.png"), crossed)
    assert "begin" in run("translate", photo, "--to", double, "-o", out, "--set", "begn=crossed", code=2).output
