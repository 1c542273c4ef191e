"""Guidance rescaled, thresholded, led by CLIP. Proof: diffusers, exact posteriors, finite differences."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from giverny.assembly import open_clip, open_painter
from giverny.base.contracts import Condition, Failed, NoiseLevel, Progress, Request, Toward, Variation
from giverny.base.errors import InputError
from giverny.base.images import to_pixels, to_tensor
from giverny.base.runtime import PictureStreams
from giverny.base.table import level_of
from giverny.denoisers.precondition import PREDICTIONS, DiscreteDenoiser
from giverny.layers.packed import available
from giverny.painters.diffusion.backends import choose_backend
from giverny.painters.diffusion.estimate import estimates, origin_of
from giverny.painters.diffusion.guides import ClipGuide, cuts_of, words_of
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.painters.diffusion.painter import DiffusionPainter
from giverny.painters.diffusion.told import steady
from giverny.sampling.noise import PictureNoise
from giverny.sampling.samplers import get_sampler, integrate
from giverny.sampling.schedules import levels
from giverny.steering.clip_guidance import NOISIEST, clip_guided, cutouts, similarity
from giverny.steering.contrast import rescaled, thresholded
from giverny.steering.guidance import classifier_free, guided, position
from tiny_painters import WORDS, painted, requests, tiny_clip, tiny_painter

needs_diffusers = pytest.mark.xdist_group("diffusers")
SEED = random.SystemRandom().randrange(2**31)  # fresh every time; every failure names it
RED, BLUE = (WORDS[0], 3), (WORDS[1], 4)
SOME = ("ddpm", "euler", "heun", "dpmpp_2m", "plms", "unipc", "dpmpp_3m_sde")  # of each kind; test_painter_sampling has all


@pytest.fixture(autouse=True)
def drawn():
    print(f"drawn from seed {SEED}")
    random.seed(SEED)
    torch.manual_seed(SEED)


def told(rows, dtype=torch.float64):
    return Condition(torch.randn(rows, 5, 16, dtype=dtype), torch.ones(rows, 5, dtype=torch.bool))


def relative(given, wanted):
    return float((given - wanted).norm() / wanted.norm())


# -- rescaled -------------------------------------------------------------------------------------------------------------


@needs_diffusers
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_rescaling_is_that_of_diffusers_on_what_the_network_says(prediction):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    parts = tiny_painter(prediction=prediction, dtype=torch.float64).parts
    network, denoiser = parts.network, parts.denoiser
    for _ in range(3):
        rows, scale, share = random.randint(1, 3), random.uniform(1.5, 9), random.uniform(0.05, 1)
        time = random.uniform(1, 990)
        level = level_of(denoiser.table, time)
        alpha, sigma = float(level.alpha), float(level.sigma)
        x = torch.randn(rows, 4, random.choice([4, 8]), 6, dtype=torch.float64)
        yes, no = told(rows), told(rows)
        with torch.no_grad():
            t = torch.full((rows,), time, dtype=torch.float64)
            words, none = (network(x, t, network.prepare(c)) for c in (yes, no))
            wanted = rescale_noise_cfg(none + scale * (words - none), words, share)
            plan = classifier_free(yes, no, scale)
            clean = guided(denoiser, plan, 5, rescale=share, origin=origin_of(denoiser))(x, level, 0)
        back = {"epsilon": (x - alpha * clean) / sigma, "v": (alpha * x - clean) / sigma, "sample": clean}[prediction]
        assert relative(back, wanted) < 1e-6
        assert not torch.allclose(wanted, none + scale * (words - none), rtol=1e-3)  # there was something to take back


def test_rescaling_keeps_to_its_pictures_and_to_guided_levels():
    painter = tiny_painter(dtype=torch.float64)
    denoiser, origin = painter.parts.denoiser, origin_of(painter.parts.denoiser)
    x, level = torch.randn(3, 4, 4, 4, dtype=torch.float64), level_of(denoiser.table, 400)
    yes, no = told(3), told(3)
    plan = classifier_free(yes, no, 5.0, (0.0, 0.9))
    both = guided(denoiser, plan, 5, rescale=0.7, origin=origin)
    for i in range(3):
        one = [next(c.split([1])) for c in (list(c.split([1, 1, 1]))[i] for c in (yes, no))]
        alone = guided(denoiser, classifier_free(*one, 5.0), 5, rescale=0.7, origin=origin)
        torch.testing.assert_close(alone(x[i : i + 1], level, 0), both(x, level, 0)[i : i + 1])
    pure = NoiseLevel(torch.tensor(0.0), torch.tensor(1.0))  # outside the interval, where the words alone speak
    assert torch.equal(both(x, pure, 0), guided(denoiser, classifier_free(yes, None, 1.0), 5)(x, pure, 0))
    kept = guided(denoiser, plan, 5, every=2, rescale=0.7, origin=origin)
    plain = guided(denoiser, plan, 5, every=2)
    near = level_of(denoiser.table, 390)
    for here in (level, near):  # what is kept is kept unscaled, and scaled at its use
        words = guided(denoiser, classifier_free(yes, None, 1.0), 5)(x, here, 0)
        torch.testing.assert_close(kept(x, here, 0), rescaled(plain(x, here, 0), words, origin(x, here), 0.7))
    nothing = torch.zeros(1, 2, 3, 3)
    assert torch.equal(rescaled(nothing, nothing, nothing, 1.0), nothing)  # a network that says nothing yet
    with pytest.raises(ValueError, match="origin"):
        guided(denoiser, plan, 5, rescale=0.5)


# -- thresholded ----------------------------------------------------------------------------------------------------------


@needs_diffusers
def test_thresholding_is_that_of_diffusers():
    from diffusers import DDPMScheduler

    # In float32 the quantile lies between two values by a share of which their float32 rank n p keeps 1e-4 at 1,200 values.
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for percentile in (0.995, 1.0, 0.5, random.uniform(0.01, 0.999)):
            theirs = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=1e9)
            shape = (random.randint(1, 4), random.choice([1, 3]), random.randint(1, 20), random.randint(1, 20))
            clean = (
                torch.randn(shape, dtype=dtype) * torch.tensor([0.2, 1.0, 3.0, 9.0], dtype=dtype)[: shape[0], None, None, None]
            )
            ours = thresholded(clean, percentile)
            assert (ours - theirs._threshold_sample(clean)).abs().max() < limit and ours.abs().max() <= 1
    calm = torch.rand(2, 3, 4, 4) * 2 - 1
    assert torch.equal(thresholded(calm, 0.995), calm)


def test_thresholding_takes_pictures_larger_than_quantiles_do():
    large = torch.randn(1, 1, 4097, 4096)
    with pytest.raises(RuntimeError):
        torch.quantile(large.flatten(1), 0.995, dim=1)
    assert thresholded(large, 0.995).abs().mean() == pytest.approx(float(large.abs().clamp(max=2.807).mean() / 2.807), rel=1e-3)


def test_thresholding_is_for_pixels_and_is_refused_for_latents():
    failed = list(tiny_painter().paint(requests(RED, threshold=0.995)))
    assert len(failed) == 1 and isinstance(failed[0], Failed) and "guidance_rescale" in failed[0].reason
    painter = tiny_painter(pixels=True)
    positive, negative = painter._conditions(requests(RED))
    x, level = 3 * torch.randn(1, 3, 16, 16), level_of(painter.parts.denoiser.table, 300)
    asked = DiffusionKnobs(guidance=8.0, threshold=0.9)
    parts = painter.parts, painter.denoise
    bounded = estimates(*parts, asked, steady(asked, positive, negative), requests(RED))(4)(x, level, 0)
    loose = asked.model_copy(update={"threshold": 0.0})
    free = estimates(*parts, loose, steady(asked, positive, negative), requests(RED))(4)(x, level, 0)
    assert free.abs().max() > 1.5 and bounded.abs().max() <= 1
    bound = torch.quantile(free.abs().flatten(1), 0.9, dim=1).clamp(min=1)[:, None, None, None]
    torch.testing.assert_close(bounded, free.clamp(-bound, bound) / bound)
    strong = {"guidance": 8.0, "sampler": "euler"}
    assert not np.array_equal(
        painted(painter, RED, **strong)[0].pixels, painted(painter, RED, threshold=0.9, **strong)[0].pixels
    )


# -- CLIP: the formula ----------------------------------------------------------------------------------------------------


class Linear:
    """A judge that multiplies: its likelihood exp(strength * w . picture) has an exact posterior."""

    size = 4

    def look(self, pictures):
        return pictures.flatten(1)


@pytest.mark.parametrize("form", ["preserving", "exploding"])
def test_the_push_is_what_bayes_adds_to_the_mean(form):
    """Data N(m, c^2), words that tilt it by exp(s w . clean): the posterior mean given x is known in closed form."""
    mean, spread = torch.randn(1, 2, 3, 3, dtype=torch.float64), random.uniform(0.3, 2)
    wanted, strength = torch.randn(4, 18, dtype=torch.float64), torch.tensor([0.0, 0.5, 3.0, 20.0], dtype=torch.float64)

    def exact(x, level, step):
        alpha, sigma = level.for_sample(x)
        return (mean * sigma**2 + alpha * spread**2 * x) / (sigma**2 + alpha**2 * spread**2)

    pushed = clip_guided(exact, lambda clean: clean, Linear(), wanted, strength)
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    for ratio in (0.01, 0.7, 5.0, 50.0):
        size = math.hypot(1, ratio) if form == "preserving" else 1.0
        level = NoiseLevel(*(torch.tensor(v / size, dtype=torch.float64) for v in (1.0, ratio)))
        alpha, sigma = level.for_sample(x)
        variance = sigma**2 * spread**2 / (sigma**2 + alpha**2 * spread**2)
        tilted = exact(x, level, 0) + strength[:, None, None, None] * variance * wanted.unflatten(1, (2, 3, 3))
        torch.testing.assert_close(pushed(x, level, 0), tilted)
    for ratio in (math.tan(NOISIEST * math.pi / 2) * 1.01, 1e4, math.inf):  # nothing is pushed from all but pure noise
        level = NoiseLevel(torch.tensor(1.0 if ratio < math.inf else 0.0), torch.tensor(min(ratio, 1e9)))
        assert torch.equal(pushed(x, level, 0), exact(x, level, 0))


def test_the_push_is_the_difference_of_the_cosine_through_decoder_and_denoiser():
    """Central differences of the whole chain, in float64, along drawn directions; each picture's own words."""
    painter = tiny_painter(dtype=torch.float64)
    wanted = requests(RED, BLUE, ("", 5))
    knobs = DiffusionKnobs(guidance=3.0, guidance_rescale=0.4, clip_guidance=70.0, guidance_from=0.1, guidance_to=0.8)
    guide, conditions = painter.guide(), painter._conditions(wanted)
    parts, words = painter.parts, painter.guide().texts(WORDS[:2])
    with_clip = estimates(parts, painter.denoise, knobs, steady(knobs, *conditions), wanted, guide)(5)
    unled = knobs.model_copy(update={"clip_guidance": 0.0})
    without = estimates(parts, painter.denoise, unled, steady(unled, *conditions), wanted)(5)
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    for where in (0.15, 0.5, 0.79):
        angle = torch.tensor(where * math.pi / 2, dtype=torch.float64)
        level = NoiseLevel(angle.cos(), angle.sin())

        def cosine(noisy, level=level):
            seen = guide.look(parts.codec.decode(without(noisy, level, 0)))[:2]
            return F.cosine_similarity(seen, words)

        push = (with_clip(x, level, 0) - without(x, level, 0)) * float(level.alpha / level.sigma**2) / 70
        assert push[2].abs().max() < 1e-12  # no words, no push; attention sums in another order where gradients are kept
        for _ in range(3):
            way = torch.randn_like(x)
            step = 1e-5
            wished = (cosine(x + step * way) - cosine(x - step * way)) / (2 * step)
            given = (push * way).flatten(1).sum(1)[:2]
            assert (given - wished).abs().max() < 1e-6 * wished.abs().max() + 1e-11, (given, wished)
    for where in (0.05, 0.85):  # the interval of guidance is CLIP's as well
        angle = torch.tensor(where * math.pi / 2, dtype=torch.float64)
        level = NoiseLevel(angle.cos(), angle.sin())
        assert where == pytest.approx(position(level))
        torch.testing.assert_close(with_clip(x, level, 0), without(x, level, 0))


