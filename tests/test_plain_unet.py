"""The plain U-Net of the notebook: its size, its numbers, its schedule and what is mended in it, its sampling, its place in a
diffusion model that is told nothing (test_contract.py runs here once more on such a one)."""

import dataclasses
import secrets

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import test_contract as contract
from giverny.assembly import load_recipe, open_clip, open_painter, train
from giverny.base.contracts import Condition, Request, Start
from giverny.base.errors import InputError
from giverny.base.images import to_pixels
from giverny.base.recipe import describe
from giverny.base.runtime import PictureStreams
from giverny.base.start import enclosed
from giverny.base.table import level_of
from giverny.denoisers.precondition import DiscreteDenoiser
from giverny.denoisers.simple_unet import SimpleUNetRecipe
from giverny.painters.diffusion.family import PAINTER
from giverny.painters.diffusion.recipe import DataRecipe, DenoiserStage, DiffusionRecipe
from giverny.pipelines.text2image import collect
from giverny.sampling.schedules import ScheduleRecipe
from giverny.sampling.spacings import levels
from giverny.training.denoise import DenoiseRecipe
from giverny.training.loop import LoopRecipe
from plain_reference import body, part
from test_networks import randomise, relative
from tiny_painters import tiny_painter

pytestmark = pytest.mark.xdist_group("contract")
TOY = dict(channels=(8, 12, 16), time_width=8)
NOTEBOOK = dict(kind="linear", steps=300, beta_start=1e-4, beta_end=0.02)


def parameters(recipe):
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.build().parameters())


# -- the network ----------------------------------------------------------------------------------------------------------


def test_at_the_notebooks_sizes_it_has_the_notebooks_parameters():
    assert parameters(SimpleUNetRecipe()) == 62_438_883


def test_with_a_margin_it_is_the_network_of_the_mirrored_picture_cut_out():
    for widths, kinds in (((8, 12, 16), 1), ((8, 16), 2)):
        plain, other = (
            randomise(SimpleUNetRecipe(channels=widths, time_width=8, margin=m, kinds=kinds).build(), 4).eval()
            for m in (False, True)
        )
        least = 2 ** (len(widths) - 1)
        around, t = least // 2, torch.tensor([7.0, 200.0])
        for sides in ((4 * least, 3 * least), (least, 2 * least)):
            x = torch.randn(2, 3, *sides)
            mirrored = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (around, around), (around, around)], "reflect"))
            cut = plain.say("painting", mirrored, t)[0][..., around : around + sides[0], around : around + sides[1]]
            assert torch.equal(other.say("painting", x, t)[0], cut)
            assert not torch.allclose(other.say("painting", x, t)[0], plain.say("painting", x, t)[0])


@pytest.mark.parametrize("training", [False, True])
def test_it_equals_the_same_written_out_in_float64(training):
    seed = secrets.randbelow(2**31)
    net = randomise(SimpleUNetRecipe(**TOY).build(), seed).double().train(training)
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    x, t = torch.randn(3, 3, 8, 12, dtype=torch.float64), torch.tensor([0.0, 17.0, 299.0])
    ours = net(x, t, net.prepare(Condition()))
    assert relative(ours, body(part(weights, "body."), x, t, training)) < 1e-12, seed


def test_one_network_tells_two_kinds_apart_by_what_joins_the_time():
    net = randomise(SimpleUNetRecipe(**TOY, kinds=2).build(), 3).double().eval()
    weights = net.state_dict()
    x, y, t = (*torch.randn(2, 2, 3, 8, 8, dtype=torch.float64), torch.tensor([5.0, 90.0]))
    both = net.both({"painting": x, "photograph": y}, t)
    for number, (kind, seen) in enumerate((("painting", x), ("photograph", y))):
        wanted = body(part(weights, "body."), seen, t, False, weights["kind.weight"][number])
        assert relative(net.say(kind, seen, t)[0], wanted) < 1e-12 and both[kind][1] is None
        assert relative(both[kind][0], wanted) < 1e-12
    assert torch.equal(net(x, t, net.prepare(Condition())), net.say("painting", x, t)[0])
    assert not torch.allclose(net.say("painting", x, t)[0], net.say("photograph", x, t)[0])
    with pytest.raises(InputError, match="painting"):
        SimpleUNetRecipe(**TOY).build().say("photograph", x.float(), t)


