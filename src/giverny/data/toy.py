"""A toy set drawn on the spot: coloured shapes and the words for them. Any number, any size, no file needed.

Enough to see whether a text-to-picture model learns to obey ("a small red circle"), in seconds and offline.
"""

from __future__ import annotations

import numpy as np

from ..base.contracts import Sample
from ..base.errors import InputError
from .chance import hashed

COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 170, 70),
    "blue": (40, 100, 220),
    "yellow": (235, 200, 40),
    "purple": (140, 70, 180),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "ring")
SIZES = {"small": 0.36, "": 0.56, "large": 0.8}  # diameter as a share of the picture's side


class ToyShapes:
    """`count` pictures of one shape each on black ground (a contracts.Source).

    Colour, shape, size and place of a picture depend on (seed, index) alone. Its label is its shape; its captions go
    from the full description to the bare shape.
    """

    def __init__(self, count: int = 1000, size: int = 32, seed: int = 0) -> None:
        if count < 1 or size < 4:
            raise InputError("at least 1 picture of at least 4 pixels", f"{count} of {size}")
        self.name = "toy-shapes"
        self.fingerprint = f"toy-1-{count}-{size}-{seed}"
        self.classes: tuple[str, ...] = SHAPES
        self._count, self._size, self._seed = count, size, seed

    def __len__(self) -> int:
        return self._count

    def captions_of(self, index: int) -> tuple[str, ...]:
        return self.read(index).captions

    def read(self, index: int) -> Sample:
        """Pixels uint8 (size, size, 3)."""
        if not 0 <= index < self._count:
            raise IndexError(f"picture {index} of {self._count}")
        draws = hashed("toy", self._seed, np.arange(5), index)
        shape, colour, size = (int(d) % n for d, n in zip(draws[:3], map(len, (SHAPES, COLOURS, SIZES)), strict=True))
        x, y = (float(draw >> np.uint64(11)) / 2**53 for draw in draws[3:])
        word, diameter = list(SIZES.items())[size]
        tint = list(COLOURS)[colour]
        covered = _coverage(SHAPES[shape], self._size, diameter, x, y)  # (size, size)
        pixels = np.rint(covered[..., None] * np.asarray(COLOURS[tint])).astype(np.uint8)
        full = " ".join(f"a {word} {tint} {SHAPES[shape]}".split())
        captions = dict.fromkeys((full, f"a {tint} {SHAPES[shape]}", f"a {SHAPES[shape]}"))
        return Sample(pixels=pixels, captions=tuple(captions), label=shape, name=f"{self.name}/{index}")


def _coverage(shape: str, size: int, diameter: float, x: float, y: float) -> np.ndarray:
    """How much of each pixel the shape covers, in [0, 1]: (size, size). x, y in [0, 1] place it inside the picture."""
    fine = 4  # sub-pixels along a side
    line = (np.arange(size * fine) + 0.5) / (size * fine)
    radius = diameter / 2
    # Coordinates relative to the centre, in radii. The shape stays whole.
    across = ((line - radius - x * (1 - diameter)) / radius)[None, :]
    down = ((line - radius - y * (1 - diameter)) / radius)[:, None]
    distance = np.hypot(across, down)
    inside = {
        "circle": distance <= 1,
        "ring": (distance <= 1) & (distance >= 0.55),
        "square": np.maximum(abs(across), abs(down)) <= 0.85,
        "triangle": (abs(down) <= 0.9) & (abs(across) <= (down + 0.9) / 1.8),
    }[shape]
    return inside.reshape(size, fine, size, fine).mean(axis=(1, 3))
