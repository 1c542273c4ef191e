"""Level spacings against the programs they come from, names of samplers and spacings, and runs that begin on a picture."""

import contextlib
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from giverny.base.errors import InputError
from giverny.base.table import level_of, log_ratios
from giverny.sampling.beta import beta_cdf, beta_quantile
from giverny.sampling.names import AUTOMATIC, FACTS, SAMPLER_NAMES, SPACINGS, UNIT_START, resolve, spacing_name
from giverny.sampling.samplers import SAMPLERS
from giverny.sampling.schedules import beta_table, levels, zero_terminal
from giverny.sampling.starts import Start, image_start, started
from k_diffusion_oracle import k_diffusion

TABLE = beta_table("scaled_linear")
STORED = TABLE.float()  # as checkpoints keep it; the golden numbers were made from it
RATIOS = log_ratios(TABLE).exp()
K = pytest.mark.xdist_group("k_diffusion")

GOLDEN = {  # STABLE DIFFUSION's table
    ("exponential", 10): "14.6146 7.3249 3.6712 1.8400 .9222 .4622 .2317 .1161 .0582 .0292 0",
    ("sgm_uniform", 10): "14.6146 8.3072 5.0924 3.3251 2.2797 1.6156 1.1629 .8319 .5712 .3437 0",
    ("simple", 10): "14.6146 8.3028 5.0878 3.3211 2.2765 1.6129 1.1606 .8299 .5693 .3417 0",
    ("align_your_steps", 11): "14.615 6.475 3.861 2.697 1.886 1.396 .963 .652 .399 .152 .029 0",
    ("align_your_steps_sdxl", 11): "14.615 6.315 3.771 2.181 1.342 .862 .555 .380 .234 .113 .029 0",
}


def ratios(text):
    return torch.tensor([float(s) for s in text.split()], dtype=torch.float64)


def agree(got, want, digits=1e-9):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=torch.float64), rtol=digits, atol=digits)


@pytest.mark.parametrize(("spacing", "steps"), GOLDEN)
def test_spacings_match_the_golden_tables(spacing, steps):
    torch.testing.assert_close(levels(STORED, steps, spacing).ratios, ratios(GOLDEN[spacing, steps]), rtol=0, atol=5.1e-5)


def test_penultimate_levels_are_left_out_and_the_old_karras_ends_can_be_asked_for():
    run = levels(STORED, 10, "karras", discard_penultimate=True)
    want = "14.6146 9.5583 6.0822 3.7513 2.2322 1.2741 .6926 .3552 .1698 .0744 0"
    torch.testing.assert_close(run.ratios, ratios(want), rtol=0, atol=5.1e-5)
    old = levels(STORED, 5, "karras", sigma_min=0.1, sigma_max=10)
    torch.testing.assert_close(old.ratios, ratios("10 4.0701 1.4507 .4325 .1 0"), rtol=0, atol=5.1e-5)
    assert levels(TABLE, 30, "leading", discard_penultimate=True).steps == 30