def test_a_guide_sees_what_its_space_sees():
    for channels in (3, 1):
        space = tiny_clip(channels)
        space._mean, space._deviation = torch.rand(channels, 1, 1), 0.2 + torch.rand(channels, 1, 1)
        guide = ClipGuide(space)
        for shape in ((16, 16), (37, 50), (16, 23), (9, 8)):
            pixels = np.random.default_rng(SEED).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
            pixels = np.stack([to_pixels(F.avg_pool2d(to_tensor(p), 3, 1, 1)) for p in pixels])
            seen, known = guide.look(to_tensor(pixels)), space.pictures(pixels)
            exact = shape == (16, 16) and channels == 3
            # elsewhere the space rounds to bytes on its way, and resamples by another filter
            assert (seen - known).abs().max() < 1e-5 if exact else (seen * known).sum(1).min() > 0.98, (channels, shape)
        assert torch.equal(guide.look(5 * to_tensor(pixels)), guide.look((5 * to_tensor(pixels)).clamp(-1, 1)))
    assert guide.texts(WORDS).shape == (3, 12) and not guide.texts(WORDS).is_inference()
    grey = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(guide.look(grey), guide.look(grey.expand(-1, 3, -1, -1)))


def test_cutouts_lie_inside_and_are_brought_to_one_size():
    height, width, side = random.randint(9, 30), random.randint(9, 30), 6
    ramp = torch.arange(width).double().expand(1, 1, height, width) / width
    draws = torch.rand(1, 40, 3, dtype=torch.float64)
    found = cutouts(torch.cat([ramp, ramp.mT.flip(2) if height == width else ramp], 1), draws, side)
    assert found.shape == (40, 2, side, side)
    least = min(height, width, side)
    for cut, (large, _, right) in zip(found, draws[0].tolist(), strict=True):
        edge = least + round(large * (min(height, width) - least))
        left = round(right * (width - edge))
        assert float(cut[0].mean()) == pytest.approx((left + (edge - 1) / 2) / width, abs=0.3 / width)
    whole = torch.rand(2, 3, 6, 6)
    assert torch.equal(cutouts(whole, torch.rand(2, 2, 3), 6), whole.repeat_interleave(2, 0))
    edges = cutouts(ramp, torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.5, 0.5]]]), side)
    torch.testing.assert_close(edges[0], ramp[0, :, :side, :side])
    torch.testing.assert_close(edges[1], ramp[0, :, -side:, -side:])
    guide = ClipGuide(tiny_clip(size=8))
    pictures, rows = torch.rand(2, 3, 16, 16) * 2 - 1, torch.rand(2, 3, 3)
    by_hand = [
        (guide.look(cutouts(pictures[i : i + 1], rows[i : i + 1], 8)) * guide.texts(WORDS)[i]).sum(1).mean() for i in (0, 1)
    ]
    torch.testing.assert_close(similarity(guide, pictures, guide.texts(WORDS)[:2], rows), torch.stack(by_hand))


