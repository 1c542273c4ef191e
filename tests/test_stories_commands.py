"""`giverny paint --from` and `reproduce` of what it painted; boxes around masks."""

import json
import random

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from giverny.base.images import png_bytes, read_picture
from giverny.base.picture import read_provenance
from giverny.cli import cli
from giverny.pipelines.image2image import box_around
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
