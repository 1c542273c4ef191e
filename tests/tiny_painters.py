"""Whole diffusion painters of drawn, untrained weights, small enough to differentiate by hand; and a CLIP beside them."""

import torch

from giverny.autoencoders.codec import LatentScale
from giverny.autoencoders.kl import KLRecipe
from giverny.base.contracts import Done, Failed, Progress, Request, Started
from giverny.denoisers.unet import UNetRecipe
from giverny.painters.diffusion.painter import DiffusionPainter
from giverny.painters.diffusion.recipe import ModelRecipe, assemble
from giverny.sampling.schedules import ScheduleRecipe
from giverny.text.clip import ClipImageRecipe, ClipRecipe, ClipTextRecipe
from giverny.text.space import SharedSpace
from giverny.text.tokenizer import Tokenizer

WORDS = ["a red circle", "two big blue squares", "a green ring"]
SIZE = 16


def tiny_clip(channels=3, size=SIZE, dtype=torch.float32):
    """A `SharedSpace` whose towers have drawn weights."""
    tokenizer = Tokenizer.train(WORDS, 530, 10)
    text = ClipTextRecipe(width=16, layers=1, heads=2, inner=32, length=10, vocabulary=tokenizer.vocabulary)
    image = ClipImageRecipe(width=16, layers=1, heads=2, inner=32, size=size, patch=4, channels=channels)
    clip = shaken(ClipRecipe(text=text, image=image, shared_width=12).build().to(dtype))
    return SharedSpace(clip, tokenizer)


def shaken(network, much=0.05):
    """Its weights moved away from their beginnings, some of which are zero."""
    for p in network.parameters():
        p.data += much * torch.randn_like(p)
    return network


def tiny_painter(pixels=False, prediction="v", dtype=torch.float32, zero=True, schedule="cosine", **more):
    """A painter of 16 x 16 pictures: 8 x 8 latents, or pixels. Its CLIP is drawn too, and opened under any name."""
    space = tiny_clip(dtype=dtype)
    channels = 3 if pixels else 4
    unet = UNetRecipe(
        in_channels=channels, out_channels=channels, channels=(8, 16), blocks=1, attention=(False, True), depth=(1, 1),
        heads=(2, 2), context_width=16, groups=4,
    )  # fmt: skip
    autoencoder = None if pixels else KLRecipe(channels=(8, 8), blocks=1, groups=4, latent_channels=4, middle_attention=False)
    recipe = ModelRecipe(
        autoencoder=autoencoder,
        scale=LatentScale() if pixels else LatentScale(scale=0.8, shift=0.1),
        text=space.clip.recipe.text,
        image=space.clip.recipe.image,
        pooled_width=12,
        denoiser=unet,
        mask_padding=True,
        schedule=ScheduleRecipe(kind=schedule, zero_terminal_snr=zero and prediction != "epsilon"),
        prediction=prediction,
    )
    built = shaken(unet.build().to(dtype)), None if autoencoder is None else shaken(autoencoder.build().to(dtype))
    parts = assemble(recipe, space.tokenizer, space.clip.text_model, space.clip.text_projection, *built)
    painter = DiffusionPainter(parts, size=(SIZE, SIZE), defaults={"steps": 4}, precision=dtype, **more)
    painter.clips = lambda name: space
    return painter


def requests(*asked, **knobs):
    """Requests from (prompt, seed) pairs or whole ones, numbered, with these knobs."""
    made = [a if isinstance(a, Request) else Request(prompt=a[0], seed=a[1]) for a in asked]
    return [r.model_copy(update={"id": str(i), "knobs": {**r.knobs, **knobs}}) for i, r in enumerate(made)]


def painted(painter, *asked, **knobs):
    """The finished pictures, in order."""
    wanted = requests(*asked, **knobs)
    events = list(painter.paint(wanted))
    assert not [e for e in events if isinstance(e, Failed)], events
    done = {e.id: e.artifact for e in events if isinstance(e, Done)}
    return [done[r.id] for r in wanted]


def story(painter, request, **how):
    """(Started's total, the steps told, the picture) of one request."""
    events = list(painter.paint([request], **how))
    assert isinstance(events[0], Started) and isinstance(events[-1], Done), events
    return events[0].total, [e for e in events if isinstance(e, Progress)], events[-1].artifact
