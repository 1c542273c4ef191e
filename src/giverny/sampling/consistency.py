"""The estimate of a latent consistency model (Luo et al. 2023, arXiv 2310.04378), for the sampler `lcm`.

Such a model answers with a point of the clean end of its path at any time: its clean estimate, but for a boundary condition
that makes it the sample itself at time 0. Form, and the times it is asked at, are AUTOMATIC1111's (modules/sd_samplers_lcm.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.contracts import Estimate, NoiseLevel
from ..base.table import level_of, log_ratios
from .spacings import lcm_times

SPREAD = 0.5  # sigma_data
SCALE = 10.0  # of time, in the boundary condition


def consistent(estimate: Estimate, table: Tensor) -> Estimate:
    """An estimate out of that of the network, which predicts noise, was trained on `table`, and distilled at 50 of its times.

    The network is asked at the nearest of those, in log(sigma / alpha), though its sample is as noisy as the level says.
    """
    table = table.detach().to("cpu", torch.float64)
    times = lcm_times(len(table))
    logs = log_ratios(table)[times]

    def asked(x: Tensor, level: NoiseLevel, step: int) -> Tensor:
        time = times[(logs - torch.log(level.ratio.double().cpu())).abs().argmin()]
        nearest = level_of(table, time)
        alpha, sigma = level.for_sample(x)
        there_alpha, there_sigma = nearest.for_sample(x)
        seen = x * (torch.hypot(there_alpha, there_sigma) / torch.hypot(alpha, sigma))
        noise = (seen - there_alpha * estimate(seen, nearest, step)) / there_sigma
        clean = (x - sigma * noise) / alpha
        scaled = SCALE * float(time)
        keep = SPREAD**2 / (scaled**2 + SPREAD**2)
        return scaled / (scaled**2 + SPREAD**2) ** 0.5 * clean + keep * x / alpha

    return asked
