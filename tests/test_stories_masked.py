"""Painting under soft masks, from every fill, on larger canvases, and with a second pass that keeps what is not masked."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from giverny.base.contracts import Done, NoiseLevel, Request, Start
from giverny.base.images import Filter, resize
from giverny.base.masks import blurred, grown, reach, rim
from giverny.base.start import enclosed, pasted
from giverny.painters.diffusion.beginning import beginning
from giverny.painters.diffusion.family import open_published
from giverny.pipelines.image2image import extended, only_masked, paint_over
from published_twins import write_twin
from test_stories import BLUE, RED, soft, square, starting, write
from tiny_painters import SIZE, painted, requests, story, tiny_painter

SEED = random.SystemRandom().randrange(2**31)  # fresh every time; every failure names it
FILLS = ["original", "noise", "fill", "latent-noise", "latent-nothing"]


@pytest.fixture(autouse=True)
def drawn():
    print(f"drawn from seed {SEED}")
    random.seed(SEED)
    torch.manual_seed(SEED)
    np.random.seed(SEED)


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "picture.png", soft()), write(tmp_path / "mask.png", square())


def masked(files, **more):
    return Start(picture=enclosed(files[0]), mask=enclosed(files[1]), **more)


def begun(painter, start):
    def encode(pixels):
        with torch.no_grad():
            return painter.codec.encode(pixels.to(painter.precision))

    return beginning([start], (SIZE, SIZE), 3, False, encode)


# -- what is under the mask -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("fill", FILLS)
def test_what_the_blur_does_not_reach_stays_to_the_bit(files, fill, pixels):
    before = np.asarray(Image.open(files[0]))
    for blur in (0, 1.0):
        made = painted(tiny_painter(pixels=pixels), starting(RED, masked(files, strength=0.75, fill=fill, blur=blur)))[0].pixels
        far = blurred(square(), blur) == 0
        assert np.array_equal(made[far], before[far]) and (made[square() > 0] != before[square() > 0]).any()


def test_fills_are_what_their_names_say(files):
    """The sample at a level: alpha * what is under the mask + sigma * noise; elsewhere the picture's."""
    painter = tiny_painter(dtype=torch.float64)
    level, noise = NoiseLevel(torch.tensor(0.6), torch.tensor(0.8)), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    plain = begun(painter, masked(files))
    inside = plain.mask.expand_as(noise) > 0
    under = {"original": 0.6 * plain.clean + 0.8 * noise, "noise": noise, "latent-noise": 0.6 * noise + 0.8 * noise,
             "latent-nothing": 0.8 * noise}  # fmt: skip
    for fill, wanted in under.items():
        x = begun(painter, masked(files, fill=fill)).noised(level, noise)
        assert torch.allclose(x[inside], wanted[inside], atol=1e-6), fill
    filled = begun(painter, masked(files, fill="fill"))
    hidden = np.asarray(Image.open(files[0])).copy()
    hidden[square() > 0] = np.random.randint(0, 256, 3)
    other = begun(painter, masked((write(files[0].with_name("other.png"), hidden), files[1]), fill="fill"))
    assert torch.equal(filled.clean, other.clean) and not torch.equal(filled.clean, plain.clean)


def test_soft_edges_are_laid_over_as_far_as_twice_the_mask_says(files):
    start = masked(files, blur=1.5)
    made = begun(tiny_painter(), start)
    over, before = np.random.randint(0, 256, (1, SIZE, SIZE, 3), np.uint8), np.asarray(Image.open(files[0])).astype(float)
    share = np.minimum(2.0 * blurred(square(), 1.5), 255)[..., None] / 255
    assert abs(made.pasted(over)[0] - (share * over[0] + (1 - share) * before)).max() <= 0.5 + 1e-9
    assert (made.shown[0][made.white[0]] == 255).all()  # all that is painted shows


def test_a_mask_blurred_away_is_refused(files):
    dot = write(files[0].with_name("dot.png"), square(SIZE, 4, 5))
    (failed,) = tiny_painter().paint([starting(RED, masked((files[0], dot), blur=4))])
    assert "Blur the mask less" in failed.reason


def test_inverted_masks_paint_what_is_black(files):
    other = write(files[0].with_name("other.png"), 255 - square())
    one, two = (painted(tiny_painter(), starting(RED, s))[0] for s in (masked(files), masked((files[0], other), invert=True)))
    assert one.provenance.request.start.invert is False
    torch.manual_seed(SEED)
    painter = tiny_painter()
    one, two = (painted(painter, starting(RED, s))[0] for s in (masked(files), masked((files[0], other), invert=True)))
    assert np.array_equal(one.pixels, two.pixels)


def test_a_part_around_a_soft_mask_is_blended_once(tmp_path):
    size, blur = 50, 2.0
    files = write(tmp_path / "p.png", soft(size)), write(tmp_path / "m.png", square(size, 10, 23))
    start = only_masked(masked(files, blur=blur), (SIZE, SIZE), 4)
    assert start.box is not None and start.box[0] <= 10 - reach(blur) - 4 + 1
    part = painted(tiny_painter(), starting(RED, start))[0].pixels
    whole, before, share = pasted(start, part), soft_of(files[0]), blurred(square(size, 10, 23), blur) / 255
    assert np.array_equal(whole[share == 0], before[share == 0])
    left, top, right, bottom = start.box
    wanted = before.astype(float)
    wanted[top:bottom, left:right] = resize(part, (right - left, bottom - top))
    wanted = share[..., None] * wanted + (1 - share[..., None]) * before
    assert abs(whole - wanted).max() <= 0.5 + 1e-9


