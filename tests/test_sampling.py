"""Schedules, samplers, noise, guidance, preconditioning: golden numbers, and diffusers as reference on fresh seeds."""

import math
import random
from itertools import zip_longest

import pytest
import torch

from giverny.base.contracts import Branch, Condition, Denoise, Levels, NoiseLevel
from giverny.base.errors import InputError
from giverny.base.table import level_of, time_of
from giverny.denoisers.precondition import DiscreteDenoiser, min_snr_weight, targets
from giverny.sampling.names import FACTS
from giverny.sampling.noise import PictureNoise
from giverny.sampling.samplers import (
    SAMPLER_NAMES,
    calls_per_step,
    ddim,
    ddpm,
    dpmpp_2m,
    euler,
    euler_ancestral,
    get_sampler,
    heun,
    integrate,
)
from giverny.sampling.schedules import (
    SPACINGS,
    ScheduleRecipe,
    beta_table,
    from_ratios,
    levels,
    ve_levels,
    zero_terminal,
)
from giverny.steering.guidance import FixedPlan, classifier_free, guided, position

TABLE = beta_table("scaled_linear")
STORED = TABLE.float()  # as checkpoints keep it; the golden numbers were made from it
needs_diffusers = pytest.mark.xdist_group("diffusers")  # its import takes seconds: one worker is enough


def unit_gaussian(x, level, step):
    """The exact denoiser of standard normal data at any form of level; x / (1 + sigma^2) where alpha = 1."""
    alpha, sigma = level.for_sample(x)
    return alpha * x / (alpha**2 + sigma**2)


def ones(here, there):
    return torch.ones(1, 1, 1, 1, dtype=torch.float64)


def said(what):
    """A failure message with `what` in front."""
    return lambda message: f"{what}: {message}"


def fresh_seed():
    return random.SystemRandom().randrange(2**31)


# ---------------------------------------------------------------------------------------------------------------------
# Tables and levels


def test_stable_diffusion_table_has_its_published_values():
    picked = TABLE[[0, 1, 500, 999]]
    want = torch.tensor([0.999150000, 0.998296028, 0.276332684, 0.004660099], dtype=torch.float64)
    torch.testing.assert_close(picked, want, rtol=0, atol=1e-9)
    ratios = level_of(TABLE, torch.tensor([0, 999, 500])).ratio
    want = torch.tensor([0.0291675, 14.614642, 1.618279], dtype=torch.float64)
    torch.testing.assert_close(ratios, want, rtol=0, atol=1e-6)


NORMAL_10 = "14.6146 7.8399 4.6092 2.9183 1.9502 1.3449 .9324 .6250 .3687 .0292 0"
NORMAL_20 = (
    "14.6146 10.7468 8.0815 6.2049 4.8557 3.8654 3.1238 2.5572 2.1157 1.7648 1.4806 1.2458 1.0481 .8784 .7297 .5964 "
    ".4736 .3555 .2322 .0292 0"
)
KARRAS_10 = "14.6146 9.1029 5.4784 3.1686 1.7494 .9141 .4469 .2014 .0819 .0292 0"
KARRAS_20 = (
    "14.6146 11.7254 9.3402 7.3836 5.7894 4.4998 3.4648 2.6408 1.9909 1.4832 1.0908 .7909 .5647 .3964 .2730 .1842 "
    ".1213 .0779 .0485 .0292 0"
)


@pytest.mark.parametrize(
    ("spacing", "steps", "golden"),
    [("normal", 10, NORMAL_10), ("normal", 20, NORMAL_20), ("karras", 10, KARRAS_10), ("karras", 20, KARRAS_20)],
)
def test_levels_match_the_golden_tables(spacing, steps, golden):
    run = levels(STORED, steps, spacing)
    want = torch.tensor([float(s) for s in golden.split()], dtype=torch.float64)
    torch.testing.assert_close(run.ratios, want, rtol=0, atol=5e-5)
    torch.testing.assert_close(run.alpha**2 + run.sigma**2, torch.ones(steps + 1, dtype=torch.float64))
    assert (run.alpha[-1], run.sigma[-1]) == (1, 0)


def times(run):
    """The training times of a run's noisy levels."""
    return time_of(TABLE, NoiseLevel(run.alpha[:-1], run.sigma[:-1])).round(decimals=6).tolist()


