"""Previews by a linear map: near the decoder's pictures, far from other pictures', and much faster than it."""

import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from giverny.assembly import open_painter
from giverny.autoencoders.codec import LatentCodec, LatentScale
from giverny.autoencoders.preview import fitted
from giverny.base.contracts import Progress, Request
from giverny.base.images import to_tensor
from giverny.painters.diffusion.family import open_published
from published_twins import write_twin
from tiny_painters import WORDS, tiny_painter

SEED = random.SystemRandom().randrange(2**31)  # fresh every time; every failure names it
PROMPTS = ["a red dress", "white sneakers", "a brown bag", "green trousers", "a black coat", "a blue hat"]


@pytest.fixture(autouse=True)
def drawn():
    print(f"drawn from seed {SEED}")
    torch.manual_seed(SEED)


def likeness(a, b):
    """Correlation of each picture of one set with that of the other, uint8 (B, H, W, 3)."""
    a, b = (to_tensor(np.stack(x)).flatten(1) for x in (a, b))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def shown(painter, prompts, **knobs):
    """(previews, the exact decoding of the same latents) of the last step, by picture."""
    exact = []
    preview = painter._preview
    painter._preview = lambda latents: exact.append(painter._pixels(latents)) or preview(latents)
    asked = [Request(prompt=p, seed=(SEED + i) % 2**31, id=str(i), knobs=knobs) for i, p in enumerate(prompts)]
    told = [e for e in painter.paint(asked, previews=True) if isinstance(e, Progress)]
    last = {e.id: e.preview for e in told if e.step == e.total}
    return [last[r.id] for r in asked], exact[-1]


@pytest.mark.parametrize(("name", "least"), [("wardrobe", 0.9), ("fashion-mnist", 0.75)])
def test_previews_are_near_what_the_decoder_makes(name, least):
    """One picture among many may be off; of the median all chance is gone: another picture's preview is far below."""
    fast, full = shown(open_painter(name), PROMPTS, steps=12)
    own = likeness(fast, full)
    others = torch.cat([likeness(np.roll(fast, k, 0), full) for k in range(1, len(PROMPTS))])
    assert own.median() > least and others.median() < own.median() - 0.2, (own, others)
    assert all(a.shape == b.shape for a, b in zip(fast, full, strict=True))


class Patches(nn.Module):
    """A linear autoencoder: eight by eight pixels are seen as their mean colours and contrast, four numbers, and put back."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 4, 8, stride=8)
        self.show = nn.Conv2d(4, 3 * 64, 3, padding=1, padding_mode="replicate")
        self.show.weight.data *= 0.1
        self.show.bias.data *= 0.1

    def encode(self, pixels):
        return Sure(self.look(pixels))

    def decode(self, latents):
        return F.pixel_shuffle(self.show(latents), 8)


class Sure:
    """A belief without doubt."""

    def __init__(self, mean):
        self.mean = self.spread = mean


def test_a_linear_decoder_of_four_channels_is_found_exactly():
    codec = LatentCodec(Patches().requires_grad_(False), 4, 8, LatentScale(scale=0.18215))
    made = fitted(codec, 3, torch.device("cpu"), torch.float32)
    assert made.weight.shape == (3 * 64, 4, 3, 3)
    latents = 0.2 * torch.randn(2, 4, 6, 9)
    left = (made(latents) - codec.decode(latents)).square().mean() / codec.decode(latents).var()
    assert left < 1e-3, float(left)


def test_of_stable_diffusions_layout(tmp_path):
    write_twin(tmp_path / "twin", "sd1", SEED % 10_000)
    painter = open_published(tmp_path / "twin", torch.device("cpu"), torch.float32)
    step = painter.parts.step
    size = (8 * step, 6 * step)
    told = list(painter.paint([Request(prompt="a red cat", size=size, knobs={"steps": 2})], previews=True))
    assert [e.preview.shape for e in told if isinstance(e, Progress)] == [(size[1], size[0], 3)] * 2


def test_faster_than_decoding_at_every_step_and_made_once(monkeypatch):
    painter = open_painter("wardrobe")
    latents = torch.randn(8, painter.codec.channels, 8, 8)
    first = painter._preview(latents)
    monkeypatch.setattr("giverny.painters.diffusion.painter.fitted", lambda *_: pytest.fail("made twice"))

    def seconds(work):
        times = []
        for _ in range(7):
            began = time.perf_counter()
            work(latents)
            times.append(time.perf_counter() - began)
        return min(times)

    assert np.array_equal(first, painter._preview(latents))
    assert seconds(painter._preview) < seconds(painter._pixels) / 3


@pytest.mark.parametrize("pixels", [False, True])
def test_pictures_are_the_same_with_previews(pixels):
    painter = tiny_painter(pixels=pixels)
    asked = [Request(prompt=WORDS[0], seed=3)]
    plain, *_ = [e.artifact.pixels for e in painter.paint(asked) if hasattr(e, "artifact")]
    events = list(painter.paint(asked, previews=True))
    assert np.array_equal(plain, events[-1].artifact.pixels)
    assert all(e.preview.shape == plain.shape for e in events if isinstance(e, Progress))
    if pixels:  # nothing to be approximated
        assert np.array_equal(events[-2].preview, plain)


def test_of_half_precision_and_of_spoilt_weights():
    painter = tiny_painter(dtype=torch.float16)
    painter.parts.autoencoder.decoder.conv_in.weight.data *= 3e4
    assert painter._preview(torch.randn(1, 4, 8, 8)).std() > 0
    painter = tiny_painter()
    painter.parts.autoencoder.decoder.conv_in.weight.data[0] = torch.inf
    assert painter._preview(torch.randn(1, 4, 8, 8)).shape == (1, 16, 16, 3)