def soft_of(path):
    return np.asarray(Image.open(path).convert("RGB"))


# -- larger canvases ------------------------------------------------------------------------------------------------------


def test_a_larger_canvas_is_inpainting_of_its_new_part(files, tmp_path):
    """The same to the bit as a canvas and a mask made by hand; what was there stays outside the overlap."""
    painter = tiny_painter()
    start, canvas = extended(Start(picture=enclosed(files[0])), (7, 0, 0, 5), painter.step, 4)
    assert canvas == (24, 22) and start.extend == (8, 0, 0, 6)
    made = painted(painter, starting(RED, start).model_copy(update={"size": canvas}))[0].pixels
    assert made.shape == (22, 24, 3)
    before = soft_of(files[0])
    assert np.array_equal(made[:12, 12:], before[:12, 4:])  # 4 pixels from the new part on
    by_hand = Start(
        picture=enclosed(write(tmp_path / "canvas.png", grown(before, start.extend))),
        mask=enclosed(write(tmp_path / "new.png", rim((16, 16), start.extend, 4 - reach(start.blur)).astype(np.uint8) * 255)),
        blur=start.blur,
    )
    assert np.array_equal(made, painted(painter, starting(RED, by_hand).model_copy(update={"size": canvas}))[0].pixels)


@pytest.mark.parametrize("fill", FILLS)
def test_canvases_with_masks_of_ones_own_and_alone(files, fill):
    painter = tiny_painter()
    start, canvas = extended(masked(files, fill=fill, blur=0.1), (16, 0, 0, 0), painter.step, 0)
    made = painted(painter, starting(RED, start).model_copy(update={"size": canvas}))[0].pixels
    black = square() == 0
    assert np.array_equal(made[:, 16:][black], soft_of(files[0])[black])
    assert (made[:, 16:][~black] != soft_of(files[0])[~black]).any()
    around = only_masked(start, (SIZE, SIZE), 4)  # painted at the model's size, and pasted into the canvas
    (asked,) = requests(starting(RED, around))
    (whole,) = [e.artifact.pixels for e in paint_over(painter, [asked]) if isinstance(e, Done)]
    assert whole.shape == (16, 32, 3) and np.array_equal(whole[:, 16:][black], soft_of(files[0])[black])


def test_sides_of_the_canvas_do_not_fade(files):
    start, canvas = extended(Start(picture=enclosed(files[0])), (16, 0, 0, 0), 2, 8)
    shade = start.shown(start.at(canvas))
    assert (shade == shade[:1]).all() and shade[0, 0] == 255 and shade[0, -1] == 0 and 0 < shade[0, 22] < 255


# -- a second pass under a mask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pixels", "latents"])
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("blur", [0, 1.0])
def test_a_second_pass_keeps_what_is_not_masked(files, how, strength, blur):
    knobs = {"upscale": 2.0, "upscale_strength": strength, "upscale_in": how}
    painter = tiny_painter()
    request = requests(starting(RED, masked(files, blur=blur)), **knobs)[0]
    total, told, picture = story(painter, request, trace=True)
    assert picture.pixels.shape == (32, 32, 3) and total == len(told) == 2 + int(strength * 4)
    assert all(frame.shape == (32, 32, 3) for frame in picture.trace)
    before = resize(soft_of(files[0]), (32, 32), Filter.BICUBIC)
    reached = resize(np.minimum(2 * blurred(square(), blur).astype(int), 255).astype(np.uint8), (32, 32), Filter.BILINEAR) > 0
    assert np.array_equal(picture.pixels[~reached], before[~reached])
    assert (picture.pixels[10:22, 10:22] != before[10:22, 10:22]).any()
    assert 0 < reached.mean() < (0.5 if not blur else 0.85)


def test_a_second_pass_under_a_mask_depends_on_no_neighbour(files, tmp_path):
    painter = tiny_painter(dtype=torch.float64)
    other = Start(picture=enclosed(write(tmp_path / "other.png", soft())), mask=enclosed(files[1]))
    knobs = {"upscale": 2.0, "sampler": "ddpm"}
    both = painted(painter, starting(RED, masked(files)), starting(BLUE, other), **knobs)
    alone = painted(painter, starting(BLUE, other), **knobs)[0]
    assert both[1].provenance.batch == 2 and abs(both[1].pixels.astype(int) - alone.pixels).max() <= 1


def test_a_second_pass_of_a_network_that_sees_its_mask(tmp_path):
    write_twin(tmp_path / "twin", "inpainting", SEED % 10_000)
    painter = open_published(tmp_path / "twin", torch.device("cpu"), torch.float32)
    side = 8 * painter.parts.step
    files = write(tmp_path / "p.png", soft(side)), write(tmp_path / "m.png", square(side, side // 4, side // 2))
    request = Request(prompt="a red cat", size=(side, side), start=masked(files))
    made = painted(painter, request, upscale=2.0, steps=4)[0].pixels
    before = resize(soft_of(files[0]), (2 * side, 2 * side), Filter.BICUBIC)
    assert np.array_equal(made[: side // 2 - 4], before[: side // 2 - 4]) and made.shape == before.shape
    assert (made[side // 2 : side, side // 2 : side] != before[side // 2 : side, side // 2 : side]).any()
