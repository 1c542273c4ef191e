"""`giverny translate`: files and folders, what is left out and why, going on where it was."""

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
    jobs = jobs_for([folder / "a.png", folder / "more" / "a.webp", folder / "a.png"], tmp_path / "out")
    assert [j.target.name for j in jobs] == ["a.png", "a-2.png", "a-3.png"]


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
    assert "starts from a picture" not in run("translate", tmp_path / "a.png", "--to", tiny_runs["diffusion"]).output


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