@pytest.fixture
def in_float64():
    """k-diffusion makes its ramps in torch's default precision, where powers of them lose half of the digits."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@K
def test_ramps_match_k_diffusion_between_random_ends(in_float64):
    seed = random.SystemRandom().randrange(2**31)
    draw = random.Random(seed)
    module = k_diffusion()
    for _ in range(10):
        low, high, rho, steps = draw.uniform(0.01, 0.2), draw.uniform(2, 80), draw.uniform(0.5, 9), draw.randrange(2, 60)
        ends = {"sigma_min": low, "sigma_max": high}
        for spacing, want in (
            ("karras", module.get_sigmas_karras(steps, low, high, rho=rho)),
            ("polyexponential", module.get_sigmas_polyexponential(steps, low, high, rho=rho)),
            ("exponential", module.get_sigmas_exponential(steps, low, high)),
        ):
            got = levels(TABLE, steps, spacing, rho if spacing != "exponential" else None, **ends).ratios
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda m: f"seed {seed}: {m}")


def test_spacings_are_the_formulas_of_their_programs():
    """In the terms of AUTOMATIC1111's modules/sd_schedulers.py and ComfyUI's samplers, by numpy and scipy."""
    from scipy import stats

    low, high = float(RATIOS[0]), float(RATIOS[-1])
    for n in (2, 7, 20, 33):
        at = np.arange(n + 1)
        agree(levels(TABLE, n, "kl_optimal").ratios, np.tan(at / n * np.arctan(low) + (1 - at / n) * np.arctan(high)))
        at = np.arange(n) / (n - 1)
        clean = np.append(np.tan(at * np.arctan(low) + (1 - at) * np.arctan(high)), 0)
        agree(levels(TABLE, n, "kl_optimal_clean").ratios, clean)
        shares = stats.beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6)
        agree(levels(TABLE, n, "beta").ratios, np.append(low + shares * (high - low), 0))
        shares = stats.beta.ppf(1 - np.linspace(0, 1, n), 0.9, 1.7)
        agree(levels(TABLE, n, "beta", beta_shape=(0.9, 1.7)).ratios, np.append(low + shares * (high - low), 0))
        times = np.rint(stats.beta.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6) * 999)
        agree(levels(TABLE, n, "beta_times").ratios[:-1], RATIOS[np.unique(times)[::-1].copy()])
        agree(levels(TABLE, n, "simple").ratios[:-1], [float(RATIOS[-(1 + int(x * (1000 / n)))]) for x in range(n)])
        aligned = np.log([14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029][::-1])
        wanted = np.exp(np.interp(np.linspace(0, 1, n), np.linspace(0, 1, 11), aligned))[::-1]
        agree(levels(TABLE, n, "align_your_steps").ratios[:-1], wanted.copy())
    assert levels(TABLE, 1, "align_your_steps").ratios[0].item() == pytest.approx(14.615)


def test_the_spacings_of_unipc_are_its_authors():
    """t from 1 to 1/1000 in their terms, log(alpha) linear between the table's t = (i + 1) / 1000."""
    grid, logs = np.arange(1, 1001) / 1000, (0.5 * TABLE.log()).numpy()
    for n in (3, 10, 27):
        for spacing, power in (("time_uniform", 1), ("time_quadratic", 2)):
            t = np.linspace(1, (1 / 1000) ** (1 / power), n + 1) ** power
            log_alpha = np.interp(t, grid, logs)
            run = levels(TABLE, n, spacing)
            agree(run.alpha, np.exp(log_alpha))
            agree(run.sigma, np.sqrt(1 - np.exp(2 * log_alpha)))
        agree(levels(TABLE, n, "log_snr").ratios.log(), np.linspace(math.log(RATIOS[-1]), math.log(RATIOS[0]), n + 1))


def test_timesteps_of_the_web_interface():
    def times(run):
        return [int((RATIOS - ratio).abs().argmin()) for ratio in run.ratios]

    assert times(levels(TABLE, 20, "timesteps")) == list(range(951, 0, -50))
    assert times(levels(TABLE, 50, "timesteps")) == list(range(981, 0, -20))
    assert times(levels(TABLE, 30, "timesteps")) == list(range(991, 0, -33))
    assert times(levels(TABLE, 4, "lcm"))[:-1] == [999, 759, 499, 259]
    webui = levels(TABLE, 4, "lcm_webui").ratios
    some = RATIOS[19::20].log().numpy()  # log(sigma) at the 50 times of distillation, 999 being the last
    wanted = np.interp(np.linspace(49, 0, 4), np.arange(50), some)
    agree(webui[:-1].log(), wanted)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_where_runs_begin_and_end(spacing):
    run = levels(TABLE, 12, spacing)
    assert (float(run.sigma[-1]) == 0) == (spacing not in UNIT_START | {"kl_optimal"})
    torch.testing.assert_close(run.alpha**2 + run.sigma**2, torch.ones(len(run), dtype=torch.float64))
    pure = levels(zero_terminal(TABLE), 12, spacing)
    counted = spacing in ("ddim", "timesteps", "leading", "align_your_steps", "align_your_steps_sdxl")
    assert (float(pure.alpha[0]) == 0) == (not counted)


