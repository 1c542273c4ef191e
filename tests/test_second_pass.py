"""The second pass: image-to-image arithmetic against diffusers, sizes, streams, events; and what the shipped model makes."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from giverny.assembly import open_painter
from giverny.base.contracts import Failed, Progress, Request, Started, Toward, Variation
from giverny.base.images import resize, resize_tensor, to_pixels
from giverny.base.picture import Provenance
from giverny.base.runtime import PictureStreams
from giverny.painters.diffusion.second_pass import enlarged, final_size, last_steps
from giverny.pipelines.reproduce import repaint
from giverny.pipelines.text2image import evolution
from giverny.sampling.samplers import dpmpp_2m, integrate
from giverny.sampling.schedules import levels
from giverny.steering.guidance import classifier_free, guided
from tiny_painters import WORDS, painted, requests, story, tiny_painter

needs_diffusers = pytest.mark.xdist_group("diffusers")
SEED = random.SystemRandom().randrange(2**31)  # fresh every time; every failure names it
RED, BLUE = (WORDS[0], 3), (WORDS[1], 4)
SOME = ("ddpm", "euler", "heun", "dpmpp_2m", "plms", "unipc", "dpmpp_3m_sde")  # of each kind; test_painter_sampling has all


@pytest.fixture(autouse=True)
def drawn():
    print(f"drawn from seed {SEED}")
    random.seed(SEED)
    torch.manual_seed(SEED)


# -- arithmetic -----------------------------------------------------------------------------------------------------------


@needs_diffusers
@pytest.mark.parametrize(("prediction", "theirs"), [("epsilon", "epsilon"), ("v", "v_prediction")])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_it_is_the_image_to_image_of_diffusers(prediction, theirs, spacing):
    """Both passes with their DDIM over our network in float64; their timesteps, add_noise and number of steps."""
    from diffusers import DDIMScheduler

    painter = tiny_painter(prediction=prediction, dtype=torch.float64, zero=False, schedule="scaled_linear")
    # Their DDIM takes T // steps off a time to find the next, which "trailing" with other numbers of steps does not.
    steps = random.randint(5, 12) if spacing == "leading" else random.choice([5, 8, 10])
    parts, strength = painter.parts, random.uniform(0.2, 1)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, prediction_type=theirs,
        timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0,
    )  # fmt: skip
    scheduler.alphas_cumprod = parts.denoiser.table
    scheduler.set_timesteps(steps)
    prepared = parts.network.prepare(parts.condition([RED[0]]))

    def run(x, times):
        with torch.no_grad():
            for t in times:
                said = parts.network(x, t[None].double(), prepared)
                x = scheduler.step(said, t, x).prev_sample
        return x

    streams = PictureStreams([RED[1]])
    sigma = (1 - scheduler.alphas_cumprod[scheduler.timesteps[0]]) ** 0.5
    small = run(streams.normal((4, 8, 8)).double() * sigma, scheduler.timesteps)
    for how, larger in (("pixels", None), ("latents", torch.nn.functional.interpolate(small, (12, 12), mode="bilinear"))):
        if larger is None:
            pixels = parts.codec.decode(small).clamp(-1, 1)
            larger = parts.codec.encode(resize_tensor(pixels, (24, 24)).clamp(-1, 1))
        asked = min(int(steps * strength), steps)  # StableDiffusionImg2ImgPipeline.get_timesteps
        times = scheduler.timesteps[max(steps - asked, 0) :]
        streams = PictureStreams([RED[1]])
        streams.normal((4, 8, 8))
        noise = streams.normal((4, 12, 12)).double()
        final = run(scheduler.add_noise(larger, noise, times[:1]), times)
        with torch.no_grad():
            wanted = to_pixels(parts.codec.decode(final))[0]
        knobs = {"guidance": 1.0, "steps": steps, "spacing": spacing, "sampler": "ddim", "upscale": 1.5}
        knobs |= {"upscale_strength": strength, "upscale_in": how}
        total, told, picture = story(painter, requests(RED, **knobs)[0])
        assert total == len(told) == steps + len(times)
        assert picture.size == (24, 24)
        far = abs(picture.pixels.astype(int) - wanted)
        assert far.max() <= 1 and (far > 0).mean() < 1e-3, (how, far.max())


def test_the_last_steps_of_a_run():
    run = levels(tiny_painter().parts.denoiser.table, 20)
    for strength, count in ((1.0, 20), (0.5, 10), (0.49, 9), (0.05, 1)):
        tail = last_steps(run, strength)
        assert tail.steps == count and torch.equal(tail.sigma, run.sigma[20 - count :]) and tail.alpha[-1] == 1
    assert last_steps(run, 0.04) is None and last_steps(run, 0.0) is None


def test_final_sizes_are_multiples_of_the_models_step():
    assert final_size((64, 64), 2.0, 8) == (128, 128)
    assert final_size((64, 40), 1.5, 8) == (96, 64)  # 60 lies between two; evens win
    assert final_size((28, 28), 1.01, 4) == (28, 28)
    for _ in range(50):
        step, upscale = random.choice([1, 2, 8, 16]), random.uniform(1, 4)
        size = (step * random.randint(1, 20), step * random.randint(1, 20))
        for side, found in zip(size, final_size(size, upscale, step), strict=True):
            assert found % step == 0 and abs(found - side * upscale) <= step / 2 + 1e-9


def test_enlarging_alone_is_bicubic_or_bilinear():
    for pixels in (False, True):
        painter = tiny_painter(pixels=pixels)
        codec = painter.codec
        clean = torch.randn(2, codec.channels, 16 // codec.factor, 16 // codec.factor)
        soft = enlarged(clean, (24, 20), codec, "latents", torch.float32)
        assert torch.allclose(soft, torch.nn.functional.interpolate(clean, soft.shape[-2:], mode="bilinear"), atol=1e-5)
        made = enlarged(clean, (24, 20), codec, "pixels", torch.float32)
        with torch.inference_mode():
            small = codec.decode(clean).clamp(-1, 1)
            by_hand = codec.encode(resize_tensor(small, (24, 20)).clamp(-1, 1))
        assert torch.equal(made, by_hand) and not made.is_inference() and soft.shape == made.shape
        larger = painted(painter, RED, upscale=1.5, upscale_strength=0.0)[0].pixels
        plain = painted(painter, RED)[0].pixels
        assert larger.shape == (24, 24, 3)
        if pixels:  # nothing lies between: Pillow's own bicubic of each channel, but for the bytes it starts from
            planes = [Image.fromarray(plain[..., c].astype(np.float32)) for c in range(3)]
            known = np.stack([p.resize((24, 24), Image.Resampling.BICUBIC) for p in planes], axis=-1)
            assert abs(larger - known.clip(0, 255)).max() < 1.5


# -- the painter ----------------------------------------------------------------------------------------------------------


def test_off_it_changes_nothing():
    painter = tiny_painter()
    plain = painted(painter, RED, BLUE)
    off = painted(painter, RED, BLUE, upscale=1.0, upscale_strength=1.0, upscale_in="latents")
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(plain, off, strict=True))


@pytest.mark.parametrize("sampler", SOME)
def test_pictures_stay_apart_and_reproduce(sampler):
    painter = tiny_painter(dtype=torch.float64)
    knobs = {"upscale": 2.0, "sampler": sampler, "clip_guidance": 100.0, "guidance_every": 2}
    together = painted(painter, RED, BLUE, ("", 5), **knobs)
    for one, picture in zip((RED, BLUE, ("", 5)), together, strict=True):
        assert picture.size == (32, 32)
        assert abs(painted(painter, one, **knobs)[0].pixels.astype(int) - picture.pixels).max() <= 1
    told = Provenance.model_validate_json(together[1].provenance.model_dump_json())
    assert told.request.size == (16, 16) and told.knobs["upscale"] == 2.0  # what it takes to ask for it again
    again, differing = repaint(painter, told)
    assert not differing and abs(again.pixels.astype(int) - together[1].pixels).max() <= 1


def test_its_noise_is_the_pictures_own_next_draw():
    """From pure noise (strength 1, zero terminal SNR) nothing of the first pass is left but its place in the stream."""
    painter = tiny_painter()
    asked = {"upscale": 1.5, "upscale_strength": 1.0}
    one, other = (painted(painter, RED, upscale_in=how, **asked)[0].pixels for how in ("pixels", "latents"))
    assert np.array_equal(one, other)
    knobs, _ = painter.settle(Request())
    spread, codec = painter.levels(knobs), painter.codec
    streams = PictureStreams([RED[1]])
    streams.normal((4, 8, 8))
    start = streams.normal((4, 12, 12))
    conditions = painter.parts.condition([RED[0], ""]).split([1, 1])
    estimate = guided(painter.denoise, classifier_free(*conditions, knobs.guidance), 4)
    with torch.inference_mode():
        wanted = to_pixels(codec.decode(integrate(dpmpp_2m(estimate, start, spread, None))))
    assert np.array_equal(wanted[0], one)


def test_a_walk_keeps_its_ends_over_both_passes():
    painter, knobs = tiny_painter(), {"upscale": 1.5, "sampler": "ddpm"}
    here, other, there = (p.pixels for p in painted(painter, RED, (RED[0], 9), (BLUE[0], RED[1]), **knobs))
    one = {"prompt": RED[0], "seed": RED[1]}
    for share, noise_end, word_end in ((0.0, here, here), (1.0, other, there)):
        varied = Request(**one, variation=Variation(seed=9, strength=share))
        toward = Request(**one, toward=Toward(prompt=BLUE[0], share=share))
        alike = painted(painter, varied, (RED[0], 9), toward, **knobs)
        assert np.array_equal(alike[0].pixels, noise_end) and np.array_equal(alike[2].pixels, word_end)


def test_the_story_goes_on_over_both_passes():
    painter = tiny_painter()
    total, steps, picture = story(painter, requests(RED, upscale=2.0, steps=6)[0], previews=True, trace=True)
    assert total == 9 and [s.step for s in steps] == list(range(1, 10)) and {s.total for s in steps} == {9}
    assert [s.preview.shape[0] for s in steps] == [16] * 6 + [32] * 3
    assert len(picture.trace) == 11 and {t.shape for t in picture.trace} == {(32, 32, 3)}  # each pass from its own noise
    assert np.array_equal(picture.trace[-1], picture.pixels)
    plain = story(painter, requests(RED, steps=6)[0], trace=True)[2]
    for moment, small in zip(picture.trace, plain.trace, strict=False):  # the first seven: whole pixels, four times each
        assert np.array_equal(moment, small.repeat(2, 0).repeat(2, 1))
    assert evolution([picture]).pixels.ndim == 3
    only = story(painter, requests(RED, upscale=2.0, upscale_strength=0.1)[0], trace=True)
    assert only[0] == len(only[1]) == 4 and only[2].size == (32, 32) and len(only[2].trace) == 5


def test_sizes_too_large_are_refused_alone():
    painter = tiny_painter()
    large = Request(prompt="", size=(2048, 16), id="large", knobs={"upscale": 2.01})
    events = list(painter.paint([large, *requests(BLUE)]))
    assert isinstance(events[0], Failed) and "4096" in events[0].reason and "upscale can be 2" in events[0].reason
    assert [e.id for e in events if isinstance(e, Started)] == ["0"]
    for wrong in ({"upscale": 0.5}, {"upscale_strength": 1.1}, {"upscale_in": "paint"}):
        assert isinstance(next(painter.paint(requests(RED, **wrong))), Failed)


def test_closing_cancels_in_the_second_pass():
    painter = tiny_painter()
    stream = painter.paint(requests(RED, upscale=2.0, steps=6))
    seen = 0
    while seen < 7:
        seen += isinstance(next(stream), Progress)
    stream.close()
    assert list(stream) == [] and not torch.is_inference_mode_enabled()


@pytest.mark.slow
def test_the_shipped_model_keeps_what_it_painted_the_more_the_weaker_the_second_pass():
    painter = open_painter("wardrobe")
    asked = [("a red dress", 1), ("white sneakers", 2), ("a brown bag", 3), ("green trousers", 4)]
    first = [p.pixels for p in painted(painter, *asked)]
    far = []
    for strength in (0.0, 0.2, 0.4, 0.7):
        pictures = painted(painter, *asked, upscale=2.0, upscale_strength=strength)
        shrunk = [resize(p.pixels, (64, 64)).astype(float) for p in pictures]
        far.append(np.mean([abs(a - b).mean() for a, b in zip(shrunk, first, strict=True)]))
    assert all(a < b for a, b in zip(far, far[1:], strict=False)) and far[0] < 4, json.dumps(far)
