"""Soft masks against scipy's Gaussian, A1111's fill against its definition in Pillow, and canvases that grow."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from giverny.base.images import png_bytes
from giverny.base.masks import blended, blurred, grown, reach, rim, surroundings
from giverny.base.start import Start, enclosed
from giverny.pipelines.image2image import extended

SEED = random.SystemRandom().randrange(2**31)  # fresh every time; every failure names it


@pytest.fixture(autouse=True)
def drawn():
    print(f"drawn from seed {SEED}")
    np.random.seed(SEED)
    random.seed(SEED)


def shapes(high, wide):
    mask = np.zeros((high, wide), np.uint8)
    for _ in range(3):
        top, left = random.randrange(high), random.randrange(wide)
        mask[top : top + random.randint(1, high), left : left + random.randint(1, wide)] = 255
    return mask


def soft(high, wide):
    small = np.random.randint(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("sigma", [0.3, 1, 2.5, 4, 11.7, 30])
def test_blur_is_the_gaussian_that_the_web_interface_takes(sigma):
    """Its kernel has 2 int(2.5 sigma + 0.5) + 1 taps, which is scipy's with truncate=2.5, and mirrors at the borders."""
    from scipy.ndimage import gaussian_filter1d

    mask = shapes(random.randint(3, 70), random.randint(3, 70))
    wanted = mask.astype(float)
    for axis in (1, 0):
        wanted = gaussian_filter1d(wanted, sigma, axis, truncate=2.5, mode="mirror")
    made = blurred(mask, sigma)
    assert abs(made - wanted).max() < 1.01  # rounded twice
    assert made.dtype == np.uint8 and (np.array_equal(made, mask) == (reach(sigma) == 0))


def test_blur_is_near_pillows():
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 25:60] = 255
    other = np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(4)), float)
    assert abs(blurred(mask, 4) - other).max() < 16  # theirs is of boxes


def test_nothing_changes_beyond_the_reach():
    mask = np.zeros((61, 61), np.uint8)
    mask[30, 30] = 255
    for sigma in (0.5, 2, 5):
        seen = np.argwhere(blurred(255 * (mask == 0).astype(np.uint8), sigma) != 255)
        assert abs(seen - 30).max() <= reach(sigma)


def fill_by_pillow(pixels, shade):
    """modules/masking.py's, in its own terms: layers of premultiplied pictures, composited in eight bits."""
    kept = Image.new("RGBa", pixels.shape[1::-1])
    kept.paste(Image.fromarray(pixels).convert("RGBA").convert("RGBa"), mask=Image.fromarray(255 - shade))
    made = Image.new("RGBA", kept.size)
    for radius, times in ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1)):
        for _ in range(times):
            made.alpha_composite(kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return np.asarray(made.convert("RGB")).astype(int)


@pytest.mark.parametrize("sigma", [0, 4])
def test_fill_is_the_web_interfaces(sigma):
    pixels = soft(96, 128)
    mask = np.zeros((96, 128), np.uint8)
    mask[20:70, 40:90] = 255
    mask = blurred(mask, sigma)
    made = surroundings(pixels, mask).astype(int)
    far = abs(made - fill_by_pillow(pixels, mask))
    assert far.mean() < 1.5 and far.max() <= 12, (far.mean(), far.max())  # theirs is rounded eleven times
    assert np.array_equal(made[mask == 0], pixels[mask == 0])


def test_fill_of_one_colour_is_that_colour_and_without_surroundings_it_is_grey():
    pixels = np.full((40, 40, 3), (200, 30, 90), np.uint8)
    mask = shapes(40, 40)
    mask[0, 0] = 0
    assert abs(surroundings(pixels, mask).astype(int) - pixels).max() <= 6  # where little is left, eight bits are coarse
    assert (surroundings(pixels, np.full((40, 40), 255, np.uint8)) == 127).all()


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_blending_is_exact_at_its_ends_and_between_its_sides(a, b, shade):
    over, under = np.full((1, 1, 3), a, np.uint8), np.full((1, 1, 3), b, np.uint8)
    made = int(blended(over, under, np.full((1, 1), shade, np.uint8))[0, 0, 0])
    assert min(a, b) <= made <= max(a, b) and abs(made - (a * shade + b * (255 - shade)) / 255) <= 0.5
    assert made == {0: b, 255: a}.get(shade, made)


@given(st.tuples(*[st.integers(0, 9)] * 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 14))
def test_canvases_grow_around_the_picture(margins, wide, high, overlap):
    left, top, right, bottom = margins
    pixels = np.random.randint(0, 256, (high, wide, 3), np.uint8)
    canvas, mask = grown(pixels, margins), rim((wide, high), margins, overlap)
    assert canvas.shape[:2] == mask.shape == (top + high + bottom, left + wide + right)
    assert np.array_equal(canvas[top : top + high, left : left + wide], pixels)
    new = grown(np.zeros((high, wide), bool), margins, 1).astype(bool)
    assert mask[new].all()
    for y, x in np.argwhere(~new):  # painted where the new part is so near in a straight line
        near = [x - left < overlap and left, left + wide - 1 - x < overlap and right,
                y - top < overlap and top, top + high - 1 - y < overlap and bottom]  # fmt: skip
        assert mask[y, x] == any(near)


@pytest.mark.parametrize("margins", [(5, 0, 0, 0), (0, 0, 7, 0), (3, 0, 3, 0), (0, 9, 0, 0), (1, 2, 3, 4)])
def test_sizes_are_rounded_up_to_what_the_model_paints(tmp_path, margins):
    size = random.randint(20, 60), random.randint(20, 60)
    (tmp_path / "p.png").write_bytes(png_bytes(soft(size[1], size[0])))
    start, canvas = extended(Start(picture=enclosed(tmp_path / "p.png")), margins, 8)
    assert canvas[0] % 8 == canvas[1] % 8 == 0
    assert all(now >= was for now, was in zip(start.extend, margins, strict=True))
    for side, length in ((0, size[0]), (1, size[1])):
        asked = length + margins[side] + margins[side + 2]
        assert canvas[side] == length + start.extend[side] + start.extend[side + 2] == -(-asked // 8) * 8
        if margins[side] + margins[side + 2] and not all((margins[side], margins[side + 2])):
            grows = side if margins[side] else side + 2
            assert start.extend[grows] == canvas[side] - length  # no side grows that was not to


def test_overlap_holds_all_that_changes(tmp_path):
    (tmp_path / "p.png").write_bytes(png_bytes(soft(48, 48)))
    for overlap, blur in ((8, 0), (8, 2.0), (6, 30.0), (0, 0)):
        given_start = Start(picture=enclosed(tmp_path / "p.png"), blur=blur)
        start, canvas = extended(given_start, (16, 0, 0, 8), 8, overlap)
        seen = start.at(canvas)
        shade, inner = start.shown(seen), (slice(0, 48), slice(16, 64))
        assert canvas == (64, 56) and np.array_equal(seen.pixels[inner], soft_of(tmp_path / "p.png"))
        assert not shade[: 48 - overlap, 16 + overlap :].any() and shade[:48, :16].all() and shade[48:].all()
        if overlap and blur <= 2:
            edge = shade[10, 16 : 16 + overlap].astype(int)  # falls towards the picture
            assert edge[0] == 255 and (np.diff(edge) <= 0).all() and edge[-1] < 128


def soft_of(path):
    return np.asarray(Image.open(path).convert("RGB"))
