"""Every sampler against the program it comes from: k-diffusion's own functions, diffusers' schedulers, golden numbers."""

import functools
import math
import random

import pytest
import torch

from giverny.base.contracts import Levels
from giverny.base.errors import InputError
from giverny.base.table import level_of
from giverny.sampling.consistency import consistent
from giverny.sampling.names import FACTS, SAMPLER_NAMES
from giverny.sampling.samplers import SAMPLERS, get_sampler, integrate, restart
from giverny.sampling.schedules import beta_table, from_ratios, levels, ve_levels
from k_diffusion_oracle import k_diffusion

TABLE = beta_table("scaled_linear")
STORED = TABLE.float()  # as checkpoints keep it; the golden numbers were made from it
K = pytest.mark.xdist_group("k_diffusion")  # its import takes seconds: one worker is enough
needs_diffusers = pytest.mark.xdist_group("diffusers")


def fresh(seed=None):
    """A seed that every failure names, and a generator that begins there."""
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    return seed, torch.Generator().manual_seed(seed)


def toy(draw, nonlinear):
    """A random denoiser in float64 of x / alpha and sigma / alpha alone, with no structure a formula could profit from."""
    one, two = (torch.randn(36, 36, generator=draw, dtype=torch.float64) / 6 for _ in range(2))

    def clean(x, ratio):
        unit = x / math.sqrt(1 + ratio**2)
        hidden = unit.flatten(1) @ one + ratio / math.sqrt(1 + ratio**2)
        hidden = torch.tanh(hidden) if nonlinear else hidden
        return (hidden @ two).reshape(x.shape) + (0.3 * torch.sin(3 * unit) if nonlinear else 0.0)

    return clean


def falling(draw, most=20):
    """A random sigma schedule in float64, from about 15 to about 0.03 and then 0, of 3 to `most` steps."""
    steps = int(torch.randint(3, most + 1, (1,), generator=draw))
    logs = torch.rand(steps, generator=draw, dtype=torch.float64).cumsum(0)
    ends = torch.rand(2, generator=draw, dtype=torch.float64)
    low, high = math.log(0.02 + 0.03 * ends[0]), math.log(8 + 12 * ends[1])
    logs = high + (low - high) * (logs - logs[0]) / (logs[-1] - logs[0])
    return torch.cat([logs.exp(), torch.zeros(1, dtype=torch.float64)])


def drawn(draw, count=200):
    return iter(torch.randn(count, 2, 4, 3, 3, generator=draw, dtype=torch.float64))


PAIRS = {
    "euler": ("sample_euler", {}),
    "euler_a": ("sample_euler_ancestral", {}),
    "heun": ("sample_heun", {}),
    "lms": ("sample_lms", {}),
    "dpm2": ("sample_dpm_2", {}),
    "dpm2_a": ("sample_dpm_2_ancestral", {}),
    "dpmpp_2s_a": ("sample_dpmpp_2s_ancestral", {}),
    "dpmpp_sde": ("sample_dpmpp_sde", {}),
    "dpmpp_2m": ("sample_dpmpp_2m", {}),
    "dpmpp_2m_sde": ("sample_dpmpp_2m_sde", {"solver_type": "midpoint"}),
    "dpmpp_2m_sde_heun": ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_3m_sde": ("sample_dpmpp_3m_sde", {}),
}


def options_of(name, draw):
    """Random values of the options that k-diffusion has as well."""
    eta, s_noise, churn, low, high = torch.rand(5, generator=draw, dtype=torch.float64).tolist()
    own = FACTS[name].options
    if "s_churn" in own:
        return {"s_churn": 6 * churn, "s_tmin": 0.3 * low, "s_tmax": 2 + 10 * high, "s_noise": 0.9 + 0.2 * s_noise}
    # Beyond eta = 1 k-diffusion's DPM2 a forgets its noise where there is nothing but noise to add; ours does not.
    return {"eta": (1.0 if name == "dpm2_a" else 1.2) * eta, "s_noise": 0.9 + 0.2 * s_noise} if "eta" in own else {}


