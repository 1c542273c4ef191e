"""Judges: small networks that say what a picture shows, trained here once and kept; and those of Fashion-MNIST.

The two of Fashion-MNIST are fitted to the pictures of even index of the training set, so that those of odd index are as
new to them as the test set is. Residual blocks and the one-cycle rate are the usual ones (He et al. 2016, Smith 2018);
the sizes are ours, chosen to be trained in about three minutes on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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

# ---------------------------------------------------------------------------------------------------------------------
# Networks


def conv_block(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions beside a straight way."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv_block(channels, channels), last, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Judge(nn.Module):
    """Pictures (B, C, H, W) in [-1, 1] -> logits (B, words); `body` gives the features (B, width) below them."""

    def __init__(self, body: nn.Sequential, width: int, words: int = 10) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


# ---------------------------------------------------------------------------------------------------------------------
# Training and looking, whatever the pictures


def as_input(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W) or (B, H, W, C) -> (B, C, H, W) in [-1, 1]."""
    return _channels_first(pixels) / 127.5 - 1


def _channels_first(pixels: np.ndarray) -> Tensor:
    """uint8 (B, H, W) or (B, H, W, C) -> the same numbers (B, C, H, W)."""
    whole = torch.from_numpy(pixels)
    return whole[:, None] if whole.dim() == 3 else whole.permute(0, 3, 1, 2)


def _gradient(net: Judge, x: Tensor, loss: Callable[[Tensor], Tensor], bfloat16: bool) -> float:
    """Leaves the gradient on the network; returns the seconds it took. loss: logits (B, words) -> a number."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = net(x)
    net.zero_grad()
    loss(logits.float()).backward()
    return time.perf_counter() - began


def bfloat16_pays(net: Judge, x: Tensor, loss: Callable[[Tensor], Tensor]) -> bool:
    """Whether the smaller format is faster on this machine: the best of three gradients each."""
    exact, rough = (min(_gradient(net, x, loss, low) for _ in range(3)) for low in (False, True))
    return rough < 0.95 * exact


def train_judge(
    net: Judge,
    pixels: np.ndarray,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    epochs: int,
    *,
    shift: int = SHIFT,
    ground: int = 0,
    mirror: bool = False,
    swapped: float = 0.0,
) -> Judge:
    """Fit to uint8 (N, H, W) or (N, H, W, C). Same seed, format, threads and machine: same judge.

    Pictures are shifted by up to `shift` pixels either way over a ground of that brightness, and mirrored by chance where
    `mirror` says so. swapped: share of pictures whose colour channels are shuffled, which leaves grey and white as they are.
    loss: (logits float32 (B, words), which rows (B,), whether these kept their colours bool (B,)) -> a number.
    """
    net.train()
    for weight in net.parameters():  # what convolutions are fastest with on a CPU
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    chance = torch.Generator().manual_seed(SEED)
    whole, first = _channels_first(pixels), torch.arange(BATCH)
    x = nn.functional.pad(whole, [shift] * 4, value=ground)
    bfloat16 = bfloat16_pays(net, as_input(pixels[:BATCH]), lambda logits: loss(logits, first, first >= 0))
    steps = epochs * (len(x) // BATCH)
    optimiser = torch.optim.SGD(net.parameters(), RATE, 0.9, weight_decay=DECAY, nesterov=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.25)
    order, (channels, high, wide) = torch.empty(0, dtype=torch.int64), (torch.arange(size) for size in whole.shape[1:])
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(x), generator=chance)
        chosen, order = order[:BATCH], order[BATCH:]
        down, right = torch.randint(0, 2 * shift + 1, (2, BATCH, 1), generator=chance)
        rows, columns = (down + high)[:, None, :, None], (right + wide)[:, None, None, :]
        layers = channels.expand(BATCH, -1)
        if swapped:
            moved = torch.rand(BATCH, 1, generator=chance) < swapped
            layers = torch.where(moved, torch.rand(layers.shape, generator=chance).argsort(1), layers)
        plain = (layers == channels).all(1)
        shown = x[chosen[:, None, None, None], layers[:, :, None, None], rows, columns]
        if mirror:
            turned = torch.rand(BATCH, generator=chance) < 0.5
            shown[turned] = shown[turned].flip(3)
        shown = (shown / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        _gradient(net, shown, lambda logits, rows=chosen, plain=plain: loss(logits, rows, plain), bfloat16)
        optimiser.step()
        rates.step()
    return net.eval()


def kept_or_trained(file: Path, nets: Sequence[Judge], train: Callable[[int], Judge]) -> list[Judge]:
    """The judges as the file holds them; where there is none, `train` is called with the number of each, and it is written."""
    if not file.is_file():
        began = time.perf_counter()
        for number in range(len(nets)):
            train(number)
        tensors = {f"{i}.{k}": v.contiguous() for i, net in enumerate(nets) for k, v in net.state_dict().items()}
        atomic_write(file, save(tensors))
        print(f"trained the judges in {time.perf_counter() - began:.0f} s, kept in {file}")
    kept = load_file(file)
    for i, net in enumerate(nets):
        fill(net, {k[2:]: v for k, v in kept.items() if k.startswith(f"{i}.")}, "judge").eval()
    return list(nets)


def untrained(*build: Callable[[], Judge]) -> list[Judge]:
    """Judges as their seed begins them; torch's own chance stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return [make() for make in build]


@torch.inference_mode()
def read(net: Judge, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, H, W) or (N, H, W, C) -> logits (N, words) in float32, features (N, d) in float64."""
    features = torch.cat([net.body(as_input(part)) for part in np.array_split(pixels, max(1, len(pixels) // 250))])
    return net.head(features).numpy(), features.double().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Fashion-MNIST


def first_judge() -> Judge:
    low = (conv_block(1, 24), nn.MaxPool2d(2), conv_block(24, 48), Residual(48), nn.MaxPool2d(2))
    return Judge(nn.Sequential(*low, conv_block(48, 96), Residual(96), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 96)


def second_judge() -> Judge:
    """Another build (large steps, no averaging over places), so that it errs on other pictures."""
    high = (nn.Flatten(), nn.Linear(64 * 49, 128), nn.BatchNorm1d(128), nn.ReLU())
    return Judge(nn.Sequential(conv_block(1, 32, 5, 2), conv_block(32, 64, 5, 2), *high), 128)


def open_judges(cache: Path, pixels: np.ndarray, labels: np.ndarray, data: str) -> list[Judge]:
    """Both judges, trained on (N, 28, 28) of which every second picture is taken, or as kept in the cache."""
    file = cache / f"judge-{fingerprint([SEED, BATCH, RATE, DECAY, SHIFT, EPOCHS, BUILD, data])}.safetensors"
    nets, even, told = untrained(first_judge, second_judge), pixels[::2], torch.from_numpy(labels[::2])

    def loss(logits: Tensor, rows: Tensor, _: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, told[rows])

    return kept_or_trained(file, nets, lambda number: train_judge(nets[number], even, loss, EPOCHS[number]))


def look(net: Judge, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 28, 28) -> classes found (N,), features (N, d) in float64."""
    logits, features = read(net, pixels)
    return logits.argmax(1), features