def test_attention_lies_where_it_is_asked_for_and_nowhere_else():
    net = SimpleUNetRecipe(**TOY, attend_down=(2,), attend_up=(1,)).build()
    found = {name for name, module in net.named_modules() if name.endswith("attention") and name.count("attention") == 1}
    assert {n for n in found if dict(net.named_modules())[n] is not None} == {"body.down.1.attention", "body.up.0.attention"}
    plain, far = SimpleUNetRecipe(**TOY).build(), torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    far[..., 0, 0] = 1

    def reach(one):
        """What a change in one corner does to the opposite one."""
        one.double().eval()
        with torch.no_grad():
            there, gone = (one(x, torch.ones(1), one.prepare(Condition())) for x in (far, 0 * far))
        return float((there - gone)[..., -1, -1].abs().max())

    assert reach(net) > 0 == reach(plain)
    with pytest.raises(ValidationError, match="attend_down wants layers from 1 to 2"):
        SimpleUNetRecipe(**TOY, attend_down=(3,))


# -- its schedule ---------------------------------------------------------------------------------------------------------


def left_at_the_end(**schedule):
    """The part of a picture that is still there in a schedule's noisiest sample: measured, by regression, and by formula."""
    table = ScheduleRecipe(**schedule).table()
    level = level_of(table, len(table) - 1)
    generator = torch.Generator().manual_seed(secrets.randbelow(2**31))
    clean, noise = torch.randn(2, 200_000, dtype=torch.float64, generator=generator)
    noisy = level.alpha * clean + level.sigma * noise
    return float((noisy * clean).mean() / clean.square().mean()), float(table[-1].sqrt())


def test_the_notebooks_schedule_leaves_22_percent_of_the_picture_and_the_mended_ones_next_to_nothing():
    measured, said = left_at_the_end(**NOTEBOOK)
    assert said**2 == pytest.approx(0.0480584, rel=1e-5) and said == pytest.approx(0.219, abs=5e-4)
    assert measured == pytest.approx(said, abs=0.015)
    rescaled = load_recipe("monet-vanilla", preset="mended").schedule
    for mended in (
        rescaled.model_dump(),
        dict(kind="cosine", steps=300),
        dict(NOTEBOOK, zero_terminal_snr=True),
    ):
        measured, said = left_at_the_end(**mended)
        assert said < 0.01 and abs(measured) < 0.02, mended
    assert left_at_the_end(**dict(NOTEBOOK, zero_terminal_snr=True))[1] == 0
    assert float(rescaled.table()[-1].sqrt()) == pytest.approx(4e-5**0.5, rel=0.1)  # that of 1,000 times


# -- in a diffusion model that is told nothing ----------------------------------------------------------------------------


def tiny():
    """No words: no [text] in it."""
    loop = LoopRecipe(steps=10, batch=8, warmup=2, precision="float32", save_every=5, log_every=1)
    return DiffusionRecipe(
        name="tiny-plain",
        licence="Apache-2.0",
        data=DataRecipe(source="toy", size=(16, 16), validation=8),
        schedule=ScheduleRecipe(**NOTEBOOK),
        denoiser=DenoiserStage(
            network=SimpleUNetRecipe(**TOY), objective=DenoiseRecipe(prediction="epsilon", error="absolute"), loop=loop
        ),
        knobs={"sampler": "ddpm", "steps": 6, "clamp": "estimate"},
    )


@pytest.fixture
def name(monkeypatch):
    """The family that the contract's tests look up, with this recipe as its tiny one."""
    monkeypatch.setattr("giverny.painters.diffusion.family.PAINTER", dataclasses.replace(PAINTER, tiny=tiny))
    return "diffusion"


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory):
    run = tmp_path_factory.mktemp("tiny") / "plain"
    for _ in train(tiny(), run):
        pass
    return {"diffusion": run}


painter = contract.painter
globals().update({key: test for key, test in vars(contract).items() if key.startswith("test_")})


def painted(painter, **asked):
    request = Request(**{"prompt": "", "seed": 4, "id": "1"} | asked)
    return collect(painter.paint([request]), [request])[0].pixels


def test_only_the_denoiser_is_trained_and_words_and_guidance_change_nothing(tiny_runs):
    assert [p.name for p in sorted((tiny_runs["diffusion"] / "stages").iterdir())] == ["denoiser"]
    opened = open_painter(tiny_runs["diffusion"])
    plain = painted(opened, knobs={"guidance": 1.0})
    for asked in ({"guidance": 7.0}, {"guidance": 0.0}, {"guidance": 3.0, "guidance_rescale": 0.7, "guidance_every": 2}):
        assert np.array_equal(painted(opened, prompt="a red circle", negative="a ring", knobs=asked), plain), asked
    assert np.array_equal(painted(opened, prompt="a AND b", knobs={"dialect": "a1111", "guidance": 4.0}), plain)
    with pytest.raises(InputError, match="which is told nothing"):
        open_clip(tiny_runs["diffusion"])


