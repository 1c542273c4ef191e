"""Pictures as noises (CycleDiffusion): there and back with one model, across with two, and by a model that knows both kinds."""

import hashlib
import secrets

import numpy as np
import pytest
import torch

from giverny.base.contracts import Done, Failed, Progress, Request, Start
from giverny.base.errors import InputError
from giverny.base.images import png_bytes
from giverny.base.runtime import PictureStreams
from giverny.base.start import Enclosed
from giverny.base.table import level_of
from giverny.denoisers.double_unet import DoubleUNetRecipe
from giverny.denoisers.precondition import DiscreteDenoiser
from giverny.denoisers.simple_unet import SimpleUNetRecipe
from giverny.painters.diffusion.crossing import crossed, estimate_of
from giverny.painters.diffusion.painter import DiffusionPainter
from giverny.painters.diffusion.recipe import ModelRecipe, assemble
from giverny.sampling.cycle import decode, encode
from giverny.sampling.first_order import ddim, ddpm
from giverny.sampling.noise import PictureNoise
from giverny.sampling.schedules import ScheduleRecipe, levels
from giverny.sampling.starts import started
from giverny.text.clip import ClipTextRecipe
from giverny.text.tokenizer import Tokenizer
from test_networks import randomise
from tiny_painters import tiny_painter

NOTEBOOK = ScheduleRecipe(kind="linear", steps=300, beta_start=1e-4, beta_end=0.02)


def parts_of(network, seed, schedule=NOTEBOOK, prediction="epsilon"):
    """A model of pixels with drawn weights."""
    tokenizer = Tokenizer.train([], 514, 8)
    text = ClipTextRecipe(width=8, layers=1, heads=1, inner=8, length=8, vocabulary=tokenizer.vocabulary)
    recipe = ModelRecipe(
        autoencoder=None, text=text, pooled_width=8, projected=False, denoiser=network, mask_padding=True, schedule=schedule,
        prediction=prediction,
    )  # fmt: skip
    net = randomise(network.build(), seed)
    return assemble(recipe, tokenizer, text.build(), None, net, None)


def noise_of(seeds, shape, dtype=torch.float32):
    return PictureNoise(PictureStreams(seeds), shape, dtype)


def last(walk):
    for step in walk:
        x = step.x
    return x


def noises_of(estimate, clean, run, noise, drawn, eta=1.0):
    """What `encode` comes to, from clean samples with this noise on them."""
    alpha, sigma = run[0].for_sample(clean)
    walk = encode(estimate, clean, alpha * clean + sigma * drawn, run, noise, eta)
    while True:
        try:
            next(walk)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("schedule", [NOTEBOOK, ScheduleRecipe(kind="cosine", steps=200)])
@pytest.mark.parametrize("eta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("skip", [0, 25])
def test_there_and_back_with_one_model_gives_the_picture_back(schedule, eta, skip):
    seed = secrets.randbelow(2**31)
    parts = parts_of(DoubleUNetRecipe(channels=(8, 16), time_width=8), seed, schedule)
    estimate, run = estimate_of(parts, "photograph"), started(levels(parts.denoiser.table, 40), skip)
    clean = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    noise = noise_of([seed, seed + 1], clean.shape[1:])
    noises = noises_of(estimate, clean, run, noise, noise(run[0], run[0]), eta)
    assert abs(last(decode(estimate, noises, run, eta)) - clean).max() < 1e-4, seed
    other = last(decode(estimate_of(parts, "painting"), noises, run, eta))
    assert abs(other - clean).max() > 1e-2


def test_what_is_left_is_the_noise_that_ddpm_would_have_drawn():
    """Noises of a sampled picture, along the very way it was sampled, are those it was sampled with; so decoding any noises is
    the sampler itself, fed with them."""
    parts = parts_of(SimpleUNetRecipe(channels=(8, 16), time_width=8, kinds=2), 5)
    estimate, run = estimate_of(parts, "painting"), levels(parts.denoiser.table, 20)
    clean = torch.rand(1, 3, 8, 8) * 2 - 1
    noise = noise_of([1], clean.shape[1:])
    noises = noises_of(estimate, clean, run, noise, noise(run[0], run[0]))
    kicks, sizes = iter(noises.left), []
    for i in range(run.steps - 1):  # the posterior's deviation, by the paper's formula
        a, b = float(run.alpha[i]) ** 2, float(run.alpha[i + 1]) ** 2
        sizes.append(((1 - b) / (1 - a) * (1 - a / b)) ** 0.5)
    size = iter(sizes)
    walk = ddpm(estimate, noises.start, run, lambda here, there: next(kicks) / next(size))
    *before, final = [step.x for step in walk]
    assert torch.allclose(final + noises.left[-1], clean, atol=1e-4)
    again = [step.x for step in decode(estimate, noises, run)]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(before, again, strict=False))
    still = noises_of(estimate, clean, run, noise, torch.zeros_like(clean), eta=0.0)
    plain = ddim(estimate, still.start, run, noise, eta=0.0)
    assert torch.allclose(next(plain).x + still.left[0], next(decode(estimate, still, run, 0.0)).x, atol=1e-5)