def test_ends_of_a_run_can_be_asked_for_where_it_has_ends():
    for spacing in ("normal", "karras", "exponential", "sgm_uniform", "kl_optimal", "beta"):
        run = levels(TABLE, 9, spacing, sigma_min=0.2, sigma_max=5.0)
        noisy = run.ratios[run.ratios > 0]
        assert noisy[0].item() == pytest.approx(5.0)
        assert noisy[-1].item() == pytest.approx(0.2) or spacing == "sgm_uniform"
        half = levels(TABLE, 9, spacing, sigma_max=5.0).ratios
        assert half[half > 0][-1].item() == pytest.approx(float(RATIOS[0])) or spacing == "sgm_uniform"
    with pytest.raises(InputError, match="with ends"):
        levels(TABLE, 9, "simple", sigma_max=5.0)
    for wrong in ({"sigma_min": 5.0, "sigma_max": 1.0}, {"sigma_min": 0.0}, {"sigma_max": -1.0}, {"sigma_min": math.nan}):
        with pytest.raises(InputError, match="0 < sigma_min < sigma_max"):
            levels(TABLE, 9, "karras", **wrong)


def test_impossible_runs_are_refused():
    for wrong, match in (
        ({"rho": 0.0, "spacing": "karras"}, "rho"),
        ({"beta_shape": (0.0, 1.0), "spacing": "beta"}, "beta distribution"),
        ({"spacing": "timesteps", "steps": 1}, "at least 2"),
        ({"spacing": "lcm", "steps": 51}, "at most 50"),
        ({"spacing": "simple", "steps": 1001}, "at most 1000"),
        ({"spacing": "no such"}, "level spacing"),
    ):
        with pytest.raises(InputError, match=match):
            levels(TABLE, **{"steps": 5, **wrong})
    for spacing in ("lcm", "lcm_webui"):
        with pytest.raises(InputError, match="at least 50 times"):
            levels(beta_table("cosine", 40), 5, spacing)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.05, 20), st.floats(0.05, 20), st.floats(0, 1))
def test_the_beta_distribution_is_scipys(alpha, beta, share):
    from scipy import stats

    assert 0 <= beta_quantile(share, alpha, beta) <= 1
    assert beta_cdf(share, alpha, beta) == pytest.approx(stats.beta.cdf(share, alpha, beta), abs=1e-12)
    x = beta_quantile(share, alpha, beta)
    # where the distribution is steep, a share has no place to the last digit: what counts is the share below it
    theirs = stats.beta.ppf(share, alpha, beta)
    assert x == pytest.approx(theirs, abs=1e-9) or abs(stats.beta.cdf(x, alpha, beta) - share) < 1e-12


def test_a_grid_of_quantiles_as_the_spacings_use_them():
    from scipy import stats

    shares = np.linspace(0, 1, 101)
    for shape in ((0.6, 0.6), (0.5, 0.5), (1.0, 1.0), (0.3, 2.0), (4.0, 0.7)):
        np.testing.assert_allclose(
            [beta_quantile(s, *shape) for s in shares], stats.beta.ppf(shares, *shape), rtol=0, atol=1e-11
        )


# ---------------------------------------------------------------------------------------------------------------------
# Names