# -- the painter ----------------------------------------------------------------------------------------------------------

ALL = {"guidance": 4.0, "guidance_rescale": 0.6, "clip_guidance": 200.0, "clip_guidance_cutouts": 2, "guidance_every": 2}


def test_with_all_off_pictures_are_what_the_rooms_below_make():
    """The painter of before, by hand: levels, guidance, sampler, codec and nothing else."""
    for backend, sampler in itertools.product(("plain", "packed"), ("dpm++ 2m", "ddpm")):
        if backend == "packed" and not available(torch.device("cpu")):
            continue
        parts = tiny_painter().parts
        chosen = choose_backend(parts, backend, torch.device("cpu"), torch.float32) or (None, "plain")
        painter = DiffusionPainter(parts, "", "", (16, 16), {}, torch.device("cpu"), torch.float32, *chosen)
        knobs = {"steps": 5, "guidance": 2.5, "guidance_to": 0.8, "guidance_every": 2, "sampler": sampler}
        off = {"guidance_rescale": 0.0, "threshold": 0.0, "clip_guidance": 0.0, "upscale": 1.0}
        off |= {"clip_guidance_cutouts": 7, "clip_model": "nobody", "upscale_strength": 0.9, "upscale_in": "latents"}
        plain = [p.pixels for p in painted(painter, RED, BLUE, **knobs)]
        again = [p.pixels for p in painted(painter, RED, BLUE, **knobs, **off)]
        spread = levels(parts.denoiser.table, 5, "normal")
        condition = parts.condition([RED[0], BLUE[0], "", ""])
        plan = classifier_free(*condition.split([2, 2]), 2.5, (0.0, 0.8))
        noise = PictureNoise(PictureStreams([RED[1], BLUE[1]]), (4, 8, 8))
        estimate = guided(painter.denoise, plan, 5, every=2)
        final = integrate(get_sampler(sampler)(estimate, noise.initial(spread[0]), spread, noise))
        with torch.inference_mode():
            wanted = to_pixels(painter.codec.decode(final))
        for i in range(2):
            assert np.array_equal(plain[i], wanted[i]) and np.array_equal(again[i], wanted[i])


