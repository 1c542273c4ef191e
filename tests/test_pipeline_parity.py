"""The same weights, words, noise and levels in diffusers' StableDiffusionPipeline and in ours: the same latents in the end.

Both walk through the same levels. Theirs are over whole training times (trailing, leading, and linspace where 999 divides
by steps - 1), or Karras's with Euler; over others dialects differ: diffusers' linspace interpolates sigma where k-diffusion and
ours interpolate log(sigma), and its DPM++ rounds Karras's times to whole ones. DDIM ends in the clean level
(set_alpha_to_one), as ours does. Its `clip_skip` counts from 0, ours from 1.
"""

import logging
import secrets

import pytest
import torch

from giverny.assembly import open_painter
from giverny.base.contracts import Request
from giverny.base.runtime import PictureStreams
from giverny.painters.diffusion.estimate import estimates
from giverny.sampling.noise import PictureNoise
from published_twins import write_twin

TOLERANCE = 1e-4  # relative to the largest value, float32

pytestmark = pytest.mark.xdist_group("oracles")
THREE = (["a red cat", "dog, dog", ""], ["dog", "", "red"])
CASES = [  # twin, diffusers' scheduler and its options, our sampler, spacing, steps, size, clip skip of theirs, prompts
    ("sd1", "EulerDiscrete", {}, "euler", "trailing", 5, (32, 32), None, (["a red cat"], ["dog"])),
    ("sd1", "EulerDiscrete", {"use_karras_sigmas": True}, "euler", "karras", 5, (40, 24), 1, THREE),
    ("sd2", "EulerDiscrete", {}, "euler", "normal", 10, (40, 56), None, (["a red cat"], ["dog"])),
    ("sd1", "DDIM", {"set_alpha_to_one": True}, "ddim", "trailing", 5, (24, 40), None, THREE),
    ("sd2", "DDIM", {"set_alpha_to_one": True}, "ddim", "trailing", 8, (32, 32), 1, (["a red cat"], ["dog"])),
    ("three_levels", "DPMSolverMultistep", {}, "dpm++ 2m", "trailing", 8, (40, 24), None, (["a red cat"], ["dog"])),
    ("sd2", "DPMSolverMultistep", {}, "dpm++ 2m", "trailing", 5, (32, 32), None, THREE),
    ("two_levels", "LMSDiscrete", {}, "lms", "leading", 8, (24, 40), 1, (["a red cat"], ["dog"])),
    ("sd2", "LMSDiscrete", {}, "lms", "trailing", 6, (32, 32), None, (["a red cat"], ["dog"])),
    ("sd1", "HeunDiscrete", {}, "heun", "normal", 4, (32, 32), None, (["a red cat"], ["dog"])),
    ("sd2", "HeunDiscrete", {}, "heun", "trailing", 5, (24, 40), None, (["a red cat"], ["dog"])),
]
SPACINGS = {"trailing": "trailing", "leading": "leading", "normal": "linspace", "karras": "linspace"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """kind -> (diffusers' pipeline, its scheduler's config, our painter) over the same folder, made when first asked for."""
    from diffusers import StableDiffusionPipeline

    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    made = {}

    def twin(kind):
        if kind not in made:
            folder, seed = tmp_path_factory.mktemp(kind), secrets.randbelow(2**31)
            print(f"{kind}: weights {seed}")
            write_twin(folder, kind, seed)
            pipe = StableDiffusionPipeline.from_pretrained(folder)
            pipe.set_progress_bar_config(disable=True)
            painter = open_painter(folder, backend="plain", device="cpu", precision="float32")
            made[kind] = pipe, dict(pipe.scheduler.config), painter  # a scheduler's options would stay in the pipeline's
        return made[kind]

    return twin


def read_by(pipe, texts, skip):
    """What a pipeline's denoiser is told. Its own clip_skip leaves negative prompts at the last layer, where other programs and
    ours skip for both; and its newest release does not know the newest transformers' text tower."""
    ids = pipe.tokenizer(texts, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True,
                         return_tensors="pt").input_ids  # fmt: skip
    tower = pipe.text_encoder
    with torch.no_grad():
        read = tower(ids, output_hidden_states=True)
        if skip is None:
            return read.last_hidden_state
        return getattr(tower, "text_model", tower).final_layer_norm(read.hidden_states[-1 - skip])


@pytest.mark.parametrize(
    ("kind", "scheduler", "options", "sampler", "spacing", "steps", "size", "skip", "words"),
    CASES,
    ids=[f"{c[0]}-{c[3]}-{c[4]}" for c in CASES],
)
def test_latents_are_those_of_diffusers(kind, scheduler, options, sampler, spacing, steps, size, skip, words, twins):
    import diffusers

    pipe, config, painter = twins(kind)
    seed, guidance = secrets.randbelow(2**31), 7.0
    prompts, negatives = words
    form = (len(prompts), 4, size[1] // painter.codec.factor, size[0] // painter.codec.factor)
    noise = torch.randn(form, generator=torch.Generator().manual_seed(seed))
    made = getattr(diffusers, f"{scheduler}Scheduler")
    config = {**config, "timestep_spacing": SPACINGS[spacing], "steps_offset": int(spacing == "leading")}
    pipe.scheduler = made.from_config(config, **options)
    positive, negative = (read_by(pipe, texts, skip) for texts in (prompts, negatives))
    theirs = pipe(
        None, size[1], size[0], steps, prompt_embeds=positive, negative_prompt_embeds=negative, guidance_scale=guidance,
        latents=noise, output_type="latent",
    ).images  # fmt: skip

    knobs = {"steps": steps, "sampler": sampler, "spacing": spacing, "guidance": guidance, "clip_skip": (skip or 0) + 1}
    pairs = zip(prompts, negatives, strict=True)
    asked = [Request(prompt=p, negative=n, size=size, knobs=knobs) for p, n in pairs]
    settled, _ = painter.settle(asked[0])
    walk = painter.levels(settled)
    if hasattr(pipe.scheduler, "sigmas"):  # twice each in Heun's, once for each estimate
        sigmas = [float(s) for s in pipe.scheduler.sigmas]
        assert torch.allclose((walk.sigma / walk.alpha).float(), torch.tensor(sigmas[:1] + sigmas[1::2] if "heun" in sampler
                              else sigmas), rtol=1e-4)  # fmt: skip
    unit = scheduler not in ("DDIM", "DPMSolverMultistep")  # theirs is the sample over alpha
    start = noise * float(pipe.scheduler.init_noise_sigma) * (walk[0].alpha.float() if unit else 1.0)
    prompts_told = painter._prompts(painter.parts, settled, asked)
    estimate = estimates(
        painter.parts, painter.denoise, settled, prompts_told.plans(painter.device, painter.precision), asked
    )(steps)  # fmt: skip
    run = painter.sampler(settled)(estimate, start, walk, PictureNoise(PictureStreams([0] * len(asked)), form[1:]))
    ours = start
    for step in run:
        ours = step.x
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    assert difference < TOLERANCE, f"{difference:.2e}, noise {seed}"
    assert float((theirs[0] - noise[0]).abs().max()) > 0.1