TYPED = {  # AUTOMATIC1111 up to 1.8: names and aliases
    "DPM++ 2M Karras": ("dpmpp_2m", "karras", False),
    "k_dpmpp_2m_ka": ("dpmpp_2m", "karras", False),
    "DPM++ SDE Karras": ("dpmpp_sde", "karras", False),
    "k_dpmpp_sde_ka": ("dpmpp_sde", "karras", False),
    "DPM++ 2M SDE Exponential": ("dpmpp_2m_sde", "exponential", False),
    "k_dpmpp_2m_sde_exp": ("dpmpp_2m_sde", "exponential", False),
    "DPM++ 2M SDE Karras": ("dpmpp_2m_sde", "karras", False),
    "Euler a": ("euler_a", None, False),
    "k_euler_a": ("euler_a", None, False),
    "k_euler_ancestral": ("euler_a", None, False),
    "Euler": ("euler", None, False),
    "LMS": ("lms", None, False),
    "Heun": ("heun", None, False),
    "DPM2": ("dpm2", None, True),
    "k_dpm_2": ("dpm2", None, True),
    "DPM2 a": ("dpm2_a", None, True),
    "k_dpm_2_a": ("dpm2_a", None, True),
    "DPM++ 2S a": ("dpmpp_2s_a", None, False),
    "DPM++ 2M": ("dpmpp_2m", None, False),
    "DPM++ SDE": ("dpmpp_sde", None, False),
    "DPM++ 2M SDE": ("dpmpp_2m_sde", None, False),
    "DPM++ 2M SDE Heun": ("dpmpp_2m_sde_heun", None, False),
    "k_dpmpp_2m_sde_heun": ("dpmpp_2m_sde_heun", None, False),
    "DPM++ 2M SDE Heun Karras": ("dpmpp_2m_sde_heun", "karras", False),
    "DPM++ 2M SDE Heun Exponential": ("dpmpp_2m_sde_heun", "exponential", False),
    "k_dpmpp_2m_sde_heun_exp": ("dpmpp_2m_sde_heun", "exponential", False),
    "DPM++ 3M SDE": ("dpmpp_3m_sde", None, True),
    "DPM++ 3M SDE Exponential": ("dpmpp_3m_sde", "exponential", True),
    "k_dpmpp_3m_sde_ka": ("dpmpp_3m_sde", "karras", True),
    "LMS Karras": ("lms", "karras", False),
    "DPM2 a Karras": ("dpm2_a", "karras", True),
    "k_dpm_2_a_ka": ("dpm2_a", "karras", True),
    "DPM++ 2S a Karras": ("dpmpp_2s_a", "karras", False),
    "Restart": ("restart", None, False),
    "DDIM": ("ddim", None, False),
    "PLMS": ("plms", None, False),
    "UniPC": ("unipc", None, False),
    "LCM": ("lcm", None, False),
    # 1.9 and later: any label behind any name
    "Euler a SGM Uniform": ("euler_a", "sgm_uniform", False),
    "Euler SGMUniform": ("euler", "sgm_uniform", False),
    "Heun Align Your Steps": ("heun", "align_your_steps", False),
    "DPM++ 2M Automatic": ("dpmpp_2m", AUTOMATIC, False),
    "DDIM DDIM": ("ddim", "ddim", False),
    "euler beta": ("euler", "beta", False),
    "Euler KL Optimal": ("euler", "kl_optimal", False),
    # ComfyUI, InvokeAI, diffusers, k-diffusion, ours
    "dpm_2_ancestral": ("dpm2_a", None, True),
    "dpmpp_2s_ancestral": ("dpmpp_2s_a", None, False),
    "dpmpp_2m_sde_gpu": ("dpmpp_2m_sde", None, False),
    "uni_pc": ("unipc", None, False),
    "uni_pc_bh2": ("unipc_bh2", None, False),
    "dpmpp_2m_k": ("dpmpp_2m", "karras", False),
    "kdpm_2_a": ("dpm2_a", None, True),
    "euler_k": ("euler", "karras", False),
    "pndm": ("plms", None, False),
    "EulerAncestralDiscreteScheduler": ("euler_a", None, False),
    "KDPM2AncestralDiscreteScheduler": ("dpm2_a", None, True),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", None, False),
    "UniPCMultistepScheduler": ("unipc_bh2", None, False),
    "sample_dpmpp_2s_ancestral": ("dpmpp_2s_a", None, False),
    "DPM-Solver++(2M)": ("dpmpp_2m", None, False),
    "dpm++ 2m": ("dpmpp_2m", None, False),
    "euler-ancestral": ("euler_a", None, False),
}


