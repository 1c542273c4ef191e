"""`giverny paint --from` and `reproduce` of what it painted; boxes around masks."""

import json
import random
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

from giverny.base import files as files_module
from giverny.base.errors import InputError
from giverny.base.images import png_bytes, read_picture
from giverny.base.picture import read_provenance
from giverny.base.start import Fill
from giverny.checkpoints.infotext import parse_infotext
from giverny.cli import cli
from giverny.cli.begun import FILLS, parse_margins
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.painters.diffusion.painter import DiffusionPainter
from giverny.pipelines.image2image import box_around
from giverny.pipelines.like import like
from test_stories import soft, square, write


def run(*words):
    return CliRunner().invoke(cli, [str(w) for w in words])


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "picture.png", soft(100)), write(tmp_path / "mask.png", square(100, 30, 60))


def test_paint_from_a_picture_and_reproduce(files, tmp_path):
    out = tmp_path / "out"
    told = run("paint", "a red dress", "--from", files[0], "--strength", 0.5, "--steps", 4, "--seed", 3, "-o", out)
    assert told.exit_code == 0, told.output
    start = read_provenance(out / "00000.png").request.start
    assert start.strength == 0.5 and start.picture.content is None
    assert "Denoising strength: 0.5" in Image.open(out / "00000.png").info["parameters"]
    again = run("reproduce", out / "00000.png")
    assert again.exit_code == 0 and "every pixel" in again.output, again.output
    picture = files[0].rename(out / "picture.png")  # moved to where the picture lies
    assert run("reproduce", out / "00000.png").exit_code == 0
    picture.write_bytes(png_bytes(soft(100)))
    gone = run("reproduce", out / "00000.png")
    assert gone.exit_code not in (0, 1) and "which is another" in gone.output
    picture.unlink()
    assert "none there or where it was" in run("reproduce", out / "00000.png").output


def test_only_masked_keeps_the_rest_at_its_own_size(files, tmp_path):
    out = tmp_path / "out"
    told = run(
        "paint", "a red dress", "--from", files[0], "--mask", files[1], "--only-masked", "--steps", 3, "--trace", "-o", out
    )
    assert told.exit_code == 0, told.output
    made, before, white = read_picture(out / "00000.png"), read_picture(files[0]), square(100, 30, 60) > 0
    assert np.array_equal(made[~white], before[~white]) and (made[white] != before[white]).any()
    assert run("reproduce", out / "00000.png").exit_code == 0


def test_what_is_refused(files, tmp_path):
    for words, said in (
        (["--mask", files[1]], "--mask: wants a picture with --from"),
        (["--from", tmp_path / "none.png"], "No such file"),
        (["--from", files[0], "--only-masked"], "a mask to paint around"),
        (["--from", files[0], "--strength", 2], "a strength from 0"),
        (["--from", files[0], "--mask", "alpha"], "opaque"),
    ):
        told = run("paint", "a dress", *words, "-o", tmp_path / "out")
        assert told.exit_code not in (0, 1) and said in told.output, told.output


def test_boxes_hold_the_mask_and_have_the_proportions_asked_for():
    assert box_around(square(100, 30, 60) > 0, (64, 64), 10) == (20, 20, 70, 70)
    assert box_around(square(100, 30, 60) > 0, (64, 32), 0) == (15, 30, 75, 60)
    for _ in range(200):
        high, wide = random.randint(1, 90), random.randint(1, 90)
        mask = np.zeros((high, wide), bool)
        mask[random.randrange(high), random.randrange(wide)] = mask[random.randrange(high), random.randrange(wide)] = True
        size = random.choice([(64, 64), (96, 64), (64, 128)])
        left, top, right, bottom = box_around(mask, size, random.randint(0, 40))
        assert 0 <= left < right <= wide and 0 <= top < bottom <= high
        assert mask[top:bottom, left:right].sum() == mask.sum(), json.dumps([high, wide])
        if right - left < wide and bottom - top < high:
            assert abs((right - left) * size[1] - (bottom - top) * size[0]) <= max(size)


def test_canvases_grow_and_say_how_far(files, tmp_path):
    out = tmp_path / "out"
    words = ["--from", files[0], "--extend", "left=20,top=3", "--steps", 3, "--seed", 3, "--json", "-o", out]
    told = run("paint", "a red dress", *words)
    assert told.exit_code == 0, told.output
    (canvas,) = [e for e in map(json.loads, told.output.splitlines()) if e["event"] == "canvas"]
    assert canvas["size"] == [120, 104] and canvas["extend"] == {"left": 20, "top": 4, "right": 0, "bottom": 0}
    made, before = read_picture(out / "00000.png"), read_picture(files[0])
    start = read_provenance(out / "00000.png").request.start
    assert made.shape == (104, 120, 3) and start.overlap == 12 and start.blur == pytest.approx(2.4)
    assert np.array_equal(made[16:, 32:], before[12:, 12:])
    assert "Extended by: 20 4 0 0" in Image.open(out / "00000.png").info["parameters"]
    again = run("reproduce", out / "00000.png")
    assert again.exit_code == 0 and "every pixel" in again.output, again.output
    told = run("paint", "a red dress", *words[:4], "--extend", "left=25", "--steps", 1, "-o", out)
    assert "canvas of 128 x 104; the model's sizes made it left 28 for 25, bottom 4 for 0" in told.output
    told = run("paint", "a dress", "--like", out / "00000.png", "--from", files[0], "--steps", 1, "-o", tmp_path / "like")
    assert told.exit_code == 0 and read_picture(tmp_path / "like" / "00000.png").shape == (104, 120, 3), told.output


