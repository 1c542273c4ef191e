"""CIE L*a*b* (CIE 015:2018, D65), in which equal distances look about equally different; from and to sRGB (IEC 61966-2-1).

L is lightness from 0 (black) to 100 (white); a runs from green to red, b from blue to yellow, 0 is grey.
"""

from __future__ import annotations

import numpy as np

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]], np.float32
)
_WHITE = _TO_XYZ.sum(1)  # D65, what (255, 255, 255) is
_FROM_XYZ = np.linalg.inv(_TO_XYZ.astype(np.float64)).astype(np.float32)
_EDGE = 6 / 29
# What each of the 256 values of a channel is in linear light.
_LINEAR = np.arange(256, dtype=np.float64) / 255
_LINEAR = np.where(_LINEAR <= 0.04045, _LINEAR / 12.92, ((_LINEAR + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) sRGB -> float32 (..., 3): L 0 to 100, a and b about -110 to 110."""
    t = _LINEAR[pixels] @ _TO_XYZ.T / _WHITE
    f = np.where(t > _EDGE**3, np.cbrt(t), t / (3 * _EDGE**2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """float (..., 3) -> uint8 (..., 3) sRGB, rounded; colours that a screen cannot show are clipped, channel by channel."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    t = np.where(f > _EDGE, f**3, 3 * _EDGE**2 * (f - 4 / 29))
    linear = np.clip((t * _WHITE) @ _FROM_XYZ.T, 0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(coded * 255).astype(np.uint8)