def test_integer_spacings_take_the_known_times():
    assert times(levels(TABLE, 20, "leading")) == list(range(951, 0, -50))
    assert times(levels(TABLE, 20, "trailing")) == list(range(999, 48, -50))
    assert times(levels(TABLE, 50, "ddim")) == list(range(981, 0, -20))
    assert times(levels(TABLE, 30, "ddim")) == list(range(991, 0, -33))  # 31 of them
    assert len(times(levels(TABLE, 30, "leading"))) == 30


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_run_loses_noise_at_every_step(spacing, zero):
    for kind in ("linear", "scaled_linear", "cosine"):
        recipe = ScheduleRecipe(kind=kind, steps=50, zero_terminal_snr=zero)
        for steps in (1, 2, 7, 25, 49, 50)[spacing == "timesteps" :]:  # which is one step less than asked for
            run = levels(recipe.table(), steps, spacing)
            assert run.steps == steps or spacing in ("ddim", "beta_times", "timesteps")
            assert (run.ratios[1:] < run.ratios[:-1]).all(), (kind, steps)
            if spacing in ("normal", "karras", "trailing"):
                assert (run.alpha[0] == 0) == zero


def test_time_and_level_are_inverse_for_batches_of_fractional_times():
    five_and_one = NoiseLevel(torch.ones(2), torch.tensor([5.0, 1.0]))
    assert time_of(STORED, five_and_one).tolist() == pytest.approx([795.17310, 353.89038], abs=5e-5)
    for table in (TABLE, zero_terminal(TABLE), beta_table("cosine", 40)):
        last = len(table) - 1
        t = torch.cat([torch.rand(50, dtype=torch.float64) * last, torch.tensor([0.0, last - 0.3, last])])
        level = level_of(table, t)
        assert level.alpha.shape == (53,)
        torch.testing.assert_close(time_of(table, level), t, rtol=0, atol=1e-6)
        whole = level_of(table, torch.arange(len(table)))
        torch.testing.assert_close(whole.alpha**2, table, rtol=1e-10, atol=0)


def test_levels_beyond_the_table_are_clamped_to_its_ends():
    beyond = NoiseLevel(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 100.0, 0.001]))
    assert time_of(TABLE, beyond).tolist() == [0, 999, 999, 0]
    assert time_of(zero_terminal(TABLE), beyond).tolist()[:2] == [0, 999]
    assert level_of(TABLE, 5000.0).ratio == level_of(TABLE, 999).ratio


def test_zero_terminal_keeps_the_first_entry_and_ends_in_pure_noise():
    table = zero_terminal(TABLE)
    assert table[-1] == 0
    assert table[0].item() == pytest.approx(TABLE[0].item(), rel=1e-12)
    assert zero_terminal(TABLE, last=4.8973451890853435e-08)[-1].item() == 4.8973451890853435e-08


def test_variance_forms_hold_the_same_ratios_and_pure_noise_has_only_one():
    ratios = torch.tensor([math.inf, 3.0, 0.5, 0.0])
    run = from_ratios(ratios)
    assert (run.alpha[0], run.sigma[0]) == (0, 1)
    torch.testing.assert_close(run.ratios.float(), ratios)
    assert ve_levels(ratios[1:]).alpha.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="pure noise"):
        ve_levels(ratios)


