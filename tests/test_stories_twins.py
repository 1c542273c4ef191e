"""Image-to-image and inpainting of tiny random Stable Diffusion models against diffusers' own pipelines, from the same seed."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from giverny.base.contracts import Request, Start
from giverny.base.images import png_bytes
from giverny.base.start import enclosed
from giverny.painters.diffusion.family import open_published
from published_twins import write_twin
from tiny_painters import painted

pytestmark = pytest.mark.xdist_group("diffusers")
SEED = random.SystemRandom().randrange(2**31)  # fresh every time; every failure names it


@pytest.fixture(autouse=True)
def drawn():
    print(f"drawn from seed {SEED}")
    random.seed(SEED)
    np.random.seed(SEED % 2**31)


@pytest.mark.parametrize(("kind", "strength"), [("sd1", None), ("sd2", None), ("sd1", 1.0), ("inpainting", None)])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_what_diffusers_makes(tmp_path, monkeypatch, kind, strength, masked):
    """Their mask in latents takes the nearest pixel: ours lies on the grid of latents, where both agree."""
    from diffusers import (
        DDIMScheduler,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
    )
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    if kind == "inpainting" and not masked:
        pytest.skip("their image-to-image takes no inpainting model")
    if masked and strength == 1:
        pytest.skip("at 1 their first sample is noise outside the mask as well, ours is what stays")
    write_twin(tmp_path / "twin", kind, SEED % 10_000)
    painter = open_published(tmp_path / "twin", torch.device("cpu"), torch.float32)
    step, steps = painter.parts.step, random.randint(4, 9)
    side = 8 * step
    strength = random.uniform(1 / steps, 0.99) if strength is None else strength
    picture = np.random.randint(0, 256, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[step : 5 * step, 2 * step : 7 * step] = 255
    for name, pixels in (("picture", picture), ("mask", mask)):
        (tmp_path / f"{name}.png").write_bytes(png_bytes(pixels))
    # Their pipelines draw the latent by chance; ours, and theirs here, take the mean.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    made = {True: StableDiffusionInpaintPipeline, False: StableDiffusionImg2ImgPipeline}[masked]
    source = made if kind == "inpainting" else StableDiffusionPipeline
    theirs = source.from_pretrained(tmp_path / "twin", safety_checker=None)
    theirs = theirs if kind == "inpainting" else made(**theirs.components, requires_safety_checker=False)
    # beyond the steps themselves: ours end in the clean picture, as their DDIM with set_alpha_to_one does
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, set_alpha_to_one=True)
    theirs.set_progress_bar_config(disable=True)
    more = {"mask_image": Image.fromarray(mask), "height": side, "width": side} if masked else {}
    wanted = theirs(
        "a red cat", image=Image.fromarray(picture), strength=strength, num_inference_steps=steps, guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7), output_type="latent", **more,
    ).images  # fmt: skip
    start = Start(
        picture=enclosed(tmp_path / "picture.png"),
        strength=strength,
        mask=enclosed(tmp_path / "mask.png") if masked else None,
    )
    seen = []
    decoded = painter._decoded
    monkeypatch.setattr(painter, "_decoded", lambda latents, codec: seen.append(latents) or decoded(latents, codec))
    knobs = {"sampler": "ddim", "spacing": "leading", "steps": steps, "guidance": 3.0}
    request = Request(prompt="a red cat", seed=7, size=(side, side), start=start)
    final = painted(painter, request, **knobs)[0].pixels
    ours = seen[-1] / painter.parts.recipe.scale.scale * theirs.vae.config.scaling_factor
    far = float((ours - wanted).abs().max()) / max(1, float(wanted.abs().max()))
    assert far < 1e-4, (kind, strength, steps, far)
    if masked:
        assert np.array_equal(final[mask == 0], picture[mask == 0])
