"""Between pixels and what a denoiser works on: the one place that knows an autoencoder's scale.

`latent = (raw - shift) * scale` has about unit variance; Stable Diffusion 1.x has scale 0.18215 and shift 0. A denoiser that
works on pixels uses `PixelCodec`, and nothing else changes.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from ..base.contracts import Frozen


class LatentScale(Frozen):
    """Measured once over training latents (1 / standard deviation), stored with the model."""

    scale: float = 1.0
    shift: float = 0.0


class Belief(Protocol):
    """What an encoder makes of pictures: a latent and how sure it is of it, (B, z, h, w) each."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def spread(self) -> Tensor: ...

    def sample(self, noise: Tensor) -> Tensor: ...


class Autoencoder(Protocol):
    """`decode` takes raw latents from anywhere in the latent space; one with a codebook looks them up in there."""

    def encode(self, pixels: Tensor) -> Belief: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@runtime_checkable
class InTwoParts(Protocol):
    """An autoencoder whose `decode(x)` is `finish(*open(x))`.

    open: latents -> maps of their size, which may depend on all of a picture; finish: the same part of each map -> the pixels
    of that part, of which those far from its edges are the whole picture's (but for statistics that are taken over a part).
    """

    def open(self, latents: Tensor) -> tuple[Tensor, ...]: ...

    def finish(self, *maps: Tensor) -> Tensor: ...


class LatentCodec:
    """Codec over an autoencoder whose `encode` gives a belief and whose `decode` takes raw latents."""

    def __init__(self, autoencoder: Autoencoder, channels: int, factor: int, scale: LatentScale) -> None:
        self.autoencoder, self.channels, self.factor, self.scale = autoencoder, channels, factor, scale

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, z, H/f, W/f). The mean, or with unit `noise` a sample of the encoder's belief."""
        belief = self.autoencoder.encode(pixels)
        raw = belief.mean if noise is None else belief.sample(noise)
        return (raw - self.scale.shift) * self.scale.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) -> (B, C, h*f, w*f), about [-1, 1] but not clamped."""
        return self.autoencoder.decode(self._raw(latents))

    def open(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The first part of `decode`; with an autoencoder that has no parts, nothing but the scale."""
        raw = self._raw(latents)
        return self.autoencoder.open(raw) if isinstance(self.autoencoder, InTwoParts) else (raw,)

    def finish(self, *maps: Tensor) -> Tensor:
        """The second part of `decode`, for all of the maps or the same part of each."""
        if isinstance(self.autoencoder, InTwoParts):
            return self.autoencoder.finish(*maps)
        return self.autoencoder.decode(*maps)

    def _raw(self, latents: Tensor) -> Tensor:
        return latents / self.scale.scale + self.scale.shift


class PixelCodec:
    """The identity: a denoiser that works on pixels."""

    factor = 1

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor) -> Tensor:
        return latents