@needs_diffusers
@pytest.mark.parametrize(
    ("kind", "theirs"), [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_tables_match_diffusers(kind, theirs):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    steps, ends = random.SystemRandom().randrange(50, 1500), {"beta_start": 0.0007, "beta_end": 0.0153}
    ours = beta_table(kind, steps, **ends)
    config = {"num_train_timesteps": steps, "beta_schedule": theirs, **ends}
    plain = DDIMScheduler(**config).alphas_cumprod
    torch.testing.assert_close(ours.float(), plain, rtol=2e-4, atol=1e-7, msg=said(f"{steps} steps"))
    rescaled = DDIMScheduler(**config, rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(zero_terminal(ours).float(), rescaled, rtol=1e-3, atol=1e-6, msg=said(f"{steps} steps"))
    scheduler = EulerDiscreteScheduler(**config, use_karras_sigmas=True)
    scheduler.set_timesteps(17)
    torch.testing.assert_close(levels(ours, 17, "karras").ratios.float(), scheduler.sigmas, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Samplers: golden numbers


@pytest.mark.parametrize(
    ("sampler", "karras", "normal"),
    [
        (euler, 0.8425721, 0.8617024),
        (heun, 1.0535939, 1.0234228),
        (dpmpp_2m, 1.0518043, 1.1600274),
        (euler_ancestral, 1.9113602, 2.2118957),
    ],
)
def test_k_diffusion_samplers_reach_their_golden_values(sampler, karras, normal):
    for spacing, want in (("karras", karras), ("normal", normal)):
        run = ve_levels(levels(STORED, 10, spacing).ratios)
        x = run.sigma[0].reshape(1, 1, 1, 1)
        assert integrate(sampler(unit_gaussian, x, run, ones)).item() == pytest.approx(want, abs=1e-6)


def test_euler_ancestral_without_fresh_noise_is_euler():
    run = ve_levels(levels(STORED, 10, "karras").ratios)
    x = run.sigma[0].reshape(1, 1, 1, 1)
    assert integrate(euler_ancestral(unit_gaussian, x, run, ones, eta=0.0)).item() == pytest.approx(0.8425721, abs=1e-6)


@pytest.mark.parametrize(("steps", "short", "full"), [(10, 0.8804211, 0.8803563), (20, 0.9369278, 0.9368589)])
def test_ddim_reaches_its_golden_values_in_both_known_forms(steps, short, full):
    run, x = levels(TABLE, steps, "ddim"), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    walk = list(ddim(unit_gaussian, x, Levels(run.alpha[:-1], run.sigma[:-1]), ones))
    assert walk[-1].x.item() == pytest.approx(short, abs=1e-6)
    if steps == 10:
        assert walk[-1].clean.item() == pytest.approx(0.8687469, abs=1e-6)
        noisy = integrate(ddim(unit_gaussian, x, Levels(run.alpha[:-1], run.sigma[:-1]), ones, eta=1.0))
        assert noisy.item() == pytest.approx(2.3472055, abs=1e-6)
    first = level_of(TABLE, 0)
    whole = Levels(torch.cat([run.alpha[:-1], first.alpha[None]]), torch.cat([run.sigma[:-1], first.sigma[None]]))
    assert integrate(ddim(unit_gaussian, x, whole, ones)).item() == pytest.approx(full, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Samplers: diffusers as an independent reference


def small_network(seed):
    """A random smooth denoiser of (B, 4, 3, 3) samples in float64, with no structure a formula could profit from."""
    draw = torch.Generator().manual_seed(seed)
    one, two = (torch.randn(36, 36, generator=draw, dtype=torch.float64) / 6 for _ in range(2))

    def estimate(x, level, step):
        alpha, sigma = level.for_sample(x)
        size = torch.hypot(alpha, sigma)
        hidden = torch.tanh((x / size).flatten(1) @ one + sigma / size)
        return (hidden @ two).reshape(x.shape) + 0.3 * torch.sin(3 * x / size)

    x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    return estimate, x, int(torch.randint(6, 21, (1,), generator=draw))


def assert_steps_agree(walk, x, reference, seed):
    """Each step of ours against the reference's step from the same sample and clean estimate, 1e-6 relative."""
    for step in walk:
        theirs = reference(step.index, step.clean, x)
        error = ((step.x - theirs).abs().max() / step.x.abs().max()).item()
        assert error < 1e-6, f"seed {seed}, step {step.index}: {error}"
        x = step.x


@needs_diffusers
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("spacing", ["normal", "karras"])
def test_ode_samplers_match_diffusers(name, spacing):
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

    seed = fresh_seed()
    estimate, x, steps = small_network(seed)
    run = levels(TABLE, steps, spacing)
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "sample"}
    if name == "euler":
        scheduler, run = EulerDiscreteScheduler(**config), ve_levels(run.ratios)
    else:
        scheduler = DPMSolverMultistepScheduler(**config, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = run.ratios  # in float64, where diffusers keeps float32
    x = run.sigma[0] * x

    def reference(i, clean, sample):
        if name == "euler":
            scheduler.scale_model_input(sample, scheduler.timesteps[i])
        return scheduler.step(clean, scheduler.timesteps[i], sample).prev_sample

    assert_steps_agree(get_sampler(name)(estimate, x, run, ones), x, reference, seed)


@needs_diffusers
def test_heun_matches_diffusers():
    from diffusers import HeunDiscreteScheduler

    seed = fresh_seed()
    estimate, x, steps = small_network(seed)
    run = ve_levels(levels(TABLE, steps, "karras").ratios)
    scheduler = HeunDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(steps)
    inner = run.ratios[1:-1].repeat_interleave(2)
    scheduler.sigmas = torch.cat([run.ratios[:1], inner, run.ratios[-1:]])
    sample = x = run.sigma[0] * x
    for i, t in enumerate(scheduler.timesteps):
        clean = estimate(sample, run[(i + 1) // 2], 0)
        sample = scheduler.step(clean, t, sample).prev_sample
    ours = integrate(heun(estimate, x, run, ones))
    torch.testing.assert_close(ours, sample, rtol=1e-6, atol=1e-6, msg=said(f"seed {seed}"))


@needs_diffusers
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_matches_diffusers(eta):
    from diffusers import DDIMScheduler

    seed = fresh_seed()
    estimate, x, steps = small_network(seed)
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False, set_alpha_to_one=True, steps_offset=1)
    scheduler.alphas_cumprod = TABLE
    scheduler.set_timesteps(steps)

    def reference(i, clean, sample):
        options = {"eta": eta, "variance_noise": torch.ones_like(sample) if eta else None}
        return scheduler.step(clean, int(scheduler.timesteps[i]), sample, **options).prev_sample

    run = levels(TABLE, steps, "leading")
    assert_steps_agree(ddim(estimate, x, run, ones, eta=eta), x, reference, seed)


@needs_diffusers
def test_ddpm_matches_the_posterior_mean_and_variance_of_diffusers():
    from diffusers import DDPMScheduler

    seed = fresh_seed()
    estimate, x, steps = small_network(seed)
    scheduler = DDPMScheduler(prediction_type="sample", clip_sample=False, steps_offset=1, variance_type="fixed_small")
    scheduler.alphas_cumprod = TABLE
    scheduler.set_timesteps(steps)
    mine, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))

    def reference(i, clean, sample):
        return scheduler.step(clean, int(scheduler.timesteps[i]), sample, generator=theirs).prev_sample

    def noise(here, there):
        return torch.randn(x.shape, generator=mine, dtype=torch.float64)

    assert_steps_agree(ddpm(estimate, x, levels(TABLE, steps, "leading"), noise), x, reference, seed)


# ---------------------------------------------------------------------------------------------------------------------
# Samplers: behaviour


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_variance_preserving_and_exploding_runs_solve_the_same_equation(name):
    seed = fresh_seed()
    estimate, x, steps = small_network(seed)
    preserving = levels(TABLE, steps, "karras")
    exploding = ve_levels(preserving.ratios)
    results = [
        integrate(get_sampler(name)(estimate, run.sigma[0] * x, run, lambda a, b: torch.ones_like(x)))
        for run in (preserving, exploding)
    ]
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10, msg=said(f"seed {seed}"))


class GaussianNetwork:
    """The exact network for data of standard deviation 0.5, in any prediction type, on any table."""

    def __init__(self, table, prediction):
        self.table, self.prediction = table, prediction

    def prepare(self, condition):
        return None

    def __call__(self, x, t, prepared, probe=None):
        level = level_of(self.table, t)
        alpha, sigma = level.for_sample(x)
        clean = 0.25 * alpha * x / (0.25 * alpha**2 + sigma**2)
        return targets(self.prediction, clean, (x - alpha * clean) / sigma, level)


@pytest.mark.parametrize("spacing", ["normal", "karras", "trailing"])
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_runs_from_pure_noise_reach_the_data(name, spacing):
    table = zero_terminal(TABLE)
    denoise = DiscreteDenoiser(GaussianNetwork(table, "v"), table, "v")
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(4, 1, 40, 40, generator=draw, dtype=torch.float64)
    run = levels(table, 300, spacing)
    assert run.alpha[0] == 0

    def noise(here, there):
        return torch.randn(x.shape, generator=draw, dtype=torch.float64)

    def end_of_path(x, level, step):
        """What a consistency model answers: the exact solution of the probability flow from here."""
        alpha, sigma = level.for_sample(x)
        return 0.5 * x / torch.hypot(0.5 * alpha, sigma)

    estimate = end_of_path if name == "lcm" else lambda x, level, step: denoise(x, level, None)
    final = integrate(get_sampler(name)(estimate, x, run, noise))
    if FACTS[name].draws != "none":
        assert final.std().item() == pytest.approx(0.5, abs=0.02)
    else:  # the exact solution of the probability flow
        torch.testing.assert_close(final, 0.5 * x, rtol=0.03, atol=0)


def test_heun_survives_the_almost_pure_noise_that_the_cosine_table_ends_in():
    table = beta_table("cosine")
    denoise = DiscreteDenoiser(GaussianNetwork(table, "v"), table, "v")
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    final = integrate(heun(lambda x, level, step: denoise(x, level, None), x, levels(table, 30), ones))
    torch.testing.assert_close(final, 0.5 * x, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", [name for name in SAMPLER_NAMES if FACTS[name].pace == "levels"])
def test_estimates_are_counted_and_never_asked_at_a_clean_level(name):
    asked = []

    def estimate(x, level, step):
        asked.append((step, float(level.sigma)))
        return unit_gaussian(x, level, step)

    run = levels(TABLE, 6, "karras")
    steps = list(get_sampler(name)(estimate, torch.randn(1, 1, 2, 2), run, ones))
    assert min(sigma for _, sigma in asked) > 0
    more = [name == "plms", 0, 0, 0, 0]  # its first step asks once more
    assert [sum(s == i for s, _ in asked) for i in range(5)] == [calls_per_step(name) + m for m in more]
    assert [(s.index, s.total) for s in steps] == [(i, 6) for i in range(6)]
    assert float(steps[-1].level.sigma) == 0
    assert steps[-1].done == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_the_sample_keeps_its_dtype(name, dtype):
    x = torch.randn(1, 1, 2, 2).to(dtype)
    noise = lambda a, b: torch.ones_like(x)  # noqa: E731
    for step in get_sampler(name)(unit_gaussian, x, levels(TABLE, 4), noise):
        assert step.x.dtype == dtype


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_interleaved_runs_equal_runs_one_after_the_other(name):
    sampler, run = get_sampler(name), levels(TABLE, 8, "karras")
    starts = [torch.randn(1, 4, 3, 3, dtype=torch.float64) for _ in range(2)]
    networks = [small_network(seed)[0] for seed in (1, 2)]

    def noise(a, b):
        return torch.full((1, 4, 3, 3), float(a.sigma), dtype=torch.float64)

    alone = [list(sampler(n, x, run, noise)) for n, x in zip(networks, starts, strict=True)]
    together = list(zip_longest(*(sampler(n, x, run, noise) for n, x in zip(networks, starts, strict=True))))
    for k in range(2):
        seen = [pair[k] for pair in together if pair[k] is not None]
        assert len(seen) == len(alone[k])
        assert all(torch.equal(step.x, other.x) for step, other in zip(seen, alone[k], strict=True))


@pytest.mark.parametrize("name", [name for name in SAMPLER_NAMES if FACTS[name].pace == "levels"])
def test_a_sent_sample_replaces_the_samplers_own(name):
    seen = []

    def estimate(x, level, step):
        seen.append(x)
        return unit_gaussian(x, level, step)

    walk = get_sampler(name)(estimate, torch.randn(1, 1, 2, 2), levels(TABLE, 3), ones)
    next(walk)
    edited, last = torch.full((1, 1, 2, 2), 7.0), torch.full((1, 1, 2, 2), -3.0)
    step = walk.send(edited)
    assert step.index == 1
    assert any(torch.equal(x, edited) for x in seen)
    walk.send(None)
    with pytest.raises(StopIteration) as end:
        walk.send(last)
    assert torch.equal(end.value.value, last)


@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive"])
def test_samplers_with_steps_of_their_own_take_back_what_they_told(name):
    seen = []

    def estimate(x, level, step):
        seen.append(x)
        return unit_gaussian(x, level, step)

    for steps in (1, 2, 3, 4, 5, 6, 7):
        for run in (levels(TABLE, steps), levels(zero_terminal(TABLE), steps)):
            seen.clear()
            walk = get_sampler(name)(estimate, torch.randn(1, 1, 2, 2), run, ones)
            told, sent = [next(walk)], torch.full((1, 1, 2, 2), 7.0)
            with pytest.raises(StopIteration) as end:
                while True:
                    told.append(walk.send(sent))
                    assert torch.equal(seen[-1], sent) or any(x is sent for x in seen)
                    seen.clear()
            assert end.value.value is sent  # what was told last
            if name == "dpm_fast":
                assert [step.total for step in told] == [steps] * len(told) and told[-1].done == 1
            assert [step.index for step in told] == sorted({step.index for step in told})


def test_an_adaptive_sampler_ends_where_its_network_gives_no_numbers_or_no_agreement():
    spoilt = lambda x, level, step: torch.full_like(x, math.nan)  # noqa: E731
    told = list(get_sampler("DPM adaptive")(spoilt, torch.randn(1, 1, 2, 2), levels(TABLE, 5), ones))
    assert len(told) == 1 and not told[0].x.isfinite().any()
    draw = torch.Generator().manual_seed(1)
    wild = lambda x, level, step: 1e4 * torch.randn(x.shape, generator=draw)  # noqa: E731
    told = list(get_sampler("DPM adaptive")(wild, torch.randn(1, 1, 2, 2), levels(TABLE, 5), ones))
    assert 1000 < len(told) < 20_000  # of the shortest length, each


def test_levels_that_gain_noise_are_refused():
    run = ve_levels(torch.tensor([1.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match="step 0"):
        integrate(euler(unit_gaussian, torch.ones(1, 1, 1, 1), run, ones))
    with pytest.raises(InputError, match="eta"):
        integrate(ddim(unit_gaussian, torch.ones(1, 1, 1, 1), levels(TABLE, 3), ones, eta=-0.5))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("DPM++ 2M", dpmpp_2m),
        ("dpmpp_2m", dpmpp_2m),
        ("Euler a", euler_ancestral),
        ("EULER", euler),
    ],
)
def test_samplers_are_found_by_their_usual_names(written, meant):
    assert get_sampler(written) is meant


def test_unknown_names_and_numbers_say_what_would_be_accepted():
    with pytest.raises(InputError, match="did you mean 'dpmpp_2m'"):
        get_sampler("DPM++ 2N")
    with pytest.raises(InputError, match="did you mean 'karras'"):
        levels(TABLE, 10, "karas")
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        beta_table("cosin")
    with pytest.raises(InputError, match="at least 1 step"):
        levels(TABLE, 0)
    with pytest.raises(InputError, match="at most 1000 steps"):
        levels(TABLE, 1001, "trailing")
    with pytest.raises(ValueError, match="beta_start"):
        ScheduleRecipe(beta_start=0.5, beta_end=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Noise


def test_a_pictures_noise_does_not_depend_on_its_batch():
    from giverny.base.runtime import PictureStreams

    level = levels(TABLE, 5)[0]

    def draws(seeds):
        noise = PictureNoise(PictureStreams(seeds), (2, 3, 3))
        return noise.initial(level), noise(level, level), noise(level, level)

    together = draws([11, 12, 13])
    for row, seed in enumerate([11, 12, 13]):
        for many, one in zip(together, draws([seed]), strict=True):
            assert torch.equal(many[row], one[0])
    first, second, third = together
    assert not torch.equal(second, third)
    unit = PictureStreams([11, 12, 13]).normal((2, 3, 3))
    torch.testing.assert_close(first, unit * level.sigma.float())


# ---------------------------------------------------------------------------------------------------------------------
# Preconditioning


class Oracle:
    """A network that knows the clean sample and the noise, and answers in the prediction type it is asked for."""

    def __init__(self, prediction, clean, noise, table):
        self.prediction, self.clean, self.noise, self.table = prediction, clean, noise, table

    def prepare(self, condition):
        return None

    def __call__(self, x, t, prepared, probe=None):
        level = level_of(self.table, t)
        alpha, sigma = level.for_sample(x)
        torch.testing.assert_close(x, alpha * self.clean + sigma * self.noise)  # of unit scale, at the right time
        return targets(self.prediction, self.clean, self.noise, level)


@pytest.mark.parametrize("form", ["preserving", "exploding"])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_every_prediction_type_returns_to_the_clean_sample(prediction, form):
    clean, noise = (torch.randn(3, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    denoise = DiscreteDenoiser(Oracle(prediction, clean, noise, TABLE), TABLE, prediction)
    assert isinstance(denoise, Denoise)
    for t in (torch.tensor([3.5, 500.0, 999.0]), torch.tensor(250.25)):
        level = level_of(TABLE, t)
        if form == "exploding":
            level = NoiseLevel(torch.ones_like(level.alpha), level.ratio)
        alpha, sigma = level.for_sample(clean)
        estimate = denoise(alpha * clean + sigma * noise, level, denoise.prepare(Condition()))
        torch.testing.assert_close(estimate, clean, rtol=1e-8, atol=1e-8)


def test_the_network_sees_fractional_times_of_the_batch_in_float32():
    seen = []

    class Network:
        def prepare(self, condition):
            return "prepared"

        def __call__(self, x, t, prepared, probe=None):
            seen.append((t, prepared, probe))
            return x

    denoise = DiscreteDenoiser(Network(), TABLE, "v")
    out = denoise(torch.randn(3, 1, 2, 2).bfloat16(), ve_levels(torch.tensor([1.0, 0.0]))[0], "prepared")
    t, prepared, probe = seen[0]
    assert (t.shape, t.dtype, prepared, probe) == ((3,), torch.float32, "prepared", None)
    torch.testing.assert_close(t, torch.full((3,), 353.89038))
    assert out.dtype == torch.bfloat16


def test_a_coarse_network_does_not_make_the_sample_coarse():
    class Network:
        def prepare(self, condition):
            return None

        def __call__(self, x, t, prepared, probe=None):
            assert x.dtype == torch.bfloat16
            return torch.zeros_like(x)

    x, level = torch.randn(3, 1, 2, 2), level_of(TABLE, torch.tensor(400.0))
    clean = DiscreteDenoiser(Network(), TABLE, "v", precision=torch.bfloat16)(x, level, None)
    torch.testing.assert_close(clean, level.alpha.float() * x, rtol=1e-6, atol=1e-6)  # a velocity of 0


def test_v_and_sample_networks_start_from_pure_noise_and_epsilon_networks_say_why_not():
    table = zero_terminal(TABLE)
    start = level_of(table, 999)
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    for prediction in ("v", "sample"):
        clean = DiscreteDenoiser(GaussianNetwork(table, prediction), table, prediction)(x, start, None)
        torch.testing.assert_close(clean, torch.zeros_like(x))
    with pytest.raises(InputError, match="zero_terminal_snr"):
        DiscreteDenoiser(GaussianNetwork(table, "epsilon"), table, "epsilon")(x, start, None)
    with pytest.raises(InputError, match="epsilon"):
        DiscreteDenoiser(GaussianNetwork(table, "v"), table, "epsilom")


def test_min_snr_weighs_the_same_error_alike_in_every_prediction_type():
    level = level_of(TABLE, torch.tensor([0, 100, 500, 999]))
    clean, noise, wrong = (torch.randn(4, 2, 2, 2, dtype=torch.float64) for _ in range(3))
    alpha, sigma = level.for_sample(clean)
    x = alpha * clean + sigma * noise
    snr = (level.alpha / level.sigma) ** 2
    want = snr.clamp(max=5) * ((wrong - clean) ** 2).sum((1, 2, 3))
    for prediction in ("epsilon", "v", "sample"):
        right = targets(prediction, clean, noise, level)
        given = targets(prediction, wrong, (x - alpha * wrong) / sigma, level)
        loss = min_snr_weight(prediction, level) * ((given - right) ** 2).sum((1, 2, 3))
        torch.testing.assert_close(loss, want, rtol=1e-8, atol=1e-10)
        assert min_snr_weight(prediction, level, gamma=None).tolist() == [1, 1, 1, 1]
    ends = NoiseLevel(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    assert min_snr_weight("epsilon", ends).tolist() == [1, 0]
    assert min_snr_weight("v", ends).tolist() == [0, 0]
    assert min_snr_weight("sample", ends).tolist() == [0, 5]


# ---------------------------------------------------------------------------------------------------------------------
# Guidance


class Listening:
    """A denoiser whose estimate mixes sample and condition nonlinearly, and which counts what it is asked."""

    def __init__(self, can=("grad", "probe")):
        self.can, self.prepared, self.rows = frozenset(can), 0, []

    def prepare(self, condition):
        self.prepared += 1
        return condition.vectors.mean(1)[:, :, None, None]

    def __call__(self, x, level, prepared, probe=None):
        self.rows.append(len(prepared))
        if probe is not None:
            probe("here", x)
        alpha, _ = level.for_sample(x)
        branches = len(prepared) // len(x)  # a condition may have several rows for each of the sample's
        alpha = alpha.repeat(branches, 1, 1, 1) if alpha.dim() else alpha
        return torch.tanh(x.repeat(branches, 1, 1, 1) * prepared) * alpha + prepared


def condition(batch=2):
    return Condition(vectors=torch.randn(batch, 3, 4, dtype=torch.float64))


def test_guidance_is_the_weighted_sum_of_its_branches():
    parts = [condition() for _ in range(4)]
    branches = [Branch(c, w) for c, w in zip(parts, (2.0, 1.5, 0.0, -2.5), strict=True)]
    denoise, x = Listening(), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    estimate = guided(denoise, FixedPlan(branches), total=5)
    for level in (level_of(TABLE, 500), level_of(TABLE, torch.tensor([100, 900]))):
        alone = Listening()
        want = sum(b.weight * alone(x, level, alone.prepare(b.condition)) for b in branches)
        torch.testing.assert_close(estimate(x, level, 0), want)
    assert denoise.rows == [6, 6]  # three branches of two pictures; the fourth has no weight
    assert denoise.prepared == 1


def test_classifier_free_guidance_moves_from_negative_to_positive():
    positive, negative = condition(), condition()
    x, level = torch.randn(2, 4, 3, 3, dtype=torch.float64), level_of(TABLE, 300)
    alone = Listening()
    yes, no = (alone(x, level, alone.prepare(c)) for c in (positive, negative))
    for scale in (0.0, 1.0, 3.5):
        denoise = Listening()
        got = guided(denoise, classifier_free(positive, negative, scale), 5)(x, level, 0)
        torch.testing.assert_close(got, no + scale * (yes - no))
        assert denoise.rows == [4 if scale == 3.5 else 2]
    torch.testing.assert_close(guided(Listening(), classifier_free(positive, None, 1.0), 5)(x, level, 0), yes)


def test_guidance_acts_only_inside_its_interval():
    positive, negative = condition(), condition()
    denoise, x = Listening(), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    estimate = guided(denoise, classifier_free(positive, negative, 3.0, (0.2, 0.8)), 5)
    for where in (1.0, 0.9, 0.79, 0.5, 0.21, 0.1, 0.0):
        angle = torch.tensor(where * math.pi / 2, dtype=torch.float64)
        level = NoiseLevel(angle.cos(), angle.sin())
        assert position(level) == pytest.approx(where)
        estimate(x, level, 0)
    assert denoise.rows == [2, 2, 4, 4, 4, 2, 2]
    assert denoise.prepared == 2  # once for each set of branches, however often they alternate


def test_guidance_may_be_kept_for_some_estimates():
    positive, negative = condition(), condition()
    x, far, near = torch.randn(2, 4, 3, 3, dtype=torch.float64), level_of(TABLE, 700), level_of(TABLE, 600)
    denoise, exact, alone = Listening(), Listening(), Listening()
    estimate = guided(denoise, classifier_free(positive, negative, 3.0, (0.0, 0.9)), 5, every=3)
    full = guided(exact, classifier_free(positive, negative, 3.0), 5)

    def unguided(level):
        return alone(x, level, alone.prepare(positive))

    torch.testing.assert_close(estimate(x, far, 0), full(x, far, 0))
    pushed = full(x, far, 0) - unguided(far)
    torch.testing.assert_close(estimate(x, near, 1), unguided(near) + pushed)
    torch.testing.assert_close(estimate(x, near, 2), unguided(near) + pushed)
    torch.testing.assert_close(estimate(x, near, 3), full(x, near, 3))  # each third is exact
    noise = NoiseLevel(torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(estimate(x, noise, 4), unguided(noise))  # outside the interval nothing is added
    torch.testing.assert_close(estimate(x, far, 4), full(x, far, 4))  # and what was kept is forgotten
    assert denoise.rows == [4, 2, 2, 4, 2, 4]
    assert denoise.prepared == 2
    every_call = guided(exact, classifier_free(positive, negative, 3.0), 5, every=1)
    assert all(torch.equal(every_call(x, level, 0), full(x, level, 0)) for level in (far, near))
    with pytest.raises(InputError, match="more seldom"):
        guided(exact, classifier_free(positive, negative, 3.0), 5, every=0)


def test_impossible_guidance_is_refused():
    with pytest.raises(InputError, match="negative"):
        classifier_free(condition(), None, 2.0)
    with pytest.raises(InputError, match="interval"):
        classifier_free(condition(), condition(), 2.0, (0.8, 0.2))
    with pytest.raises(InputError, match="finite"):
        classifier_free(condition(), condition(), math.nan)
    plan = FixedPlan([Branch(condition(), 1.0)])
    with pytest.raises(InputError, match="probe"):
        guided(Listening(can=["grad"]), plan, 5, probe=lambda place, weights: None)
    with pytest.raises(InputError, match="grad"):
        guided(Listening(can=["probe"]), plan, 5, grad=True)
    with pytest.raises(ValueError, match="no branch"):
        guided(Listening(), FixedPlan([Branch(condition(), 0.0)]), 5)(torch.zeros(2, 4, 1, 1), level_of(TABLE, 1), 0)


def test_guided_runs_leak_no_mode_and_give_ordinary_tensors():
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    estimate = guided(Listening(), classifier_free(condition(), condition(), 2.0), 4)
    for step in euler(estimate, x, levels(TABLE, 4), ones):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        assert not step.x.is_inference()
        assert not step.clean.is_inference()


def test_gradients_and_probes_pass_through_guidance_where_asked():
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    seen = []
    plan = classifier_free(condition(), condition(), 2.0)
    estimate = guided(Listening(), plan, 4, probe=lambda place, weights: seen.append(place), grad=True)
    estimate(x, level_of(TABLE, 200), 0).sum().backward()
    assert x.grad.abs().sum() > 0
    assert seen == ["here"]


def test_two_guided_requests_at_once_equal_one_after_the_other():
    denoise, run = Listening(), levels(TABLE, 6, "karras")
    starts = [torch.randn(2, 4, 3, 3, dtype=torch.float64) for _ in range(2)]
    plans = [classifier_free(condition(), condition(), 2.0) for _ in range(2)]

    def walks():
        return [dpmpp_2m(guided(denoise, p, 6), x, run, ones) for p, x in zip(plans, starts, strict=True)]

    alone = [integrate(w) for w in walks()]
    together = list(zip(*walks(), strict=True))[-1]
    assert all(torch.equal(a, t.x) for a, t in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])
