"""Pictures from pictures: whole, under a mask, around one; against diffusers; and that nothing spoilt is called a picture."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from giverny.base.contracts import Done, Failed, Progress, Request, Start, Started
from giverny.base.errors import InputError
from giverny.base.images import png_bytes, to_pixels, to_tensor
from giverny.base.picture import Provenance
from giverny.base.start import enclosed, pasted
from tiny_painters import SIZE, WORDS, painted, requests, story, tiny_painter

SEED = random.SystemRandom().randrange(2**31)  # fresh every time; every failure names it
RED, BLUE = (WORDS[0], 3), (WORDS[1], 4)


@pytest.fixture(autouse=True)
def drawn():
    print(f"drawn from seed {SEED}")
    random.seed(SEED)
    torch.manual_seed(SEED)
    np.random.seed(SEED)


def soft(size=SIZE):
    """A random picture without hard edges, uint8 (size, size, 3)."""
    small = np.random.randint(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def square(size=SIZE, first=4, last=12):
    mask = np.zeros((size, size), np.uint8)
    mask[first:last, first:last] = 255
    return mask


def write(path, pixels):
    path.write_bytes(png_bytes(pixels))
    return path


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "picture.png", soft()), write(tmp_path / "mask.png", square())


def starting(one, start):
    return Request(prompt=one[0], seed=one[1], start=start)


# -- the whole picture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [False, True])
def test_at_strength_0_it_is_the_picture_through_the_autoencoder(files, pixels):
    painter = tiny_painter(pixels=pixels)
    start = Start(picture=enclosed(files[0]), strength=0)
    total, steps, picture = story(painter, starting(RED, start), trace=True)
    assert total == 0 and not steps and len(picture.trace) == 1
    seen = to_tensor(np.asarray(Image.open(files[0])))[None]
    with torch.inference_mode():
        assert np.array_equal(picture.pixels, to_pixels(painter.codec.decode(painter.codec.encode(seen)))[0])
    if pixels:
        assert np.array_equal(picture.pixels, np.asarray(Image.open(files[0])))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddpm", "dpmpp_2m_sde", "unipc"])
def test_from_pure_noise_at_strength_1_it_is_words_to_picture(files, sampler):
    painter = tiny_painter()  # zero terminal SNR: at the first level nothing is left of a picture
    plain = painted(painter, RED, sampler=sampler)[0]
    over = painted(painter, starting(RED, Start(picture=enclosed(files[0]), strength=1)), sampler=sampler)[0]
    assert np.array_equal(plain.pixels, over.pixels)
    less = painted(painter, starting(RED, Start(picture=enclosed(files[0]), strength=0.5)), sampler=sampler)[0]
    assert not np.array_equal(plain.pixels, less.pixels)


@pytest.mark.parametrize(
    ("program", "strength", "steps"), [("diffusers", 0.5, 5), ("diffusers", 0.04, 0), ("webui", 0.5, 6), ("webui", 0, 1),
                                       ("webui", 1, 10), ("webui_exact", 0.3, 10)])  # fmt: skip
def test_steps_are_counted_as_that_program_counts_them(files, program, strength, steps):
    start = Start(picture=enclosed(files[0]), strength=strength, program=program)
    total, told, _ = story(tiny_painter(), requests(starting(RED, start), steps=10)[0])
    assert total == len(told) == steps


def test_weaker_is_nearer_to_the_picture(files):
    painter = tiny_painter(pixels=True, prediction="sample")
    before = np.asarray(Image.open(files[0])).astype(int)
    far = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        made = painted(painter, starting(RED, Start(picture=enclosed(files[0]), strength=strength)), steps=20)[0]
        far.append(abs(made.pixels - before).mean())
    assert far[0] == 0 and far[0] < far[1] and far[0] < far[-1]


# -- under a mask ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["original", "noise"])
@pytest.mark.parametrize("pixels", [False, True])
def test_what_is_not_masked_stays_to_the_bit(files, fill, pixels):
    start = Start(picture=enclosed(files[0]), mask=enclosed(files[1]), strength=0.75, fill=fill)
    made = painted(tiny_painter(pixels=pixels), starting(RED, start))[0].pixels
    before, white = np.asarray(Image.open(files[0])), square() > 0
    assert np.array_equal(made[~white], before[~white])
    assert (made[white] != before[white]).any()


def test_transparent_parts_may_be_the_mask(tmp_path):
    pixels, white = soft(), square() > 0
    clear = np.dstack([pixels, np.where(white, 0, 255).astype(np.uint8)])
    Image.fromarray(clear).save(tmp_path / "hole.png")
    start = Start(picture=enclosed(tmp_path / "hole.png"), mask="alpha", strength=1)
    assert np.array_equal(start.whole()[1], white)
    made = painted(tiny_painter(), starting(RED, start))[0].pixels
    assert np.array_equal(made[~white], pixels[~white])


def test_only_around_the_mask_the_rest_is_not_even_resized(tmp_path):
    size = 50
    picture, mask = write(tmp_path / "p.png", soft(size)), write(tmp_path / "m.png", square(size, 10, 23))
    start = Start(picture=enclosed(picture), mask=enclosed(mask), box=(8, 6, 28, 26))
    part = painted(tiny_painter(), starting(RED, start))[0].pixels
    assert part.shape == (SIZE, SIZE, 3)
    whole, white = pasted(start, part), square(size, 10, 23) > 0
    before = np.asarray(Image.open(picture))
    assert np.array_equal(whole[~white], before[~white]) and (whole[white] != before[white]).any()


# -- batches, files, worker processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "heun"])
def test_pictures_stay_apart(files, tmp_path, masked, sampler):
    painter = tiny_painter(dtype=torch.float64)
    other = enclosed(write(tmp_path / "other.png", soft()))
    mask = enclosed(files[1]) if masked else None
    asked = [starting(RED, Start(picture=enclosed(files[0]), mask=mask)), starting(BLUE, Start(picture=other, mask=mask)),
             starting(BLUE, Start(picture=other, mask=mask, strength=0.3)), Request(prompt=RED[0], seed=9)]  # fmt: skip
    together = painted(painter, *asked, sampler=sampler)
    assert [p.provenance.batch for p in together] == [2, 2, 1, 1]
    for one, picture in zip(asked, together, strict=True):
        alone = painted(painter, one, sampler=sampler)[0].pixels
        assert abs(alone.astype(int) - picture.pixels).max() <= 1


def test_requests_travel_with_their_files_and_provenance_without(files):
    start = Start(picture=enclosed(files[0]), mask=enclosed(files[1]))
    request = starting(RED, start)
    assert Request.model_validate_json(request.model_dump_json()) == request and "start" in request.asks
    assert "start" not in Request().model_dump() and "start" not in Request().model_dump_json()
    told = painted(tiny_painter(), request)[0].provenance
    words = told.model_dump_json()
    assert "content" not in words and len(words) < 3000
    kept = Provenance.model_validate_json(words).request.start
    assert kept.picture.sha256 == start.picture.sha256 and kept.picture.name == str(files[0]) and kept.strength == 0.6
    with pytest.raises(ValueError, match="another SHA-256"):
        Start(picture={**start.picture.model_dump(), "content": b"other"})


# -- what cannot be started from -------------------------------------------------------------------------------------------


def animation():
    out = io.BytesIO()
    frames = [Image.fromarray(soft()) for _ in range(3)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def cmyk():
    out = io.BytesIO()
    Image.fromarray(soft()).convert("CMYK").save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("picture", "mask", "said"),
    [
        (animation, None, "still picture.*animation of 3 frames"),
        (cmyk, None, "grey or RGB.*CMYK"),
        (lambda: b"no picture", None, "picture file.*no picture format"),
        (lambda: png_bytes(soft())[:-40], None, "readable picture file"),
        (lambda: png_bytes(soft()), lambda: png_bytes(square(20)), "mask as large as the picture, 16 x 16.*of 20 x 20"),
        (lambda: png_bytes(soft()), lambda: png_bytes(square() * 0), "something white.*mask.png, which has none"),
        (lambda: png_bytes(soft()), "alpha", "something white.*which is opaque"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path, picture, mask, said):
    (tmp_path / "picture.png").write_bytes(picture())
    if callable(mask):
        (tmp_path / "mask.png").write_bytes(mask())
        mask = enclosed(tmp_path / "mask.png")
    start = Start(picture=enclosed(tmp_path / "picture.png"), mask=mask)
    failed, *rest = tiny_painter().paint([starting(RED, start)])
    assert isinstance(failed, Failed) and not rest and "\n" not in failed.reason
    with pytest.raises(InputError, match=said):
        raise InputError(failed.reason, "")


def test_further_refusals(files, tmp_path):
    with pytest.raises(InputError, match=r"readable picture file.*No such file"):
        enclosed(tmp_path / "missing.png")
    picture = enclosed(files[0])
    for start, knobs, said in (
        (Start(picture=picture.left), {}, "its name alone"),
        (Start(picture=picture, strength=0, program="webui_exact"), {}, "strength above 0"),
        (Start(picture=picture, box=(0, 0, 17, 4)), {}, "a box within 16 x 16"),
    ):
        failed = next(tiny_painter().paint(requests(starting(RED, start), **knobs)))
        assert isinstance(failed, Failed) and said in failed.reason


# -- the guard ------------------------------------------------------------------------------------------------------------


def test_spoilt_weights_fail_and_say_where(files):
    painter = tiny_painter()
    painter.parts.network.conv_in.weight.data[0] = torch.nan
    events = list(painter.paint(requests(RED, BLUE), previews=True, trace=True))
    assert [type(e) for e in events] == [Started, Started, Failed, Failed]
    assert all("the denoiser at step 1 of 4" in e.reason and "--precision float32" in e.reason for e in events[2:])
    for part, stage in (("decoder", "decoding"), ("encoder", "encoding the picture to start from")):
        painter = tiny_painter()
        getattr(painter.parts.autoencoder, part).conv_in.weight.data[0] = torch.inf
        asked = starting(RED, Start(picture=enclosed(files[0])))
        *before, last = painter.paint([asked], previews=True)
        assert isinstance(last, Failed) and stage in last.reason and not [e for e in before if isinstance(e, Done)]
        assert len([e for e in before if isinstance(e, Progress)]) == (2 if part == "decoder" else 0)


def test_a_spoilt_picture_leaves_its_neighbours_alone(monkeypatch):
    painter = tiny_painter()
    plain = painted(painter, RED, BLUE)
    inner = painter.denoise

    class Poisoned:
        """The painter's own denoiser, whose words about the first picture break off after half the run."""

        can = inner.can
        prepare = staticmethod(inner.prepare)
        calls = 0

        def __call__(self, x, level, prepared, probe=None):
            said = inner(x, level, prepared, probe).clone()
            self.calls += 1
            if self.calls == 3:
                said[0] = torch.nan
            return said

    painter.denoise = Poisoned()
    events = list(painter.paint(requests(RED, BLUE), previews=True, trace=True))
    [failed] = [e for e in events if isinstance(e, Failed)]
    [done] = [e for e in events if isinstance(e, Done)]
    assert failed.id == "0" and "step 3 of 4" in failed.reason and done.id == "1"
    assert [e.step for e in events if isinstance(e, Progress) and e.id == "0"] == [1, 2]
    assert np.array_equal(done.artifact.pixels, plain[1].pixels)


def test_what_overflows_in_float16_is_decoded_in_float32():
    exact, coarse = tiny_painter(dtype=torch.float32), None
    torch.manual_seed(SEED)
    coarse = tiny_painter(dtype=torch.float16)
    for painter in (exact, coarse):
        decoder = painter.parts.autoencoder.decoder
        decoder.conv_in.weight.data *= 3000  # beyond 65504 before the first normalisation, which brings it back
        decoder.conv_in.bias.data *= 3000
    latents = 30 * torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        assert not coarse.codec.decode(latents.half()).isfinite().all()
        made = coarse._decoded(latents, coarse.codec)
        finer = coarse._finer()
        assert next(finer.autoencoder.parameters()).dtype == torch.float32
        assert made.isfinite().all() and torch.equal(made, finer.decode(latents))
    assert next(coarse.parts.autoencoder.parameters()).dtype == torch.float16