@K
@pytest.mark.parametrize("form", ["exploding", "preserving"])
@pytest.mark.parametrize("options", ["usual", "random"])
@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_samplers_agree_with_k_diffusion(name, nonlinear, options, form, monkeypatch):
    seed, draw = fresh()
    clean, sigmas = toy(draw, nonlinear), falling(draw)
    x = sigmas[0] * torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    chosen = options_of(name, draw) if options == "random" else {}
    theirs_name, extra = PAIRS[name]
    mine, theirs = (drawn(torch.Generator().manual_seed(seed)) for _ in range(2))
    module = k_diffusion()
    monkeypatch.setattr(module, "torch", Deaf(theirs))
    more = (
        {"noise_sampler": lambda a, b: next(theirs)}
        if name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
        else {}
    )
    want = getattr(module, theirs_name)(lambda x, s: clean(x, float(s[0])), x, sigmas, disable=True, **extra, **chosen, **more)
    run = ve_levels(sigmas) if form == "exploding" else from_ratios(sigmas)

    def estimate(x, level, step):
        return clean(x / float(level.alpha), float(level.ratio))

    got = integrate(SAMPLERS[name](estimate, x * run.alpha[0], run, lambda a, b: next(mine), **chosen))
    # LMS: k-diffusion integrates by quadrature, to one part in 10^4 at most
    error = float((got - want).abs().max() / want.abs().max())
    assert error < (1e-6 if name == "lms" else 1e-9), f"seed {seed}, {chosen}: {error}"