@pytest.mark.parametrize("pixels", [False, True])
def test_every_knob_works_with_every_sampler_and_keeps_pictures_apart(pixels):
    """Latents in float64, so that what a batch rounds differently does not grow to a step of 255."""
    painter = tiny_painter(pixels=pixels, dtype=torch.float64)
    knobs = {**ALL, "threshold": 0.98} if pixels else ALL
    asked = [RED, BLUE, ("", 5), Request(prompt="", seed=1, toward=Toward(prompt=WORDS[2], share=0.3))]
    for sampler in SOME:
        together = painted(painter, *asked, **knobs, sampler=sampler)
        off = painted(painter, *asked, sampler=sampler, guidance=4.0)
        for one, picture, plain in zip(asked, together, off, strict=True):
            assert abs(painted(painter, one, **knobs, sampler=sampler)[0].pixels.astype(int) - picture.pixels).max() <= 1
            if one == ("", 5) and not pixels:  # nothing to follow, nothing to move away from; no range to keep to
                assert abs(picture.pixels.astype(int) - plain.pixels).max() <= 1
            else:
                assert not np.array_equal(picture.pixels, plain.pixels)
            assert all(picture.provenance.knobs[name] == value for name, value in knobs.items())
        assert np.array_equal(painted(painter, asked[0], **knobs, sampler=sampler)[0].pixels,
                              painted(painter, asked[0], **knobs, sampler=sampler)[0].pixels)  # fmt: skip