@pytest.mark.parametrize("typed", TYPED)
def test_names_that_people_type(typed):
    assert tuple(resolve(typed)) == TYPED[typed]
    assert tuple(resolve(typed.upper())) == TYPED[typed]


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_spelling_of_a_sampler_means_it_behind_every_spacing(name):
    facts = FACTS[name]
    for written in (name, facts.label, *facts.aliases):
        assert tuple(resolve(written)) == (name, None, facts.discard)
        for spacing in (*SPACINGS, "SGM Uniform", "Align Your Steps"):
            assert tuple(resolve(f"{written} {spacing}")) == (name, spacing_name(spacing), facts.discard)
    assert facts.usual in SPACINGS


def test_facts_and_functions_are_of_the_same_samplers():
    import inspect

    assert set(SAMPLERS) == set(FACTS)
    for name, sampler in SAMPLERS.items():
        taken = {p.name for p in inspect.signature(sampler).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert taken == set(FACTS[name].options), name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("SGM Uniform", "sgm_uniform"), ("Uniform", "normal"), ("ddim_uniform", "ddim"), ("AYS", "align_your_steps"),
     ("Automatic", AUTOMATIC), ("KARRAS", "karras"), ("Align Your Steps", "align_your_steps")],
)  # fmt: skip
def test_spacings_are_found_by_their_usual_names(typed, meant):
    assert spacing_name(typed) == meant


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("DPM++ 2N Karras", "dpmpp_2m"), ("Eular a", "euler_a"), ("unipcc", "unipc"), ("", "choices"), ("Karras", "choices")],
)
def test_unknown_samplers_come_with_the_nearest(typed, hint):
    with pytest.raises(InputError, match=hint):
        resolve(typed)


def test_unknown_spacings_come_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'karras'"):
        spacing_name("karas")
    with pytest.raises(InputError, match="choices"):
        spacing_name("k")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_name_or_an_input_error(text):
    for known in (resolve, spacing_name):
        with contextlib.suppress(InputError):
            known(text)


# ---------------------------------------------------------------------------------------------------------------------
# Beginning on a picture


@pytest.mark.parametrize(
    ("steps", "strength", "webui", "diffusers"),
    [(20, 0.75, 16, 15), (20, 0.5, 11, 10), (30, 0.4, 13, 12), (20, 1.0, 20, 20), (20, 0.05, 2, 1), (20, 0.0, 1, 0)],
)
def test_steps_over_a_picture(steps, strength, webui, diffusers):
    assert image_start(steps, strength, "webui") == Start(steps, steps - webui)
    assert image_start(steps, strength, "diffusers") == Start(steps, steps - diffusers)


@pytest.mark.parametrize(("steps", "strength", "spread"), [(20, 0.7, 28), (15, 0.5, 30), (10, 1.0, 10)])
def test_exact_steps_of_a_second_pass_lie_in_a_longer_run(steps, strength, spread):
    start = image_start(steps, strength, "webui_exact")
    assert start == Start(spread, spread - steps) and start.run == steps
    run = levels(TABLE, start.steps, "karras")
    rest = started(run, start.skip)
    assert rest.steps == steps and torch.equal(rest.sigma, run.sigma[start.skip :])
    assert started(run, run.steps) is None


def test_impossible_starts_are_refused():
    for wrong in ((0, 0.5, "webui"), (5, 1.5, "webui"), (5, -0.1, "diffusers"), (5, 0.0, "webui_exact"), (5, 0.5, "comfy")):
        with pytest.raises(InputError):
            image_start(*wrong)


def test_levels_of_the_table_itself_are_found_again():
    agree(level_of(TABLE, torch.arange(1000)).ratio, RATIOS)
