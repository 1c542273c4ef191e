"""VGG16 (Simonyan and Zisserman 2015, arXiv 1409.1556), and LPIPS upon it (Zhang et al. 2018, arXiv 1801.03924): how unlike two
pictures look. Names are torchvision's and the `lpips` package's, so that published weights load."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..base.errors import InputError, choose

WIDTHS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each level
TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")  # the last of each level
SIDE = 224  # pixels a side that the layers above the convolutions want
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pictures in [0, 1]
TINY = 1e-10  # beside a length that is divided by


class VGG16(nn.Module):
    """Pictures (B, 3, H, W), in [0, 1] less ImageNet's mean over its spread. tops: with the layers that want 224 x 224."""

    def __init__(self, tops: bool = False, width: int = 4096) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # where each level's last ReLU stands
        inputs = 3
        for channels, count in WIDTHS:
            for _ in range(count):
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
                inputs = channels
            self.ends.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier: nn.Sequential | None = None
        if tops:
            flat = WIDTHS[-1][0] * (SIDE // 32) ** 2
            self.classifier = nn.Sequential(
                nn.Linear(flat, width), nn.ReLU(), nn.Identity(), nn.Linear(width, width), nn.ReLU(), nn.Identity(),
                nn.Linear(width, 1000),
            )  # fmt: skip
        self.eval().requires_grad_(False)

    def levels(self, x: Tensor, taps: Sequence[str] = TAPS) -> list[Tensor]:
        """What stands after the last ReLU of each level that is wanted, from the pictures on upwards."""
        wanted = {TAPS.index(choose(tap, TAPS, "tap of VGG16")) for tap in taps}
        ends = {end: level for level, end in enumerate(self.ends)}
        found, h = [], x
        for i, layer in enumerate(self.features.children()):
            h = layer(h)
            if ends.get(i) in wanted:
                found.append(h)
            if len(found) == len(wanted):
                break
        return found

    def below_logits(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, 4096), the second hidden layer: what precision and recall were published with."""
        if self.classifier is None or x.shape[-2:] != (SIDE, SIDE):
            given = "no upper layers" if self.classifier is None else "{} x {}".format(*x.shape[:-3:-1])
            raise InputError(f"VGG16 with its upper layers and pictures of {SIDE} x {SIDE}", given)
        hidden: nn.Module = self.classifier[:5]
        found: Tensor = hidden(self.features(x).flatten(1))
        return found


class LPIPS(nn.Module):
    """Distance of pictures (B, 3, H, W) in [-1, 1], sides of 32 or more -> (B,), 0 where they are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.net = VGG16()
        for level, (channels, _) in enumerate(WIDTHS):
            setattr(self, f"lin{level}", nn.Conv2d(channels, 1, 1, bias=False))
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor((-0.030, -0.088, -0.188)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor((0.458, 0.448, 0.450)).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if ours.shape != theirs.shape or min(ours.shape[-2:]) < 32:
            raise InputError("pairs of pictures of 32 pixels a side or more", f"{tuple(ours.shape)}, {tuple(theirs.shape)}")
        both = self.net.levels((torch.cat([ours, theirs]) - self.shift) / self.scale)
        total = ours.new_zeros(len(ours))
        for level, h in enumerate(both):
            h = h / (h.square().sum(1, keepdim=True).sqrt() + TINY)
            a, b = h.chunk(2)
            total = total + getattr(self, f"lin{level}")((a - b).square()).mean((1, 2, 3))
        return total