def test_the_way_into_noise_has_the_spread_of_noisy_pictures():
    """The samples that `encode` walks through are draws of q(x_t | clean), at every level."""
    table = NOTEBOOK.table()
    run, clean = levels(table, 10), torch.full((1, 1, 100, 100), 0.5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(secrets.randbelow(2**31))
    seen = []

    def estimate(x, level, step):
        seen.append((x, level))
        return torch.zeros_like(x)

    def draw(here, there):
        return torch.randn(clean.shape, generator=generator, dtype=torch.float64)

    noises_of(estimate, clean, run, draw, draw(None, None))
    for x, level in seen:
        assert float(x.mean()) == pytest.approx(0.5 * float(level.alpha), abs=0.05)
        assert float(x.std()) == pytest.approx(float(level.sigma), rel=0.05)
    assert len(seen) == 10 and float(level_of(table, 299).alpha) == pytest.approx(float(seen[0][1].alpha))


@pytest.mark.parametrize(
    "network",
    [
        DoubleUNetRecipe(channels=(8, 16), time_width=8),
        SimpleUNetRecipe(channels=(8, 16), time_width=8, kinds=2),
    ],
    ids=["double", "single"],
)
def test_photographs_cross_by_a_model_of_both_kinds(network):
    parts = parts_of(network, 3)
    photographs = np.random.default_rng(1).integers(0, 256, (3, 16, 12, 3), dtype=np.uint8)
    made = crossed(parts, photographs, [1, 2, 3], steps=10, strength=0.5)
    assert made.shape == photographs.shape and made.dtype == np.uint8 and not np.array_equal(made, photographs)
    alone = crossed(parts, photographs[1:2], [2], steps=10, strength=0.5)
    assert abs(alone[0].astype(int) - made[1].astype(int)).max() <= 1
    assert np.array_equal(crossed(parts, photographs, [1, 2, 3], strength=0.0), photographs)
    little, much = (abs(crossed(parts, photographs, [1, 2, 3], 10, s).astype(int) - photographs).mean() for s in (0.2, 1.0))
    assert little < much
    with pytest.raises(InputError, match="divisible by 2"):
        crossed(parts, photographs[:, :15], [1, 2, 3])
    with pytest.raises(InputError, match="a seed for each"):
        crossed(parts, photographs, [1])


def test_a_model_of_one_kind_is_refused():
    parts = parts_of(SimpleUNetRecipe(channels=(8, 16), time_width=8), 3)
    assert isinstance(parts.denoiser, DiscreteDenoiser)
    with pytest.raises(InputError, match="learnt paintings and photographs"):
        crossed(parts, np.zeros((1, 8, 8, 3), np.uint8), [1])


# -- the painter ------------------------------------------------------------------------------------------------------------


def painter_of(parts, **defaults):
    return DiffusionPainter(parts, size=(16, 16), defaults={"steps": 10, "sampler": "ddpm", **defaults})


def begun(pixels, seed=1, strength=0.5, **more):
    content = png_bytes(pixels)
    file = Enclosed(name="given.png", sha256=hashlib.sha256(content).hexdigest(), content=content)
    knobs = {"begin": "crossed"} | more.pop("knobs", {})
    return Request(id=str(seed), prompt="", seed=seed, knobs=knobs, start=Start(picture=file, strength=strength, **more))


def made_of(painter, *requests, **how):
    events = list(painter.paint(requests, **how))
    assert not [e.reason for e in events if isinstance(e, Failed)]
    done = {e.id: e.artifact for e in events if isinstance(e, Done)}
    return [done[r.id] for r in requests]


@pytest.fixture(scope="module")
def both():
    return parts_of(DoubleUNetRecipe(channels=(8, 16), time_width=8), 3)


def pictures(rows=3):
    return np.random.default_rng(1).integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("strength", [0.0, 0.04, 0.5, 1.0])
@pytest.mark.parametrize("clamp", ["none", "estimate", "sample"])
def test_the_painter_crosses_bit_for_bit_as_the_function_does(both, strength, clamp):
    seed, given = secrets.randbelow(2**31), pictures()
    made = made_of(painter_of(both, clamp=clamp), *(begun(p, seed + i, strength) for i, p in enumerate(given)))
    wanted = crossed(both, given, [seed, seed + 1, seed + 2], 10, strength)
    assert np.array_equal([p.pixels for p in made], wanted), seed
    assert np.array_equal(wanted, given) == (strength < 0.1)  # so little is no step


def test_both_ways_are_told_step_by_step_and_can_be_broken_off(both):
    painter, request = painter_of(both), begun(pictures()[0])
    events = list(painter.paint([request], previews=True, trace=True))
    steps = [e for e in events if isinstance(e, Progress)]
    assert [(e.step, e.total) for e in steps] == [(i, 10) for i in range(1, 11)]
    assert events[0].total == 10 and all(e.preview.shape == (16, 16, 3) for e in steps)
    assert len(events[-1].artifact.trace) == 11
    assert abs(events[-1].artifact.trace[5].astype(int) - pictures()[0]).max() <= 1  # the way into noises ends at the picture
    broken = painter.paint([request])
    assert next(broken).total == 10 and next(broken).step == 1
    broken.close()
    assert list(broken) == []


def test_a_crossed_picture_says_how_it_began_and_comes_again(both):
    painter = painter_of(both)
    request = begun(pictures()[0], 7)
    (first,) = made_of(painter, request)
    told = first.provenance
    assert told.knobs["begin"] == "crossed" and told.request.start.picture.content is None
    again = told.request.model_copy(update={"start": request.start, "knobs": told.knobs})
    assert np.array_equal(made_of(painter_of(both), again)[0].pixels, first.pixels)
    plain = begun(pictures()[0], 7, knobs={"begin": "noise"})
    untold = plain.model_copy(update={"knobs": {}})
    over, beside = made_of(painter, plain)[0].pixels, made_of(painter, untold)[0].pixels
    assert np.array_equal(over, beside) and not np.array_equal(over, first.pixels)
    assert made_of(painter, begun(pictures()[0], knobs={"upscale": 2.0}))[0].pixels.shape == (32, 32, 3)


def test_what_cannot_be_crossed_is_said(both):
    def reason(painter, request):
        (failed,) = painter.paint([request])
        return failed.reason

    single = painter_of(parts_of(SimpleUNetRecipe(channels=(8, 16), time_width=8), 3))
    assert "learnt paintings and photographs" in reason(single, begun(pictures()[0]))
    assert "learnt paintings and photographs" in reason(tiny_painter(), begun(pictures()[0]))
    painter, whole = painter_of(both), begun(pictures()[0])
    assert "words alone" in reason(painter, whole.model_copy(update={"start": None}))
    assert "a mask or a larger canvas" in reason(painter, begun(pictures()[0], extend=(0, 8, 0, 8)))
    assert "no threshold" in reason(painter, begun(pictures()[0], knobs={"threshold": 0.99}))