def test_each_knob_alone_changes_the_picture():
    painter = tiny_painter()
    plain = painted(painter, RED, guidance=4.0)[0].pixels
    for one in ({"guidance_rescale": 0.8}, {"clip_guidance": 300.0}, {"clip_guidance": 300.0, "clip_guidance_cutouts": 1}):
        assert not np.array_equal(painted(painter, RED, guidance=4.0, **one)[0].pixels, plain), one
    small = tiny_clip(size=8)  # cutouts are cut where the picture is larger than what is looked at
    painter.clips = lambda name: small
    cut, whole = (painted(painter, RED, clip_model="small", clip_guidance=300.0, clip_guidance_cutouts=n)[0] for n in (3, 0))
    assert not np.array_equal(cut.pixels, whole.pixels) and cut.provenance.knobs["clip_model"] == "small"


def test_a_walk_keeps_its_ends_under_clip():
    """The cuts are drawn from the picture's own streams, the words lie between: shares 0 and 1 are either end to the bit."""
    painter, space = tiny_painter(), tiny_clip(size=8)
    painter.clips = lambda name: space
    knobs = {**ALL, "sampler": "euler a"}
    here, other, there = painted(painter, RED, (RED[0], 9), (BLUE[0], RED[1]), **knobs)
    one = {"prompt": RED[0], "seed": RED[1]}
    for share, noise_end, word_end in ((0.0, here, here), (1.0, other, there)):
        varied = Request(**one, variation=Variation(seed=9, strength=share))
        toward = Request(**one, toward=Toward(prompt=BLUE[0], share=share))
        alike = painted(painter, varied, (RED[0], 9), toward, **knobs)  # in a batch of three, as above
        assert np.array_equal(alike[0].pixels, noise_end.pixels) and np.array_equal(alike[2].pixels, word_end.pixels)
    halfway = cuts_of([Request(**one, variation=Variation(seed=9, strength=0.5))], 500)()
    assert halfway.shape == (1, 500, 3) and abs(halfway.mean() - 0.5) < 0.06 and abs(halfway.var() - 1 / 12) < 0.02
    vectors, weights = words_of(painter.guide(), [Request(prompt="", toward=Toward(prompt=WORDS[0], share=0.25)), Request()])
    assert weights.tolist() == [0.25, 0.0] and torch.allclose(vectors.norm(dim=1), torch.ones(2), atol=1e-5)