@pytest.mark.parametrize("clamp", ["none", "estimate", "sample"])
def test_ancestral_sampling_is_the_notebooks_loop(tiny_runs, clamp):
    """Ho et al. 2020, algorithm 2, with the posterior's own variance and no noise at the last step, written out in float64."""
    opened = open_painter(tiny_runs["diffusion"])
    network = opened.parts.network
    seed = secrets.randbelow(2**31)
    ours = painted(opened, seed=seed, knobs={"steps": 300, "clamp": clamp})
    betas = torch.linspace(1e-4, 0.02, 300, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    streams = PictureStreams([seed])
    x = streams.normal((3, 16, 16)).double() * (1 - bars[-1]).sqrt()
    double = SimpleUNetRecipe(**TOY).build().double().eval()
    double.load_state_dict(network.state_dict())
    for t in reversed(range(300)):
        with torch.no_grad():
            said = double(x, torch.tensor([float(t)]), double.prepare(Condition()))
        mean = (x - betas[t] / (1 - bars[t]).sqrt() * said) / (1 - betas[t]).sqrt()
        before = bars[t - 1] if t else torch.tensor(1.0, dtype=torch.float64)
        if clamp == "estimate":
            clean = ((x - (1 - bars[t]).sqrt() * said) / bars[t].sqrt()).clamp(-1, 1)
            mean = (before.sqrt() * betas[t] * clean + (1 - betas[t]).sqrt() * (1 - before) * x) / (1 - bars[t])
        x = mean
        if t:
            x = x + (betas[t] * (1 - before) / (1 - bars[t])).sqrt() * streams.normal((3, 16, 16)).double()
        if clamp == "sample":
            x = x.clamp(-1, 1)
    assert abs(ours.astype(int) - to_pixels(x.float())[0].astype(int)).max() <= 1, seed


def test_a_clamp_keeps_to_the_range_and_is_refused_for_latents(tiny_runs):
    opened = open_painter(tiny_runs["diffusion"])
    free, kept = (painted(opened, knobs={"clamp": c}) for c in ("none", "estimate"))
    assert not np.array_equal(free, kept)
    with pytest.raises(InputError, match="a model of pixels, and no `threshold`"):
        painted(opened, knobs={"clamp": "sample", "threshold": 0.9})
    with pytest.raises(InputError, match="a model of pixels"):
        painted(tiny_painter(), knobs={"clamp": "sample"})


def test_half_size_and_bicubic_enlarging_and_beginning_from_a_picture(tiny_runs, tmp_path):
    opened = open_painter(tiny_runs["diffusion"])
    small = painted(opened)
    large = painted(opened, knobs={"upscale": 2.0, "upscale_strength": 0.0})
    assert large.shape == (32, 32, 3)
    assert abs(large.astype(float).mean() - small.mean()) < 2  # the same picture, enlarged
    given = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(given).save(tmp_path / "given.png")
    given_file = enclosed(tmp_path / "given.png")
    kept = painted(opened, start=Start(picture=given_file, strength=0.0))
    assert abs(kept.astype(int) - given).max() <= 1
    assert not np.array_equal(painted(opened, start=Start(picture=given_file, strength=0.8)), kept)
    with pytest.raises(InputError, match="divisible by 4"):
        painted(opened, size=(18, 16))


def test_a_denoiser_that_is_told_words_wants_to_know_how_they_are_read():
    told = {"network": {"family": "dit", "in_channels": 3, "out_channels": 3}}
    given = tiny().model_dump(mode="json", exclude_none=True, exclude={"text"}) | {"denoiser": told}
    with pytest.raises(InputError, match=r"\[text\] is wanted"):
        load_recipe(given)
    with pytest.raises(InputError, match="divisible by 4"):
        load_recipe(tiny(), ["data.size=[18, 18]"])


def test_the_family_is_described_by_its_name():
    fields = {row.field for row in describe(DenoiserStage)}
    assert {"network[simple].kinds", "network[double].chain", "pairs.middle"} <= fields
    assert "error" in {row.field.removeprefix("objective.") for row in describe(DenoiserStage)}


def test_times_of_the_spacing_are_those_of_training():
    table = ScheduleRecipe(**NOTEBOOK).table()
    run = levels(table, 300)
    assert torch.allclose(run.alpha[:-1], table.flip(0).sqrt(), atol=1e-12)
    denoiser = DiscreteDenoiser(SimpleUNetRecipe(**TOY).build(), table, "epsilon")
    assert float(denoiser._moment(run[0], torch.zeros(1, 3, 8, 8)).times) == 299
