"""Inception v3 (Szegedy et al. 2016, arXiv 1512.00567) as FID knows it: the network that was published with TensorFlow on
2015-12-05, not the one that torchvision trained later.

It differs from the usual one in what its pools see: averages leave the padding out, and the last block takes a maximum where
the one before takes an average. Names are those of the weights that FID programs share (`pt_inception-2015-12-05`), 1008
classes. Only what lies on the way to a wanted tap is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError, choose

TAPS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits_unbiased": 1008, "logits": 1008}  # name -> width
SIDE = 299  # pixels a side it was trained on
CLASSES = 1008


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: bool = True) -> None:
        super().__init__()
        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        around = (high // 2, wide // 2) if padding else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (high, wide), stride, around, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def averaged(x: Tensor) -> Tensor:
    """3 x 3 means, the padding left out."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def greatest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


class Fine(nn.Module):
    """Blocks 5b to 5d: 1 x 1, 5 x 5 and two 3 x 3 side by side."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Unit(inputs, 48, 1), Unit(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = Unit(inputs, 64, 1), Unit(64, 96, 3), Unit(96, 96, 3)
        self.branch_pool = Unit(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, twice, self.branch_pool(averaged(x))], 1)


class ToMiddle(nn.Module):
    """Block 6a: half the sides."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(inputs, 384, 3, 2, padding=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 64, 1), Unit(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, 3, 2, padding=False)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, halved(x)], 1)


class Middle(nn.Module):
    """Blocks 6b to 6e: 7 x 7 taken apart into 1 x 7 and 7 x 1."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        flat, tall = (1, 7), (7, 1)
        self.branch1x1 = Unit(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Unit(768, inner, 1), Unit(inner, inner, flat)
        self.branch7x7_3 = Unit(inner, 192, tall)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Unit(768, inner, 1), Unit(inner, inner, tall)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Unit(inner, inner, flat), Unit(inner, inner, tall)
        self.branch7x7dbl_5 = Unit(inner, 192, flat)
        self.branch_pool = Unit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(averaged(x))], 1)


class ToCoarse(nn.Module):
    """Block 7a: half the sides."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Unit(768, 192, 1), Unit(192, 320, 3, 2, padding=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Unit(768, 192, 1), Unit(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Unit(192, 192, (7, 1)), Unit(192, 192, 3, 2, padding=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, halved(x)], 1)


class Coarse(nn.Module):
    """Blocks 7b and 7c; they differ in their pool."""

    def __init__(self, inputs: int, last: bool) -> None:
        super().__init__()
        self.pool = greatest if last else averaged
        self.branch1x1 = Unit(inputs, 320, 1)
        self.branch3x3_1 = Unit(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Unit(384, 384, (1, 3)), Unit(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 448, 1), Unit(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Unit(384, 384, (1, 3)), Unit(384, 384, (3, 1))
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        once = [self.branch3x3_2a(once), self.branch3x3_2b(once)]
        return torch.cat(
            [
                self.branch1x1(x),
                *once,
                self.branch3x3dbl_3a(twice),
                self.branch3x3dbl_3b(twice),
                self.branch_pool(self.pool(x)),
            ],
            1,
        )


class FIDInception(nn.Module):
    """Pictures (B, 3, 299, 299), in what its resizer hands over: (value in 0..255 - 128) / 128 -> features by tap."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Unit(3, 32, 3, 2, padding=False), Unit(32, 32, 3, padding=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Unit(64, 80, 1), Unit(80, 192, 3, padding=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = Fine(192, 32), Fine(256, 64), Fine(288, 64)
        self.Mixed_6a = ToMiddle(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = Middle(128), Middle(160), Middle(160), Middle(192)
        self.Mixed_7a = ToCoarse()
        self.Mixed_7b, self.Mixed_7c = Coarse(1280, last=False), Coarse(2048, last=True)
        self.fc = nn.Linear(2048, CLASSES)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, taps: Sequence[str] = ("2048",)) -> dict[str, Tensor]:
        """x (B, 3, H, W) -> tap -> (B, width), means over places. Raises InputError for a tap it does not have."""
        wanted = {choose(tap, TAPS, "tap of Inception") for tap in taps}
        if min(x.shape[-2:]) < 75:
            raise InputError("pictures of 75 pixels a side or more inside Inception", "{} x {}".format(*x.shape[:-3:-1]))
        found: dict[str, Tensor] = {}

        def keep(tap: str, h: Tensor) -> bool:
            """Whether all that is wanted has been seen."""
            if tap in wanted:
                found[tap] = h.mean((2, 3))
            return len(found) == len(wanted)

        h = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))  # (B, 64, 73, 73)
        if keep("64", h):
            return found
        h = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(h)))  # (B, 192, 35, 35)
        if keep("192", h):
            return found
        h = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(h))))
        h = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(h))))  # (B, 768, 17, 17)
        if keep("768", h):
            return found
        h = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(h)))  # (B, 2048, 8, 8)
        if keep("2048", h):
            return found
        features = h.mean((2, 3))
        unbiased = F.linear(features, self.fc.weight)
        for tap, logits in (("logits_unbiased", unbiased), ("logits", unbiased + self.fc.bias)):
            if tap in wanted:
                found[tap] = logits
        return found