class Deaf:
    """torch, but for randn_like: k-diffusion's samplers without a noise sampler draw by it. Its ramps are in float64."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __getattr__(self, name):
        if name == "linspace":
            return functools.partial(torch.linspace, dtype=torch.float64)
        return (lambda x: next(self.numbers)) if name == "randn_like" else getattr(torch, name)


@K
@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("form", ["exploding", "preserving"])
@pytest.mark.parametrize("eta", [0.0, 1.0, "random"])
@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive"])
def test_dpm_solver_agrees_with_k_diffusion(name, nonlinear, eta, form, monkeypatch):
    """Of the levels both take the ends. They ask as often, at the same places, and take as many steps."""
    seed, draw = fresh()
    clean, sigmas = toy(draw, nonlinear), falling(draw)
    x = sigmas[0] * torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    share, factor = torch.rand(2, generator=draw, dtype=torch.float64).tolist()
    options = {"eta": share if eta == "random" else eta, "s_noise": 0.9 + 0.2 * factor}
    mine, theirs = (drawn(torch.Generator().manual_seed(seed), 2000) for _ in range(2))
    module, asked, told = k_diffusion(), [], []
    monkeypatch.setattr(module, "torch", Deaf(theirs))

    def model(x, sigma):
        asked.append(float(sigma[0]))
        return clean(x, float(sigma[0]))

    ends, count = (sigmas[-2], sigmas[0]), len(sigmas) - 1
    if name == "dpm_fast":
        want = module.sample_dpm_fast(model, x, *ends, count, disable=True, **options)
    else:
        want = module.sample_dpm_adaptive(
            model, x, *ends, disable=True, callback=lambda info: told.append(info["n_accept"]), **options
        )
    run, seen = ve_levels(sigmas) if form == "exploding" else from_ratios(sigmas), []

    def estimate(x, level, step):
        seen.append((float(level.ratio), step))
        return clean(x / float(level.alpha), float(level.ratio))

    steps = list(SAMPLERS[name](estimate, x * run.alpha[0], run, lambda a, b: next(mine), **options))
    error = float((steps[-1].x - want).abs().max() / want.abs().max())
    assert error < 1e-6, f"seed {seed}, {options}: {error}"
    assert float(steps[-1].level.alpha) == 1 and float(steps[-1].level.sigma) == pytest.approx(float(sigmas[-2]))
    if name == "dpm_fast":
        assert [sigma for sigma, _ in seen] == pytest.approx(asked, rel=1e-9), seed
        assert [step for _, step in seen] == list(range(count)) and steps[-1].index == count - 1 and steps[-1].done == 1
        assert all(step.total == count for step in steps)
    else:
        assert len(steps) == told[-1] and all(step.total is None for step in steps), seed
        assert [step.index for step in steps] == list(range(len(steps))) and max(step for _, step in seen) == count - 1


GOLDEN = {  # Karras and normal, 10 steps, every noise 1 (STABLE DIFFUSION toy: the exact denoiser of unit-variance data)
    "euler": (0.8425721, 0.8617024),
    "heun": (1.0535939, 1.0234228),
    "dpm2": (1.0295071, 1.0396358),
    "lms": (0.9495035, 0.9811431),
    "dpmpp_2m": (1.0518043, 1.1600274),
    "euler_a": (1.9113602, 2.2118957),
    "dpm2_a": (3.0274319, 3.1478807),
    "dpmpp_2s_a": (2.4059654, 2.6050259),
    "dpmpp_sde": (2.5736351, 2.7227930),
    "dpmpp_2m_sde": (2.7220916, 3.5639485),
    "dpmpp_2m_sde_heun": (3.0833105, 4.3759616),
    "dpmpp_3m_sde": (2.9496379, 3.4920306),
}


def unit_gaussian(x, level, step):
    """The exact denoiser of standard normal data at any form of level."""
    alpha, sigma = level.for_sample(x)
    return alpha * x / (alpha**2 + sigma**2)


def ones(here, there):
    return torch.ones(1, 1, 1, 1, dtype=torch.float64)


@pytest.mark.parametrize("name", GOLDEN)
def test_samplers_reach_their_golden_values(name):
    for spacing, want in zip(("karras", "normal"), GOLDEN[name], strict=True):
        run = ve_levels(levels(STORED, 10, spacing).ratios)
        got = integrate(SAMPLERS[name](unit_gaussian, run.sigma[0].reshape(1, 1, 1, 1), run, ones))
        assert got.item() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", ["euler_a", "dpm2_a", "dpmpp_2s_a", "dpmpp_2m_sde", "dpmpp_sde"])
def test_without_fresh_noise_the_ancestral_ones_are_their_plain_selves(name):
    plain = {
        "euler_a": "euler",
        "dpm2_a": "dpm2",
        "dpmpp_2m_sde": "dpmpp_2m",
        "dpmpp_2s_a": "dpmpp_sde",
        "dpmpp_sde": "dpmpp_2s_a",
    }
    seed, draw = fresh()
    clean, run = toy(draw, True), ve_levels(falling(draw))
    x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)

    def never(here, there):
        raise AssertionError("no noise was asked for")

    def ends(which):
        taken = {"eta": 0.0} if "eta" in FACTS[which].options else {}
        return integrate(SAMPLERS[which](lambda x, level, i: clean(x, float(level.ratio)), x, run, never, **taken))

    torch.testing.assert_close(ends(name), ends(plain[name]), rtol=1e-9, atol=1e-9, msg=lambda m: f"seed {seed}: {m}")


# ---------------------------------------------------------------------------------------------------------------------
# Of CompVis and AUTOMATIC1111


@pytest.mark.parametrize(("steps", "short"), [(10, 0.8804211), (20, 0.9369278), (50, 0.9736853)])
def test_ddim_over_timesteps_is_the_web_interfaces(steps, short):
    run = levels(TABLE, steps, "timesteps")
    assert run.steps == steps - 1
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)  # of unit size: `initial(..., full=True)`
    assert integrate(get_sampler("DDIM")(unit_gaussian, x, run, ones)).item() == pytest.approx(short, abs=1e-6)


def reference_plms(eps, x, alphas):
    """PLMS as the fact sheet states it: alphas are alphas_cumprod along the run, eps(x, i) the noise at level i."""
    past = []

    def moved(x, e, i):
        clean = (x - math.sqrt(1 - alphas[i]) * e) / math.sqrt(alphas[i])
        return math.sqrt(alphas[i + 1]) * clean + math.sqrt(1 - alphas[i + 1]) * e

    for i in range(len(alphas) - 1):
        e = eps(x, i)
        if not past:
            mean = (e + eps(moved(x, e, i), i + 1)) / 2
        elif len(past) == 1:
            mean = (3 * e - past[-1]) / 2
        elif len(past) == 2:
            mean = (23 * e - 16 * past[-1] + 5 * past[-2]) / 12
        else:
            mean = (55 * e - 59 * past[-1] + 37 * past[-2] - 9 * past[-3]) / 24
        x = moved(x, mean, i)
        past = [*past, e][-3:]
    return x


def test_plms_is_the_web_interfaces():
    seed, draw = fresh()
    clean, steps = toy(draw, True), int(torch.randint(3, 30, (1,), generator=draw))
    x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    run = levels(TABLE, steps, "timesteps")

    def eps(x, i):
        a, s = run.alpha[i], run.sigma[i]
        return (x - a * clean(x / a, float(s / a))) / s

    want = reference_plms(eps, x, (run.alpha**2).tolist())
    got = integrate(get_sampler("PLMS")(lambda x, level, i: clean(x / level.alpha, float(level.ratio)), x, run, ones))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8, msg=lambda m: f"seed {seed}, {steps} steps: {m}")


@needs_diffusers
def test_plms_matches_diffusers():
    from diffusers import PNDMScheduler

    seed, draw = fresh()
    clean, steps = toy(draw, True), int(torch.randint(4, 30, (1,), generator=draw))
    x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = TABLE, TABLE[0]
    scheduler.set_timesteps(steps)
    sample = x
    for t in scheduler.timesteps:
        level = level_of(TABLE, int(t))
        e = (sample - level.alpha * clean(sample / level.alpha, float(level.ratio))) / level.sigma
        sample = scheduler.step(e, t, sample).prev_sample
    run, first = levels(TABLE, steps, "leading"), level_of(TABLE, 0)
    run = Levels(torch.cat([run.alpha[:-1], first.alpha[None]]), torch.cat([run.sigma[:-1], first.sigma[None]]))
    got = integrate(get_sampler("PLMS")(lambda x, level, i: clean(x / level.alpha, float(level.ratio)), x, run, ones))
    torch.testing.assert_close(got, sample, rtol=1e-6, atol=1e-6, msg=lambda m: f"seed {seed}, {steps} steps: {m}")


@needs_diffusers
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("name", "solver"), [("unipc", "bh1"), ("unipc_bh2", "bh2")])
def test_unipc_matches_diffusers(name, solver, order):
    from diffusers import UniPCMultistepScheduler

    seed, draw = fresh()
    clean = toy(draw, True)
    ratios = falling(draw)[:-1]  # to the last noisy level, as the authors' program does
    x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    lower = bool(torch.rand((), generator=draw) < 0.7)
    config = {"solver_order": order, "solver_type": solver, "prediction_type": "sample", "final_sigmas_type": "sigma_min"}
    scheduler = UniPCMultistepScheduler(**config, lower_order_final=lower)
    scheduler.set_timesteps(len(ratios) - 1)
    scheduler.sigmas = ratios
    run, sample = from_ratios(ratios), x
    for i, t in enumerate(scheduler.timesteps):
        # the sample that the network sees is the predicted one; the scheduler corrects it afterwards
        sample = scheduler.step(clean(sample / run.alpha[i], float(run.ratios[i])), t, sample).prev_sample
    sampler = SAMPLERS[name](
        lambda x, level, i: clean(x / level.alpha, float(level.ratio)), x, run, ones, order=order, lower_order_final=lower
    )
    torch.testing.assert_close(
        integrate(sampler), sample, rtol=1e-6, atol=1e-6, msg=lambda m: f"seed {seed}, lower {lower}, {run.steps} steps: {m}"
    )


@needs_diffusers
@pytest.mark.parametrize(("name", "solver"), [("dpmpp_2m_sde", "midpoint"), ("dpmpp_2m_sde_heun", "heun")])
def test_dpmpp_2m_sde_matches_diffusers(name, solver):
    from diffusers import DPMSolverMultistepScheduler

    seed, draw = fresh()
    clean, ratios = toy(draw, True), falling(draw)
    config = {"algorithm_type": "sde-dpmsolver++", "solver_type": solver, "prediction_type": "sample"}
    scheduler = DPMSolverMultistepScheduler(**config, lower_order_final=False, euler_at_final=True)
    scheduler.set_timesteps(len(ratios) - 1)
    scheduler.sigmas = ratios
    mine, theirs = (drawn(torch.Generator().manual_seed(seed)) for _ in range(2))
    x, run = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64), from_ratios(ratios)
    walk = SAMPLERS[name](lambda x, level, i: clean(x / level.alpha, float(level.ratio)), x, run, lambda a, b: next(mine))
    for step in walk:  # each from the same sample: theirs is rounded to float32 at every step
        options = {"variance_noise": next(theirs)}
        want = scheduler.step(step.clean, scheduler.timesteps[step.index], x, **options).prev_sample
        error = float((step.x - want).abs().max() / max(step.x.abs().max(), x.abs().max()))
        assert error < 1e-6, f"seed {seed}, step {step.index} of {run.steps}: {error}"
        x = step.x


@needs_diffusers
def test_lcm_matches_diffusers():
    from diffusers import LCMScheduler

    seed, draw = fresh()
    clean, steps = toy(draw, True), int(torch.randint(1, 9, (1,), generator=draw))
    x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, prediction_type="sample")
    scheduler.alphas_cumprod = TABLE
    scheduler.set_timesteps(steps, original_inference_steps=50)
    run = levels(TABLE, steps, "lcm")
    if steps == 4:
        assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    theirs, sample = torch.Generator().manual_seed(seed), x
    mine = torch.Generator().manual_seed(seed)
    for i, t in enumerate(scheduler.timesteps):
        answer = clean(sample / run.alpha[i], float(run.ratios[i]))
        sample = scheduler.step(answer, int(t), sample, generator=theirs).prev_sample
    walk = get_sampler("LCM")(
        lambda x, level, i: clean(x / level.alpha, float(level.ratio)),
        x,
        run,
        lambda a, b: torch.randn(x.shape, generator=mine, dtype=torch.float64),
    )
    # its boundary scalings, which belong to the estimate here, are 1 and 0 to within 1e-6 at the times of distillation
    torch.testing.assert_close(integrate(walk), sample, rtol=2e-5, atol=2e-5, msg=lambda m: f"seed {seed}, {steps}: {m}")


def test_a_consistency_models_estimate_is_asked_at_its_own_times():
    """AUTOMATIC1111's LCM denoiser in its own terms: sigma, a noise prediction, and the nearest time of distillation."""
    times = torch.arange(19, 1000, 20)
    logs = torch.log((1 - TABLE[times]) / TABLE[times]) / 2
    seed, draw = fresh()
    weight = torch.randn(36, 36, generator=draw, dtype=torch.float64) / 6
    asked = []

    def network(x, t):
        asked.append(t)
        return torch.tanh(x.flatten(1) @ weight + t / 500).reshape(x.shape)

    def estimate(x, level, step):
        t = int((torch.log((1 - TABLE) / TABLE) / 2 - torch.log(level.ratio)).abs().argmin())
        alpha, sigma = level.for_sample(x)
        return (x - sigma * network(x / torch.hypot(alpha, sigma), t)) / alpha

    for sigma in (14.6, 6.02, 1.0, 0.31, 0.17):
        x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64) * sigma
        t = int(times[(logs - math.log(sigma)).abs().argmin()])
        denoised = x - sigma * network(x / math.sqrt(sigma**2 + 1), t)
        scaled = 10.0 * t
        want = scaled / math.sqrt(scaled**2 + 0.25) * denoised + 0.25 / (scaled**2 + 0.25) * x
        for form in (ve_levels, from_ratios):
            level = form(torch.tensor([sigma, 0.0], dtype=torch.float64))[0]
            got = consistent(estimate, TABLE)(x * level.alpha, level, 0)
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10, msg=lambda m: f"seed {seed}: {m}")
    assert set(asked) <= set(times.tolist())