def test_a_part_of_a_larger_canvas_is_painted_at_the_models_size(files, tmp_path):
    out = tmp_path / "out"
    told = run(
        "paint", "a red dress", "--from", files[0], "--extend", "right=33", "--only-masked", "--padding", 20, "--steps", 2,
        "--overlap", 6, "-o", out,
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    made, before = read_picture(out / "00000.png"), read_picture(files[0])
    assert made.shape == (100, 133, 3) and np.array_equal(made[:, :94], before[:, :94])


def test_margins_are_read_in_any_order():
    assert parse_margins("left=64, right=32") == (64, 0, 32, 0) and parse_margins("all=8,top=0") == (8, 0, 8, 8)
    for wrong, said in (("left", "sides and pixels"), ("left=-1", "sides and pixels"), ("lft=3", "did you mean 'left'")):
        with pytest.raises(InputError, match=said):
            parse_margins(wrong)
    assert set(FILLS) == set(get_args(Fill))


def test_what_of_canvases_is_refused(files, tmp_path):
    for words, said in (
        (["--extend", "left=8"], "--extend: wants a picture with --from"),
        (["--from", files[0], "--extend", "left=8", "--size", "64x64"], "a size that follows from the picture"),
        (["--from", files[0], "--extend", "left=0"], "a canvas larger by"),
        (["--from", files[0], "--extend", "left=9000"], "a canvas larger by"),
        (["--from", files[0], "--extend", "left=5000"], "Nearest"),
        (["--from", files[0], "--overlap", 3], "--overlap: wants --extend"),
    ):
        told = run("paint", "a dress", *words, "-o", tmp_path / "out")
        assert told.exit_code not in (0, 1) and said in told.output, told.output


def test_blur_is_in_infotext_and_taken_from_it(files, tmp_path):
    out = tmp_path / "out"
    mask = ["--from", files[0], "--mask", files[1], "--steps", 2, "--seed", 5]
    told = run("paint", "a red dress", *mask, "--mask-blur", 4, "--fill", "latent-nothing", "--mask-invert", "-o", out)
    assert told.exit_code == 0, told.output
    line = Image.open(out / "00000.png").info["parameters"]
    assert "Denoising strength: 0.6, " in line and "Mask blur: 4, Masked content: latent nothing, " in line
    assert "Mask mode: Inpaint not masked" in line
    told = run("paint", "--like", out / "00000.png", *mask[:4], "-o", out)
    assert told.exit_code == 0 and np.array_equal(read_picture(out / "00000.png"), read_picture(out / "00001.png")), told.output


def test_settings_of_the_web_interface_hold_for_a_picture_that_is_given(files, tmp_path):
    line = (
        "a red dress\nSteps: 4, Sampler: Euler, Schedule type: Uniform, CFG scale: 3, Seed: 5, Size: 64x64, RNG: CPU, "
        "Denoising strength: 0.75, Mask blur: 4, Masked content: latent noise, Inpaint area: Only masked, "
        "Masked area padding: 12, Version: v1.10.1"
    )
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", line)
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=chunks)
    taken = like(parse_infotext(line), DiffusionKnobs, DiffusionPainter.can)
    assert taken.start == {
        "strength": 0.75, "blur": 4.0, "fill": "latent-noise", "only_masked": True, "padding": 12, "program": "webui"
    }  # fmt: skip
    (note,) = [n for n in taken.notes if n.key == "Denoising strength"]
    assert "--from" in note.suggestion and not {"Mask blur", "Inpaint area"} & {n.key for n in taken.notes}
    told = run("paint", "--like", tmp_path / "theirs.png", "--from", files[0], "--mask", files[1], "-m", "wardrobe",
               "-o", tmp_path / "out")  # fmt: skip
    assert told.exit_code == 0, told.output
    start = read_provenance(tmp_path / "out" / "00000.png").request.start
    assert (start.strength, start.blur, start.fill, start.program) == (0.75, 4, "latent-noise", "webui")
    assert start.box == (8, 8, 82, 82)  # the white of 30..60, 10 pixels of blur and 12 of padding around it
    assert read_picture(tmp_path / "out" / "00000.png").shape == (100, 100, 3)
    wrong = like(parse_infotext(line.replace("0.75", "7").replace("latent noise", "paint")), DiffusionKnobs, {"start"})
    assert {"Denoising strength", "Masked content"} <= {n.key for n in wrong.notes if "cannot be taken" in n.problem}


def test_a_preview_is_kept_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr("giverny.cli.paint.PREVIEW_EVERY", 0)
    written = []
    inner = files_module.atomic_write
    monkeypatch.setattr(files_module, "atomic_write", lambda path, data: written.append(path) or inner(path, data))
    shown, out = tmp_path / "now.png", tmp_path / "out"
    told = run("paint", "a red dress", "-n", 2, "--steps", 3, "--seed", 3, "--preview", shown, "-o", out)
    assert told.exit_code == 0, told.output
    assert written.count(shown) == 2 * 3 + 1
    first, second = (read_picture(out / f"0000{i}.png") for i in (0, 1))
    last = read_picture(shown)
    assert np.array_equal(last[2:66, 2:66], first) and np.array_equal(last[2:66, 68:132], second)
