"""The same weights, words, noise and levels in diffusers' StableDiffusionXLPipeline and in ours: the same latents in the end.

Which of their levels are ours is said in `test_pipeline_parity.py`. Image-to-image and inpainting, here with latent blends, are
held against their pipelines as in `test_stories_twins.py`.
"""

import logging
import random
import secrets

import numpy as np
import pytest
import torch
from PIL import Image

from giverny.assembly import open_painter
from giverny.base.contracts import Done, Request, Start
from giverny.base.images import png_bytes
from giverny.base.start import enclosed
from xl_twins import told_by, write_xl

TOLERANCE = 1e-4  # relative to the largest value, float32

pytestmark = pytest.mark.xdist_group("oracles")
ONE, THREE = (["a red cat"], ["dog"]), (["a red cat", "dog, dog", ""], ["dog", "red", "cat"])
CASES = [  # twin, diffusers' scheduler and its options, our sampler, spacing, steps, size, clip skip of theirs, prompts, sizes
    ("xl", "EulerDiscrete", {}, "euler", "trailing", 5, (32, 32), None, ONE, None),
    ("xl", "EulerDiscrete", {"use_karras_sigmas": True}, "euler", "karras", 5, (40, 24), 1, THREE, ((640, 480), (12, 34))),
    ("xl_two", "EulerDiscrete", {}, "euler", "normal", 10, (24, 56), None, (["a red cat"], None), None),
    ("xl", "DPMSolverMultistep", {}, "dpm++ 2m", "trailing", 5, (24, 40), None, THREE, None),
    ("xl_two", "DPMSolverMultistep", {}, "dpm++ 2m", "trailing", 8, (40, 24), None, (["a red cat"], None), ((99, 7), (0, 5))),
    ("xl_two", "DDIM", {"set_alpha_to_one": True, "clip_sample": False}, "ddim", "trailing", 5, (32, 32), None, ONE, None),
    ("xl", "HeunDiscrete", {}, "heun", "trailing", 4, (32, 24), 1, ONE, None),
]
SPACINGS = {"trailing": "trailing", "normal": "linspace", "karras": "linspace"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """kind -> (folder, diffusers' pipeline, its scheduler's config, our painter), made when first asked for."""
    from diffusers import StableDiffusionXLPipeline

    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    made = {}

    def twin(kind):
        if kind not in made:
            folder, seed = tmp_path_factory.mktemp(kind), secrets.randbelow(2**31)
            print(f"{kind}: weights {seed}")
            write_xl(folder, kind, seed)
            pipe = StableDiffusionXLPipeline.from_pretrained(folder)
            pipe.set_progress_bar_config(disable=True)
            painter = open_painter(folder, backend="plain", device="cpu", precision="float32")
            made[kind] = folder, pipe, dict(pipe.scheduler.config), painter
        return made[kind]

    return twin


def latents(painter, asked, monkeypatch, first=None):
    """The last latents of these pictures, from this first sample."""
    seen, decoded, drawn = [], painter._decoded, painter._noise
    monkeypatch.setattr(painter, "_decoded", lambda x, codec: seen.append(x) or decoded(x, codec))

    def given(*args):
        source = drawn(*args)
        monkeypatch.setattr(source, "initial", lambda level, full=False: first)
        return source

    if first is not None:
        monkeypatch.setattr(painter, "_noise", given)
    assert all(isinstance(e, Done) for e in list(painter.paint(asked))[-len(asked) :])
    monkeypatch.undo()
    return seen[-1]


@pytest.mark.parametrize(
    ("kind", "scheduler", "options", "sampler", "spacing", "steps", "size", "skip", "words", "told"),
    CASES,
    ids=[f"{c[0]}-{c[3]}-{c[4]}" for c in CASES],
)
def test_latents_are_those_of_diffusers(
    kind, scheduler, options, sampler, spacing, steps, size, skip, words, told, twins, monkeypatch
):
    import diffusers

    _, pipe, config, painter = twins(kind)
    seed, guidance = secrets.randbelow(2**31), 6.0
    prompts, negatives = words
    form = (len(prompts), 4, size[1] // painter.codec.factor, size[0] // painter.codec.factor)
    noise = torch.randn(form, generator=torch.Generator().manual_seed(seed))
    config = {**config, "timestep_spacing": SPACINGS[spacing], "steps_offset": 0}
    pipe.scheduler = getattr(diffusers, f"{scheduler}Scheduler").from_config(config, **options)
    before, cut = told or (None, (0, 0))
    read = {"prompt": prompts, "negative_prompt": negatives}
    if skip is not None:  # its own leaves negative prompts where they were, where other programs and ours skip for both
        (vectors, pooled), (others, other) = (told_by(pipe, texts, skip) for texts in words)
        read = {"prompt_embeds": vectors, "pooled_prompt_embeds": pooled}
        read |= {"negative_prompt_embeds": others, "negative_pooled_prompt_embeds": other}
    theirs = pipe(
        height=size[1], width=size[0], num_inference_steps=steps, guidance_scale=guidance, latents=noise, output_type="latent",
        original_size=before and before[::-1], crops_coords_top_left=cut[::-1], **read,
    ).images  # fmt: skip

    knobs = {"steps": steps, "sampler": sampler, "spacing": spacing, "guidance": guidance, "clip_skip": (skip or 0) + 2}
    knobs |= {"original_size": f"{before[0]}x{before[1]}", "crop": f"{cut[0]}x{cut[1]}"} if told else {}
    pairs = zip(prompts, negatives or [""] * len(prompts), strict=True)
    asked = [Request(prompt=p, negative=n, size=size, knobs=knobs) for p, n in pairs]
    walk = painter.levels(painter.settle(asked[0])[0])
    unit = scheduler not in ("DDIM", "DPMSolverMultistep")  # theirs is the sample over alpha
    first = float(pipe.scheduler.init_noise_sigma) * (float(walk[0].alpha) if unit else 1.0)
    ours = latents(painter, asked, monkeypatch, noise * first)
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    assert difference < TOLERANCE, f"{difference:.2e}, noise {seed}"
    assert float((theirs[0] - noise[0]).abs().max()) > 0.1


@pytest.mark.parametrize(("kind", "masked"), [("xl", False), ("xl", True), ("xl_inpainting", True)])
def test_pictures_are_painted_over_as_diffusers_does(kind, masked, twins, tmp_path, monkeypatch):
    from diffusers import DDIMScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    folder, *_, painter = twins(kind)
    seed = secrets.randbelow(2**31)
    rng = random.Random(seed)
    step, steps = painter.parts.step, rng.randint(4, 9)
    side, strength = 8 * step, rng.uniform(1 / steps, 0.99)
    picture = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[step : 5 * step, 2 * step : 7 * step] = 255
    for name, pixels in (("picture", picture), ("mask", mask)):
        (tmp_path / f"{name}.png").write_bytes(png_bytes(pixels))
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    made = StableDiffusionXLInpaintPipeline if masked else StableDiffusionXLImg2ImgPipeline
    theirs = made.from_pretrained(folder)
    theirs.scheduler = DDIMScheduler.from_config(
        theirs.scheduler.config, set_alpha_to_one=True, clip_sample=False, timestep_spacing="leading", steps_offset=1
    )
    theirs.set_progress_bar_config(disable=True)
    more = {"mask_image": Image.fromarray(mask), "height": side, "width": side} if masked else {}
    wanted = theirs(
        "a red cat", image=Image.fromarray(picture), strength=strength, num_inference_steps=steps, guidance_scale=3.0,
        negative_prompt="dog", generator=torch.Generator("cpu").manual_seed(7), output_type="latent", **more,
    ).images  # fmt: skip
    monkeypatch.undo()
    start = Start(
        picture=enclosed(tmp_path / "picture.png"), strength=strength, mask=enclosed(tmp_path / "mask.png") if masked else None
    )
    knobs = {"sampler": "ddim", "spacing": "leading", "steps": steps, "guidance": 3.0}
    request = Request(prompt="a red cat", negative="dog", seed=7, size=(side, side), start=start, knobs=knobs)
    ours = latents(painter, [request], monkeypatch)
    far = float((ours - wanted).abs().max()) / max(1, float(wanted.abs().max()))
    assert far < TOLERANCE, (kind, strength, steps, far, seed)