@pytest.mark.skipif(not available(torch.device("cpu")), reason="this build of torch lacks oneDNN")
def test_the_packed_backend_is_guided_by_the_same_gradient():
    plain = tiny_painter()
    chosen = choose_backend(plain.parts, "packed", torch.device("cpu"), torch.float32)
    packed = DiffusionPainter(
        plain.parts, "", "", (16, 16), {"steps": 4}, torch.device("cpu"), torch.float32, *chosen, plain.clips
    )
    for painter in (plain, packed):
        painted(painter, RED)  # in inference mode: what it keeps of that must not get into the way
    ours, theirs = (painted(p, RED, BLUE, **ALL) for p in (packed, plain))
    assert all(abs(a.pixels.astype(int) - b.pixels).max() <= 1 for a, b in zip(ours, theirs, strict=True))
    assert ours[0].provenance.backend == "packed"
    assert isinstance(plain.parts.denoiser, DiscreteDenoiser) and plain.parts.network.conv_in.weight.grad is None


def test_closing_cancels_and_no_mode_leaks():
    painter = tiny_painter()
    stream = painter.paint(requests(RED, steps=50, clip_guidance=50.0))
    while not isinstance(next(stream), Progress):
        pass
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    stream.close()
    assert list(stream) == []
    with torch.no_grad():  # as training paints its previews
        inside = painted(painter, RED, clip_guidance=50.0)[0]
    assert np.array_equal(inside.pixels, painted(painter, RED, clip_guidance=50.0)[0].pixels)


def test_a_painter_without_clip_refuses_alone():
    painter = tiny_painter()

    def none(name):
        raise InputError("a model with CLIP's picture tower", name or "its own folder")

    for clips, word in ((None, "clip_guidance"), (none, "picture tower")):
        painter.clips = clips
        asked = [*requests(RED, clip_guidance=1.0), Request(prompt="", id="fine", knobs={"clip_model": "unused"})]
        events = list(painter.paint(asked))
        failed = [e for e in events if isinstance(e, Failed)]
        assert [e.id for e in failed] == ["0"] and word in failed[0].reason and events[-1].id == "fine"
    for wrong in ({"guidance_rescale": 1.5}, {"threshold": -1}, {"clip_guidance": -1}, {"clip_guidance_cutouts": -1}):
        assert isinstance(next(painter.paint(requests(RED, **wrong))), Failed)


@pytest.mark.slow
def test_clip_raises_the_cosine_of_the_shipped_model():
    """By the model's own CLIP, on the same seeds: of each picture, and judged on the finished bytes."""
    painter, space = open_painter("wardrobe"), open_clip("wardrobe")
    painter.clips = lambda name: space
    asked = [("a red dress", 1), ("white sneakers", 2), ("a brown bag", 3), ("green trousers", 4)]
    words = space.texts([prompt for prompt, _ in asked])
    found = []
    for strength in (0.0, 100.0):
        pictures = painted(painter, *asked, steps=8, clip_guidance=strength)
        found.append((space.pictures(pictures) * words).sum(1))
    assert (found[1] > found[0]).all() and found[1].mean() > found[0].mean() + 0.02, found
