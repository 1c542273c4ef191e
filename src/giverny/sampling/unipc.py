"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a multistep predictor, and a corrector that costs no estimate of its own.

The data-prediction form in h = log(alpha' / sigma') - log(alpha / sigma), with B(h) = h ("bh1") or e^h - 1 ("bh2") of the
paper's section 3.3. The estimate at a step's start serves twice: it corrects the step that led there, then predicts the next.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base.contracts import Estimate, Levels, NoiseSource
from ..base.errors import InputError
from .stride import Stride, Walk, strides
from .walks import handed


def unipc(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, order: int = 3, lower_order_final: bool = True
) -> Walk:
    """UniPC with B(h) = h, the default of AUTOMATIC1111. Draws no noise.

    order: of the predictor, from 1 up; the first steps have less to remember. lower_order_final: fall back to order 1 towards
    the end of the run, for short runs. A step from pure noise or to clean is first order. An edit of the sample is kept: the
    corrector only adds its difference to it.
    """
    return _unipc(estimate, x, levels, order, lower_order_final, plain=True)


def unipc_bh2(
    estimate: Estimate, x: Tensor, levels: Levels, noise: NoiseSource, *, order: int = 3, lower_order_final: bool = True
) -> Walk:
    """UniPC with B(h) = e^h - 1, ComfyUI's "uni_pc_bh2" and the default of diffusers. Options as of `unipc`."""
    return _unipc(estimate, x, levels, order, lower_order_final, plain=False)


def _unipc(estimate: Estimate, x: Tensor, levels: Levels, order: int, lower_order_final: bool, *, plain: bool) -> Walk:
    if order < 1:
        raise InputError("an order of at least 1", str(order), "3 is usual")
    past: list[tuple[float, Tensor]] = []  # log(alpha / sigma) and estimate, the latest first; none of pure noise
    last: _Blend | None = None
    for i, stride in enumerate(strides(levels)):
        clean = estimate(x, levels[i], i)
        if last is not None:
            x = x + last.correction(clean)
        now = math.log(stride.a / stride.s) if stride.a > 0 else -math.inf
        past = [(now, clean), *past][:order] if stride.a > 0 else []
        x, last = stride.land(x, clean), None
        if stride.length < math.inf:
            left = levels.steps - i if lower_order_final else order
            last = _Blend(stride, past[: max(1, left)], plain)
            x = x + last.prediction()
        x = yield from handed(i, levels, x, clean)
    return x


class _Blend:
    """How the estimates around one step are weighed: eq. 3 (predictor) and 5 (corrector) beyond their first-order part."""

    def __init__(self, stride: Stride, past: list[tuple[float, Tensor]], plain: bool) -> None:
        h, (now, self.clean) = stride.length, past[0]
        nodes = [(when - now) / h for when, _ in past[1:]]
        self.differences = [(estimate - self.clean) / node for node, (_, estimate) in zip(nodes, past[1:], strict=True)]
        base = -h if plain else math.expm1(-h)
        self.scale = -stride.b * base
        phi, wanted = math.expm1(-h) / -h - 1, []
        for n in range(1, len(past) + 1):
            wanted.append(phi * math.factorial(n) / base)
            phi = phi / -h - 1 / math.factorial(n + 1)
        self.predictor = _weights(nodes, wanted[:-1])
        self.corrector = _weights([*nodes, 1.0], wanted)

    def prediction(self) -> Tensor | float:
        return self.scale * _sum(self.predictor, self.differences)

    def correction(self, there: Tensor) -> Tensor:
        """What the corrected sample differs by from the predicted one, once the estimate at the step's end is known."""
        *old, new = self.corrector
        more = [c - p for c, p in zip(old, self.predictor, strict=True)]
        return self.scale * (_sum(more, self.differences) + new * (there - self.clean))


def _weights(nodes: list[float], wanted: list[float]) -> list[float]:
    """Weights w with sum_m w_m nodes_m^(n - 1) = wanted_n. The authors take 1/2 where there is a single one."""
    if len(nodes) < 2:
        return [0.5] * len(nodes)
    powers = torch.tensor([[node**n for node in nodes] for n in range(len(nodes))], dtype=torch.float64)
    solved: list[float] = torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64)).tolist()
    return solved


def _sum(weights: list[float], terms: list[Tensor]) -> Tensor | float:
    return sum((w * term for w, term in zip(weights, terms, strict=True)), start=0.0)
