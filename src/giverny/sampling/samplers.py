"""Samplers: pure generator functions from noise to a clean sample.

Each is `(estimate, x, levels, noise) -> Generator[Step, edited x or None, final x]`, keeps all state in local
variables and calls nobody back: the caller pulls steps, may stop at any time, and may `send` an edited sample that
the next step starts from. Networks enter only as `estimate(x, level, step) -> clean`, which is never asked at a clean
level.

All formulas are written for x = alpha * clean + sigma * noise (see `stride`): with alpha = 1 they are k-diffusion's. Where a
higher-order formula would divide by alpha = 0, that step is first order (ours). No gradient or inference mode is opened
here, so none can leak to the caller across a `yield`; that is the estimate's business. What each sampler is, and how people
write its name, is in `names.FACTS`.
"""

from __future__ import annotations

from torch import Tensor

from ..base.contracts import Sampler
from .dpm_solver import dpm_adaptive, dpm_fast
from .first_order import ddim, ddpm, euler, euler_ancestral, lcm
from .multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, lms, plms
from .names import FACTS, SAMPLER_NAMES, resolve
from .second_order import dpm2, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, heun, restart
from .stride import Walk
from .unipc import unipc, unipc_bh2

__all__ = [
    "SAMPLERS",
    "SAMPLER_NAMES",
    "Walk",
    "calls_per_step",
    "ddim",
    "ddpm",
    "dpm2",
    "dpm2_ancestral",
    "dpm_adaptive",
    "dpm_fast",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "get_sampler",
    "heun",
    "integrate",
    "lcm",
    "lms",
    "plms",
    "restart",
    "sampler_name",
    "unipc",
    "unipc_bh2",
]

SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_a": euler_ancestral,
    "heun": heun,
    "lms": lms,
    "dpm2": dpm2,
    "dpm2_a": dpm2_ancestral,
    "dpmpp_2s_a": dpmpp_2s_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpm_fast": dpm_fast,
    "dpm_adaptive": dpm_adaptive,
    "restart": restart,
    "plms": plms,
    "unipc": unipc,
    "unipc_bh2": unipc_bh2,
    "lcm": lcm,
}


def sampler_name(name: str) -> str:
    """The name in SAMPLERS that is meant: "DPM++ 2M", "Euler a" and "DPM2 a Karras" are understood as well.

    Raises InputError, naming the nearest spelling, where none is.
    """
    return resolve(name).sampler


def get_sampler(name: str) -> Sampler:
    """The sampler of that name, in any usual spelling. Raises InputError where there is none."""
    return SAMPLERS[sampler_name(name)]


def calls_per_step(name: str) -> int:
    """How often a sampler asks for an estimate in one step: see `SamplerFacts.calls`."""
    return FACTS[sampler_name(name)].calls


def integrate(walk: Walk) -> Tensor:
    """Run a sampler to its end and return the final sample."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            final: Tensor = end.value
            return final
