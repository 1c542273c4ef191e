"""The noise levels a sampler walks through: how N steps are spread over the levels a model was trained with.

Sources: Karras et al. 2022 (arXiv 2206.00364) and k-diffusion (karras, exponential, polyexponential, normal); diffusers
(leading, trailing, beta, lcm); CompVis (ddim); ComfyUI (simple, sgm_uniform, beta_times, kl_optimal_clean); AUTOMATIC1111's
modules/sd_schedulers.py of 1.10 (kl_optimal, and the names of most); Sabour et al. 2024 (arXiv 2404.14507) for
align_your_steps; Lee et al. 2024 (arXiv 2407.12173) for beta; Zhao et al. 2023 (arXiv 2302.04867) for the three of UniPC; Luo
et al. 2023 (arXiv 2310.04378) for lcm. What is done with a table that ends in pure noise is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.contracts import Levels, NoiseLevel
from ..base.errors import InputError, choose
from ..base.table import level_of, log_ratios, time_of
from .beta import beta_quantile
from .names import NOT_CLEAN, SPACINGS, Spacing

# Sabour et al., the authors' tables for 10 steps of two models: sigma / alpha.
ALIGNED = {
    "align_your_steps": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "align_your_steps_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
LCM_TIMES = 50  # training times that latent consistency models were distilled at


@dataclass(frozen=True)
class Range:
    """What a spacing may use: the table, and the ends of the run in sigma / alpha."""

    table: Tensor
    low: Tensor
    high: Tensor
    rho: float | None
    shape: tuple[float, float]  # alpha and beta of a beta distribution

    def times(self, count: int) -> Tensor:
        """`count` times from the noisiest to the cleanest, evenly."""
        low, high = _own_ends(self.table)
        start = len(self.table) - 1 if self.high == high else float(time_of(self.table, _preserving(self.high)))
        end = 0 if self.low == low else float(time_of(self.table, _preserving(self.low)))
        return torch.linspace(start, end, count, dtype=torch.float64)


def levels(
    table: Tensor,
    steps: int,
    spacing: Spacing = "normal",
    rho: float | None = None,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    discard_penultimate: bool = False,
    beta_shape: tuple[float, float] = (0.6, 0.6),
) -> Levels:
    """The noise levels of a run, float64 on the CPU, variance preserving, noisiest first, usually ending in the clean (1, 0).

    table: (T,) alphas_cumprod. steps: network steps, at least 1; those that take whole times want at most T.
    rho: the curve of karras (7 unless said) or polyexponential (1). sigma_min, sigma_max: other ends than the table's, in
    sigma / alpha, for the spacings that have ends. beta_shape: alpha and beta of the spacings of that name.
    discard_penultimate: take one step more, then leave out the last level but one, as the original programs do for DPM2.

    Between the table's largest and smallest sigma / alpha:
      karras            even in its rho-th root          exponential      even in its logarithm
      polyexponential   as exponential, of a ramp^rho    kl_optimal       even in its arc tangent; stops at the smallest
      kl_optimal_clean  the same in one step less, and a last one to clean
      beta              quantiles of a beta distribution, over sigma / alpha itself
    Between the last training time and the first:
      normal, sgm_uniform   even; sgm_uniform leaves out the first time          beta_times   rounded quantiles; may be fewer
      simple, trailing      every T/steps-th counted from the last, rounded in two ways
      leading               every (T // steps)-th counted from time 1, so the noisiest times are left out
      ddim                  all such times below T: one more or so where steps does not divide T (30 -> 31)
      timesteps             as ddim, but stops at time 1: a step less
      time_uniform, time_quadratic, log_snr    of UniPC, stopping at time 0, alpha's logarithm being linear between times
      lcm, lcm_webui        out of every (T / 50)-th time, as in diffusers and in AUTOMATIC1111
    Tables: align_your_steps and align_your_steps_sdxl, for models of Stable Diffusion 1.x and SDXL.

    A zero-terminal table has no largest sigma / alpha: there a ramp over it starts at alpha = 0, goes down one even step of
    time, and goes on from there, since a ramp from the last finite ratio (thousands) would waste most steps on noise.
    """
    choose(spacing, SPACINGS, "level spacing")
    table = table.detach().to("cpu", torch.float64)
    if steps < 1:
        raise InputError("at least 1 step", str(steps), "choose 10 to 50 steps")
    count = steps + discard_penultimate
    _check_count(spacing, len(table), count)
    _check_shape(rho, beta_shape)
    low, high = _ends(table, spacing, sigma_min, sigma_max)
    span = Range(table, low, high, rho, beta_shape)
    noisy = _ramped(RAMPS[spacing], span, count) if spacing in RAMPS else TIMES[spacing](span, count)
    alpha, sigma = noisy.alpha, noisy.sigma
    if spacing not in NOT_CLEAN:
        alpha, sigma = torch.cat([alpha, alpha.new_ones(1)]), torch.cat([sigma, sigma.new_zeros(1)])
    if discard_penultimate:
        alpha, sigma = (torch.cat([part[:-2], part[-1:]]) for part in (alpha, sigma))
    return Levels(alpha, sigma)


def _check_count(spacing: str, times: int, count: int) -> None:
    most = min(LCM_TIMES, times) if spacing == "lcm" else times
    if spacing in WHOLE and count > most:
        remedy = "take fewer steps, or the spacing 'normal' or 'karras'"
        raise InputError(f"at most {most} steps with the spacing {spacing!r}", str(count), remedy)
    if spacing == "timesteps" and count < 2:
        raise InputError(
            "at least 2 steps with the spacing 'timesteps'", str(count), "it takes one step less than it is asked for"
        )
    if spacing.startswith("lcm") and times < LCM_TIMES:
        raise InputError(f"a table of at least {LCM_TIMES} times for {spacing!r}", str(times), "take another spacing")


def _check_shape(rho: float | None, shape: tuple[float, float]) -> None:
    for name, value in (("rho", rho), ("alpha of a beta distribution", shape[0]), ("beta of a beta distribution", shape[1])):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} above 0", str(value), "7 is usual for karras, 1 for polyexponential, 0.6 for beta")


def _ends(table: Tensor, spacing: str, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest sigma / alpha of a run: those asked for, else the table's."""
    own = _own_ends(table)
    if low is None and high is None:
        return own
    if spacing not in ENDED:
        raise InputError("a spacing with ends for sigma_min and sigma_max", repr(spacing), f"such are: {', '.join(ENDED)}")
    ends = [own[i] if end is None else torch.tensor(end, dtype=torch.float64) for i, end in enumerate((low, high))]
    if not 0 < ends[0] < ends[1]:
        raise InputError("0 < sigma_min < sigma_max", f"{float(ends[0]):g} and {float(ends[1]):g}")
    return ends[0], ends[1]


def _own_ends(table: Tensor) -> tuple[Tensor, Tensor]:
    return log_ratios(table)[0].exp(), level_of(table, len(table) - 1).ratio


# ---------------------------------------------------------------------------------------------------------------------
# Ramps over sigma / alpha


def _ramped(ramp: Callable[[Range, int], Tensor], span: Range, count: int) -> NoiseLevel:
    """Levels along a ramp; see `levels` for one from pure noise."""
    if not torch.isinf(span.high):
        return _preserving(ramp(span, count))
    below = level_of(span.table, (len(span.table) - 1) * (1 - 1 / count)).ratio
    rest = ramp(Range(span.table, span.low, below, span.rho, span.shape), count - 1)
    return _preserving(torch.cat([rest.new_full((1,), math.inf), rest]))


def karras(count: int, low: Tensor, high: Tensor, rho: float = 7.0) -> Tensor:
    """Eq. 5 of Karras et al.: `count` values from high to low, even in their rho-th roots."""
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def _karras(span: Range, count: int) -> Tensor:
    return karras(count, span.low, span.high, span.rho or 7.0)


def _exponential(span: Range, count: int) -> Tensor:
    ramp = torch.linspace(1, 0, count, dtype=torch.float64)
    return torch.exp(ramp * (span.high.log() - span.low.log()) + span.low.log())


def _polyexponential(span: Range, count: int) -> Tensor:
    ramp = torch.linspace(1, 0, count, dtype=torch.float64) ** (span.rho or 1.0)
    return torch.exp(ramp * (span.high.log() - span.low.log()) + span.low.log())


def _kl_optimal(span: Range, count: int) -> Tensor:
    return _kl_optimal_clean(span, count + 1)


def _kl_optimal_clean(span: Range, count: int) -> Tensor:
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    return torch.tan(ramp * span.low.atan() + (1 - ramp) * span.high.atan())


def _beta(span: Range, count: int) -> Tensor:
    return span.low + _quantiles(torch.linspace(1, 0, count, dtype=torch.float64), span.shape) * (span.high - span.low)


def _quantiles(shares: Tensor, shape: tuple[float, float]) -> Tensor:
    return torch.tensor([beta_quantile(share, *shape) for share in shares.tolist()], dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Times


def _normal(span: Range, count: int) -> NoiseLevel:
    return level_of(span.table, span.times(count))


def _sgm_uniform(span: Range, count: int) -> NoiseLevel:
    return level_of(span.table, span.times(count + 1)[:-1])


def _simple(span: Range, count: int) -> NoiseLevel:
    total = len(span.table)
    return level_of(span.table, total - 1 - torch.tensor([int(i * (total / count)) for i in range(count)]))


def _trailing(span: Range, count: int) -> NoiseLevel:
    total = len(span.table)
    return level_of(span.table, (total - torch.arange(count, dtype=torch.float64) * total / count).round() - 1)


def _leading(span: Range, count: int) -> NoiseLevel:
    total, stride = len(span.table), len(span.table) // count
    offset = min(1, total - 1 - (count - 1) * stride)
    return level_of(span.table, (torch.arange(count) * stride + offset).flip(0))


def _ddim(span: Range, count: int) -> NoiseLevel:
    total = len(span.table)
    # counting from 1 would pass the last time where every time is taken, hence clamp and unique
    return level_of(span.table, (torch.arange(0, total, total // count) + 1).clamp(max=total - 1).unique().flip(0))


def _beta_times(span: Range, count: int) -> NoiseLevel:
    shares = 1 - torch.arange(count, dtype=torch.float64) / count
    return level_of(span.table, (_quantiles(shares, span.shape) * (len(span.table) - 1)).round().unique().flip(0))


def _time_uniform(span: Range, count: int, power: int = 1) -> NoiseLevel:
    """Even in the `power`-th root of t = (time + 1) / T, from 1 to 1 / T."""
    total = len(span.table)
    ramp = torch.linspace(1, total ** (-1 / power), count + 1, dtype=torch.float64) ** power
    return _by_log_alpha(span.table, ramp * total - 1)


def _time_quadratic(span: Range, count: int) -> NoiseLevel:
    return _time_uniform(span, count, power=2)


def _log_snr(span: Range, count: int) -> NoiseLevel:
    return _ramped(lambda part, n: _exponential(part, n + 1), span, count)


def _by_log_alpha(table: Tensor, times: Tensor) -> NoiseLevel:
    """As `level_of`, but with log(alpha) linear between times; that of a zero-terminal table is infinite, so not there."""
    if table[-1] <= 0:
        return level_of(table, times)
    logs = 0.5 * table.log()
    low = times.floor().clamp(0, len(table) - 2).long()
    log = torch.lerp(logs[low], logs[low + 1], (times - low).clamp(0, 1))
    return NoiseLevel(log.exp(), (-torch.expm1(2 * log)).sqrt())


def lcm_times(total: int) -> Tensor:
    """The times of distillation, rising: every (T / 50)-th, the last one included."""
    stride = total // LCM_TIMES
    return total - 1 - stride * torch.arange(LCM_TIMES - 1, -1, -1)


def _lcm(span: Range, count: int) -> NoiseLevel:
    # diffusers counts these times from the first one, which is the same where 50 divides T
    times = lcm_times(len(span.table)).flip(0)
    return level_of(span.table, times[[i * LCM_TIMES // count for i in range(count)]])


def _lcm_webui(span: Range, count: int) -> NoiseLevel:
    """Even in time from the last to the first, log(sigma) being linear between the times of distillation alone."""
    some = span.table[lcm_times(len(span.table))]
    return level_of(some, torch.linspace(LCM_TIMES - 1, 0, count, dtype=torch.float64))


def _aligned(name: str) -> Callable[[Range, int], NoiseLevel]:
    """The authors' table, log(sigma) being linear between its entries; a single step starts at its first (ours)."""

    def spread(span: Range, count: int) -> NoiseLevel:
        logs = torch.tensor(ALIGNED[name], dtype=torch.float64).log()
        places = torch.linspace(0, len(logs) - 1, count, dtype=torch.float64)
        low = places.floor().clamp(max=len(logs) - 2).long()
        return _preserving(torch.lerp(logs[low], logs[low + 1], places - low).exp())

    return spread


RAMPS: dict[str, Callable[[Range, int], Tensor]] = {
    "karras": _karras,
    "exponential": _exponential,
    "polyexponential": _polyexponential,
    "kl_optimal": _kl_optimal,
    "kl_optimal_clean": _kl_optimal_clean,
    "beta": _beta,
}
TIMES: dict[str, Callable[[Range, int], NoiseLevel]] = {
    "normal": _normal,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "trailing": _trailing,
    "leading": _leading,
    "ddim": _ddim,
    "timesteps": _ddim,
    "beta_times": _beta_times,
    "time_uniform": _time_uniform,
    "time_quadratic": _time_quadratic,
    "log_snr": _log_snr,
    "lcm": _lcm,
    "lcm_webui": _lcm_webui,
    **{name: _aligned(name) for name in ALIGNED},
}
WHOLE = frozenset({"simple", "trailing", "leading", "ddim", "timesteps", "beta_times", "lcm"})  # they take whole times
ENDED = (*RAMPS, "normal", "sgm_uniform")


# ---------------------------------------------------------------------------------------------------------------------
# Forms


def _preserving(ratios: Tensor) -> NoiseLevel:
    """Levels with alpha^2 + sigma^2 = 1 and sigma / alpha = ratios; an infinite ratio is alpha = 0, sigma = 1."""
    alpha = torch.rsqrt(1 + ratios.double() ** 2)
    return NoiseLevel(alpha, torch.where(torch.isinf(ratios), 1.0, ratios.double() * alpha))


def from_ratios(ratios: Tensor) -> Levels:
    """Variance-preserving levels of given sigma / alpha, shape (N + 1,); infinite means pure noise, 0 means clean."""
    level = _preserving(ratios)
    return Levels(level.alpha, level.sigma)


def ve_levels(ratios: Tensor) -> Levels:
    """Variance-exploding levels, alpha = 1 and sigma = ratios: k-diffusion's form. Infinite ratios are a ValueError."""
    if torch.isinf(ratios).any():
        raise ValueError("a run from pure noise (alpha = 0) has no variance-exploding form; use from_ratios")
    return Levels(torch.ones_like(ratios, dtype=torch.float64), ratios.double())
