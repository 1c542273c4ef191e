"""The judges of Fashion-MNIST: two small networks of different build, trained here once and kept.

They are fitted to the pictures of even index of the training set, so that those of odd index are as new to them as the
test set is. Residual blocks and the one-cycle rate are the usual ones (He et al. 2016, Smith 2018); the sizes are ours,
chosen to be trained in about three minutes on two cores.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from giverny.base.files import atomic_write, fingerprint
from giverny.checkpoints.native import fill

SEED, BATCH, RATE, DECAY, SHIFT = 1, 128, 0.1, 5e-4, 2
EPOCHS = (10, 6)  # of the first and the second judge
BUILD = 1  # raise it when a network or its training changes: kept judges are then trained anew


def _conv(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside a straight way."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.body = nn.Sequential(_conv(channels, channels), last, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Judge(nn.Module):
    """Grey pictures (B, 1, 28, 28) in [-1, 1] -> logits (B, 10); `body` gives the features below them."""

    def __init__(self, body: nn.Sequential, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def first_judge() -> Judge:
    low = (_conv(1, 24), nn.MaxPool2d(2), _conv(24, 48), Residual(48), nn.MaxPool2d(2))
    return Judge(nn.Sequential(*low, _conv(48, 96), Residual(96), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 96)


def second_judge() -> Judge:
    """Another build (large steps, no averaging over places), so that it errs on other pictures."""
    high = (nn.Flatten(), nn.Linear(64 * 49, 128), nn.BatchNorm1d(128), nn.ReLU())
    return Judge(nn.Sequential(_conv(1, 32, 5, 2), _conv(32, 64, 5, 2), *high), 128)


def as_input(pixels: np.ndarray) -> Tensor:
    """uint8 (B, 28, 28) -> (B, 1, 28, 28) in [-1, 1]."""
    return torch.from_numpy(pixels.astype(np.float32))[:, None] / 127.5 - 1


def _gradient(net: Judge, x: Tensor, y: Tensor, bfloat16: bool) -> float:
    """Leaves the gradient on the network; returns the seconds it took."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = net(x)
    net.zero_grad()
    nn.functional.cross_entropy(logits.float(), y).backward()
    return time.perf_counter() - began


def bfloat16_pays(net: Judge, x: Tensor, y: Tensor) -> bool:
    """Whether the smaller format is faster on this machine: the best of three gradients each."""
    exact, rough = (min(_gradient(net, x, y, low) for _ in range(3)) for low in (False, True))
    return rough < 0.95 * exact


def train_judge(net: Judge, pixels: np.ndarray, labels: np.ndarray, epochs: int) -> Judge:
    """Fit to uint8 (N, 28, 28), shifted by up to two pixels either way. Same seed, format, threads and machine: same judge."""
    net.train()
    for weight in net.parameters():  # what convolutions are fastest with on a CPU
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    chance = torch.Generator().manual_seed(SEED)
    x, y = nn.functional.pad(as_input(pixels), [SHIFT] * 4, value=-1.0)[:, 0], torch.from_numpy(labels)
    bfloat16 = bfloat16_pays(net, as_input(pixels[:BATCH]), y[:BATCH])
    steps = epochs * (len(x) // BATCH)
    optimiser = torch.optim.SGD(net.parameters(), RATE, 0.9, weight_decay=DECAY, nesterov=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.25)
    order, side = torch.empty(0, dtype=torch.int64), torch.arange(28)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(x), generator=chance)
        chosen, order = order[:BATCH], order[BATCH:]
        down, right = torch.randint(0, 2 * SHIFT + 1, (2, BATCH, 1), generator=chance)
        shifted = x[chosen[:, None, None], (down + side)[:, :, None], (right + side)[:, None, :]]
        _gradient(net, shifted[:, None].contiguous(memory_format=torch.channels_last), y[chosen], bfloat16)
        optimiser.step()
        rates.step()
    return net.eval()


def open_judges(cache: Path, pixels: np.ndarray, labels: np.ndarray, data: str) -> list[Judge]:
    """Both judges, trained on (N, 28, 28) of which every second picture is taken, or as kept in the cache."""
    file = cache / f"judge-{fingerprint([SEED, BATCH, RATE, DECAY, SHIFT, EPOCHS, BUILD, data])}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        nets = [first_judge(), second_judge()]
    if not file.is_file():
        began = time.perf_counter()
        for net, epochs in zip(nets, EPOCHS, strict=True):
            train_judge(net, pixels[::2], labels[::2], epochs)
        tensors = {f"{i}.{k}": v.contiguous() for i, net in enumerate(nets) for k, v in net.state_dict().items()}
        atomic_write(file, save(tensors))
        print(f"trained the judges in {time.perf_counter() - began:.0f} s, kept in {file}")
    kept = load_file(file)
    for i, net in enumerate(nets):
        fill(net, {k[2:]: v for k, v in kept.items() if k.startswith(f"{i}.")}, "judge").eval()
    return nets


@torch.inference_mode()
def look(net: Judge, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 28, 28) -> classes found (N,), features (N, d) in float64."""
    features = torch.cat([net.body(as_input(part)) for part in np.array_split(pixels, max(1, len(pixels) // 250))])
    return net.head(features).argmax(1).numpy(), features.double().numpy()
