"""From what a network predicts to a clean estimate, and from a clean sample to what it should predict.

The only place that knows about prediction types: noise ("epsilon", Ho et al. 2020, arXiv 2006.11239), velocity ("v",
Salimans and Ho 2022, arXiv 2202.00512) and the sample itself. Everything else sees `Denoise(x, level, prepared) ->
clean`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from ..base.contracts import Condition, NoiseLevel, Prepared, Probe
from ..base.errors import InputError, choose
from ..base.table import time_of

Prediction = Literal["epsilon", "v", "sample"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
Kind = Literal["painting", "photograph"]  # of a picture, where one network knows two; the first is what is painted
KINDS: tuple[Kind, ...] = get_args(Kind)
MOMENTS = 1000  # noise levels whose meaning is kept: a few numbers each


class Network(Protocol):
    """A network trained on a table of times: x of unit scale (B, ...), t (B,) in 0..T-1, whole or fractional."""

    def prepare(self, condition: Condition) -> Prepared: ...

    def __call__(self, x: Tensor, t: Tensor, prepared: Prepared, probe: Probe | None = None) -> Tensor: ...


class OfKinds(Protocol):
    """A network that knows paintings and photographs. Samples and what it predicts are (B, C, H, W), t is (B,).

    say: its prediction about pictures of one kind, and the middle piece that it came by (None where it has none).
    both: the same of both kinds at one time, in training. first: the middle piece alone.
    """

    def say(self, kind: Kind, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]: ...

    def both(self, noisy: Mapping[Kind, Tensor], t: Tensor) -> dict[Kind, tuple[Tensor, Tensor | None]]: ...

    def first(self, kind: Kind, x: Tensor, t: Tensor) -> Tensor: ...


class DiscreteDenoiser:
    """A network with a training table, as a denoiser (contracts.Denoise).

    network: predicts epsilon, v or the sample from a variance-preserving x. table: (T,) alphas_cumprod.
    can: what the network allows, out of {"grad", "probe"}. precision: what it calculates in, whatever x is in; None: x's.
    Levels may be in any form; x is brought to alpha^2 + sigma^2 = 1 before the network sees it, so that
    variance-exploding samplers work as well. Times between two entries of the table are fractional.
    """

    def __init__(
        self,
        network: Network,
        table: Tensor,
        prediction: Prediction,
        can: frozenset[str] = frozenset({"grad", "probe"}),
        precision: torch.dtype | None = None,
    ) -> None:
        choose(prediction, PREDICTIONS, "prediction type")
        self.network, self.prediction, self.can, self.precision = network, prediction, can, precision
        self.table = table.detach().to("cpu", torch.float64)
        self.moments: dict[tuple[Any, ...], Moment] = {}

    def prepare(self, condition: Condition) -> Prepared:
        return self.network.prepare(condition)

    def __call__(self, x: Tensor, level: NoiseLevel, prepared: Prepared, probe: Probe | None = None) -> Tensor:
        """The clean estimate, (B, ...) in x's dtype. level: () or (B,). Raises InputError as `Moment.of`."""
        moment = self._moment(level, x)
        seen = (x * moment.inward).to(self.precision or x.dtype)
        out = self.network(seen, moment.times.expand(len(x)), prepared, probe).to(x.dtype)
        if self.prediction == "sample":
            return out
        # A condition of k times the sample's rows has k estimates of each: they are told apart by a dimension of their own.
        estimates = out.unflatten(0, (len(out) // len(x), len(x)))
        return torch.addcmul(moment.own * x, estimates, moment.predicted).flatten(0, 1)

    def _moment(self, level: NoiseLevel, x: Tensor) -> Moment:
        """`Moment.of` this level; that of a level all pictures share is kept, since every run of a schedule asks for it."""
        if level.alpha.dim():
            return Moment.of(level, self.table, self.prediction, x)
        key = (float(level.alpha), float(level.sigma), x.dtype, x.device)
        found = self.moments.get(key)
        if found is None:
            found = Moment.of(level, self.table, self.prediction, x)
            if len(self.moments) < MOMENTS:
                self.moments[key] = found  # one assignment: threads at worst work the same thing out twice
        return found


@dataclass(frozen=True)
class Moment:
    """What a noise level means for a network: when it is, and how its words become an estimate of the clean sample.

    network input: inward * x at `times`; estimate: own * x + predicted * output. Shaped () or (B, 1, ...), but times (1,) or
    (B,); in the sample's dtype and on its device.
    """

    times: Tensor
    inward: Tensor
    own: Tensor
    predicted: Tensor

    @staticmethod
    def of(level: NoiseLevel, table: Tensor, prediction: Prediction, x: Tensor) -> Moment:
        """Raises InputError for alpha = 0 with an epsilon network: its estimate divides by alpha."""
        alpha, sigma, size = _unit(level)
        if prediction == "epsilon" and bool((alpha == 0).any()):
            raise InputError(
                "a start with some signal in it (alpha > 0) for a network that predicts noise",
                "pure noise (alpha = 0, zero terminal SNR)",
                "use a table without zero_terminal_snr, or a network trained to predict v or the sample",
            )
        times = time_of(table, level).to(torch.promote_types(x.dtype, torch.float32)).to(x.device).reshape(-1)
        if prediction == "epsilon":
            own, predicted = 1 / (alpha * size), -sigma / alpha
        else:
            own, predicted = alpha / size, -sigma
        return Moment(times, *(_shaped(weight, x) for weight in (1 / size, own, predicted)))


def targets(prediction: Prediction, clean: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """What a network of this type should say about alpha * clean + sigma * noise; shape and dtype of clean."""
    choose(prediction, PREDICTIONS, "prediction type")
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    alpha, sigma, _ = _unit(level)
    return _shaped(alpha, clean) * noise - _shaped(sigma, clean) * clean


def min_snr_weight(prediction: Prediction, level: NoiseLevel, gamma: float | None = 5.0) -> Tensor:
    """Weight of each picture's squared error (Hang et al. 2023, arXiv 2303.09556): SNR capped at gamma, in x0 units.

    Returns float64 shaped like the level, (B,); all ones where gamma is None. Finite at both ends (alpha = 0, sigma =
    0).
    """
    choose(prediction, PREDICTIONS, "prediction type")
    snr = (level.alpha.double() / level.sigma.double()) ** 2
    if gamma is None:
        return torch.ones_like(snr)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1)  # min(snr, gamma) / snr, without 0 / 0 at pure noise
    capped = snr.clamp(max=gamma)
    return capped / (snr + 1) if prediction == "v" else capped


def _unit(level: NoiseLevel) -> tuple[Tensor, Tensor, Tensor]:
    """(alpha, sigma) brought to alpha^2 + sigma^2 = 1, and the size they had, all float64."""
    alpha, sigma = level.alpha.double(), level.sigma.double()
    size = torch.hypot(alpha, sigma)
    return alpha / size, sigma / size, size


def _shaped(weight: Tensor, x: Tensor) -> Tensor:
    """A weight computed in float64, in x's dtype and device, shaped to multiply a (B, ...) sample."""
    return weight.to(x).reshape(-1, *(1,) * (x.dim() - 1)) if weight.dim() else weight.to(x)