# Run from AUTOMATIC1111's restart_sampler in float64 on the toy model, every noise 1: Karras and normal levels.
RESTARTS = {
    10: (1.05359388, 1.02342280),  # Heun's
    19: (1.01046372, 1.00346106),
    20: (1.35238039, 1.35238039),  # from here on it is Karras's between the same ends
    25: (1.34045970, 1.34045970),
    36: (1.49782235, 1.49782235),
    43: (1.48747141, 1.48747141),
}


@pytest.mark.parametrize("steps", RESTARTS)
def test_restart_reaches_its_golden_values(steps):
    for spacing, want in zip(("karras", "normal"), RESTARTS[steps], strict=True):
        run = ve_levels(levels(STORED, steps, spacing).ratios)
        x = run.sigma[0].reshape(1, 1, 1, 1)
        assert integrate(restart(unit_gaussian, x, run, ones)).item() == pytest.approx(want, abs=1e-6)
        assert len(list(restart(unit_gaussian, x, run, ones))) == steps


def test_restart_goes_up_where_it_should_and_keeps_the_runs_form():
    run = levels(TABLE, 40, "karras")
    for form, one in ((run, False), (ve_levels(run.ratios), True)):
        steps = list(restart(unit_gaussian, form.sigma[0].reshape(1, 1, 1, 1), form, ones))
        assert all((float(s.level.alpha) == 1) == (one or s is steps[-1]) for s in steps)
        ratios = [float(s.level.ratio) for s in steps]
        rises = [i for i in range(39) if ratios[i + 1] > ratios[i]]
        assert len(rises) == 2  # twice ten steps
        assert all(abs(ratios[i] - 0.1) < 0.05 and ratios[i + 1] < 2 for i in rises)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize("name", [n for n in SAMPLER_NAMES if "s_noise" in FACTS[n].options])
def test_negative_amounts_of_noise_are_refused(name):
    x, run = torch.ones(1, 1, 1, 1), levels(TABLE, 3)
    for option in set(FACTS[name].options) & {"eta", "s_churn", "s_noise"}:
        with pytest.raises(InputError, match=option):
            integrate(SAMPLERS[name](unit_gaussian, x, run, ones, **{option: -0.5}))


@pytest.mark.parametrize("name", ["lms", "unipc", "unipc_bh2"])
def test_orders_below_one_are_refused(name):
    with pytest.raises(InputError, match="order"):
        integrate(SAMPLERS[name](unit_gaussian, torch.ones(1, 1, 1, 1), levels(TABLE, 3), ones, order=0))
