"""Settings of samplers, levels and prompts that are knobs of the diffusion painter: what they do, and how files say them."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from giverny.base.contracts import Done, Progress, Request, Started
from giverny.base.errors import InputError
from giverny.base.infotext import infotext
from giverny.base.picture import read_provenance
from giverny.checkpoints.infotext import parse_infotext
from giverny.cli import cli
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.painters.diffusion.painter import DiffusionPainter
from giverny.pipelines.like import like
from giverny.sampling.names import FACTS
from giverny.sampling.samplers import SAMPLERS, integrate
from giverny.sampling.schedules import beta_table, levels
from test_infotext import provenance
from test_samplers_referee import fresh, toy
from tiny_painters import WORDS, painted, requests, story, tiny_painter

CAN = DiffusionPainter.can
RED = (WORDS[0], 3)
CHURN = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 9.0, "s_noise": 1.05}
needs_diffusers = pytest.mark.xdist_group("diffusers")


def settled(painter, **knobs):
    return painter.settle(Request(knobs=knobs))[0]


OPTIONS = [
    *((name, CHURN) for name in ("euler", "heun", "dpm2")),
    *((name, {"s_noise": 0.9}) for name, facts in FACTS.items() if {"eta", "s_noise"} <= {*facts.options}),
    ("unipc", {"order": 2, "lower_order_final": False}),
    ("unipc_bh2", {"order": 1}),
    ("lms", {"order": 2}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_of_samplers_are_knobs(name, options):
    """The sampler that knobs make walks as the function with these options does, and otherwise than without."""
    seed, draw = fresh()
    clean, run = toy(draw, True), levels(beta_table("scaled_linear"), 8, "karras")
    x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    painter = tiny_painter(schedule="scaled_linear", zero=False)

    def walked(sampler, **more):
        drawn = torch.Generator().manual_seed(seed)
        noise = lambda here, there: torch.randn(x.shape, generator=drawn, dtype=torch.float64)  # noqa: E731
        return integrate(sampler(lambda x, level, i: clean(x / level.alpha, float(level.ratio)), x, run, noise, **more))

    made = walked(painter.sampler(settled(painter, sampler=name, **options)))
    assert torch.equal(made, walked(SAMPLERS[name], **options)), seed
    plain = walked(painter.sampler(settled(painter, sampler=name)))
    assert torch.equal(plain, walked(SAMPLERS[name])), seed
    assert not torch.equal(made, plain), seed


def test_without_an_upper_end_churn_has_none():
    painter = tiny_painter(schedule="scaled_linear", zero=False)
    one, other = (painted(painter, RED, sampler="euler", s_churn=2.0, s_tmax=end)[0].pixels for end in (0.0, 1000.0))
    assert np.array_equal(one, other) and not np.array_equal(one, painted(painter, RED, sampler="euler")[0].pixels)


def test_ends_and_curve_of_the_levels_are_knobs():
    painter = tiny_painter(schedule="scaled_linear", zero=False)
    table = painter.parts.denoiser.table
    old = painter.levels(settled(painter, spacing="karras", sigma_min=0.1, sigma_max=10.0, steps=5)).ratios
    assert old.tolist() == pytest.approx([10, 4.0701, 1.4507, 0.4325, 0.1, 0], abs=1e-4)  # A1111's before 2023
    for knobs in ({"spacing": "karras", "rho": 5.0}, {"spacing": "polyexponential", "rho": 2.0, "sigma_max": 8.0}):
        wanted = levels(table, 6, knobs["spacing"], rho=knobs["rho"], sigma_max=knobs.get("sigma_max"))
        assert torch.equal(painter.levels(settled(painter, steps=6, **knobs)).sigma, wanted.sigma)
    less = painter.levels(settled(painter, steps=6, discard_penultimate=True))
    assert torch.equal(less.sigma, levels(table, 6, discard_penultimate=True).sigma)
    with pytest.raises(InputError, match="sigma_min"):
        settled(painter, spacing="leading", sigma_min=0.1)
    with pytest.raises(InputError, match="sigma_max"):
        settled(painter, spacing="karras", sigma_min=3.0, sigma_max=2.0)


def test_old_timelines_and_commas_are_knobs():
    painter = tiny_painter()
    knobs = {"dialect": "a1111", "steps": 6}

    def seen(prompt, **more):
        return painted(painter, (prompt, 3), **knobs, **more)[0].pixels

    edited = "[a red circle:two big blue squares:2.0]"
    old, new = seen(edited, old_timelines=True), seen(edited)
    assert np.array_equal(old, seen(edited.replace("2.0", "2")))  # a step then, twice the run now
    assert np.array_equal(new, seen("a red circle")) and not np.array_equal(old, new)
    words = "a red circle, two big blue squares"  # the window ends among the words behind the comma
    assert not np.array_equal(seen(words, windows=2), seen(words, windows=2, comma_backtrack=0))
    assert np.array_equal(seen(words, windows=2), seen("a red circle, BREAK two big blue squares", windows=2))


def test_a_sampler_that_finds_its_steps_as_it_goes_says_so():
    """No total is promised, steps are counted, and each picture is painted alone: it has its own steps."""
    painter = tiny_painter(schedule="scaled_linear", zero=False)
    knobs = {"sampler": "DPM adaptive", "upscale": 1.5}
    events = list(painter.paint(requests(RED, (WORDS[1], 4), **knobs), trace=True))
    assert [e.total for e in events if isinstance(e, Started)] == [None, None]
    for i, one in enumerate((RED, (WORDS[1], 4))):
        told = [e for e in events if isinstance(e, Progress) and e.id == str(i)]
        assert [e.step for e in told] == list(range(1, len(told) + 1)) and {e.total for e in told} == {None}
        (done,) = [e.artifact for e in events if isinstance(e, Done) and e.id == str(i)]
        assert np.array_equal(done.pixels, painted(painter, one, **knobs)[0].pixels)
        assert len(done.trace) == len(told) + 2 and done.provenance.batch == 1
    total, told, _ = story(painter, requests(RED, sampler="DPM fast", steps=7)[0])
    assert total == 7 and [e.step for e in told] == [3, 6, 7]  # estimates, of which there are as many as steps


@needs_diffusers
def test_latent_consistency_is_diffusers():
    """Its own scheduler with the boundary condition, over a network that predicts noise, step by step to 1e-6."""
    from diffusers import LCMScheduler

    seed, draw = fresh()
    painter = tiny_painter(prediction="epsilon", schedule="scaled_linear", dtype=torch.float64)
    table, steps = painter.parts.denoiser.table.double(), int(torch.randint(1, 9, (1,), generator=draw))
    weight = torch.randn(36, 36, generator=draw, dtype=torch.float64) / 6

    def network(x, ratio):
        return torch.tanh(x.flatten(1) @ weight + ratio / (1 + ratio)).reshape(x.shape)

    def estimate(x, level, step):
        return (x - level.sigma * network(x, float(level.ratio))) / level.alpha

    sample = x = torch.randn(2, 4, 3, 3, generator=draw, dtype=torch.float64)
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012)
    scheduler.alphas_cumprod = table
    scheduler.set_timesteps(steps, original_inference_steps=50)
    knobs = settled(painter, sampler="lcm", spacing="lcm", steps=steps, latent_consistency=True)
    run, theirs, mine = painter.levels(knobs), *(torch.Generator().manual_seed(seed) for _ in range(2))
    walk = painter.sampler(knobs)(
        estimate, x, run, lambda here, there: torch.randn(x.shape, generator=mine, dtype=torch.float64)
    )
    for i, (t, step) in enumerate(zip(scheduler.timesteps, walk, strict=True)):
        said = scheduler.step(network(sample, float(run.ratios[i])), int(t), sample, generator=theirs)
        sample = said.prev_sample
        torch.testing.assert_close(step.clean, said.denoised, rtol=1e-6, atol=1e-6, msg=lambda m: f"seed {seed}: {m}")
        torch.testing.assert_close(step.x, sample, rtol=1e-6, atol=1e-6, msg=lambda m: f"seed {seed}: {m}")


def test_latent_consistency_wants_a_model_it_is_defined_for():
    with pytest.raises(InputError, match="latent_consistency"):
        settled(tiny_painter(), sampler="lcm", spacing="lcm", latent_consistency=True)  # its table ends in pure noise
    settled(tiny_painter(), sampler="euler", latent_consistency=True)  # of no concern to others


# -- files ------------------------------------------------------------------------------------------------------------------

SAID = {
    "Sigma churn": ("s_churn", 2.5), "Sigma tmin": ("s_tmin", 0.2), "Sigma tmax": ("s_tmax", 9.0),
    "Sigma noise": ("s_noise", 1.05), "Schedule max sigma": ("sigma_max", 10.0), "Schedule min sigma": ("sigma_min", 0.1),
    "Schedule rho": ("rho", 5.0), "Discard penultimate sigma": ("discard_penultimate", True), "UniPC order": ("order", 2),
    "UniPC lower order final": ("lower_order_final", False), "Old prompt editing timelines": ("old_timelines", True),
    "Comma backtrack": ("comma_backtrack", 0), "Latent consistency": ("latent_consistency", True),
}  # fmt: skip


LINE = "Steps: 4, CFG scale: 7, Seed: 1, Size: 16x16, Model: m"


def test_files_say_them_and_are_followed():
    knobs = DiffusionKnobs(sampler="unipc", **dict(SAID.values())).model_dump()
    said = parse_infotext(infotext(provenance(knobs, size=(16, 16))))
    assert {key for key in SAID if key in said.settings} == set(SAID)
    taken = like(said, DiffusionKnobs, CAN)
    assert not taken.notes and taken.knobs.items() >= dict(SAID.values()).items()
    plain = parse_infotext(infotext(provenance(DiffusionKnobs(sampler="unipc").model_dump())))
    assert not plain.settings.keys() & {*SAID, "Seeds", "Order", "ENSD", "Seed resize from", "UniPC variant"}
    spoilt = like(parse_infotext(f"a\n{LINE}, Sampler: UniPC, UniPC lower order final: perhaps"), DiffusionKnobs, CAN)
    assert [note.key for note in spoilt.notes] == ["UniPC lower order final"]


@pytest.mark.parametrize(
    ("more", "sampler", "spacing"),
    [
        ("", "unipc", "time_uniform"),
        (", UniPC variant: bh2", "unipc_bh2", "time_uniform"),
        (", UniPC skip type: logSNR", "unipc", "log_snr"),
        (", UniPC variant: bh2, UniPC skip type: time_quadratic, UniPC order: 2", "unipc_bh2", "time_quadratic"),
        (", Schedule type: Karras", "unipc", "karras"),
    ],
)
def test_unipcs_variant_is_a_sampler_and_its_skip_type_a_spacing(more, sampler, spacing):
    taken = like(parse_infotext(f"a\n{LINE}, Sampler: UniPC{more}"), DiffusionKnobs, CAN)
    assert (taken.knobs["sampler"], taken.knobs["spacing"]) == (sampler, spacing) and not taken.notes
    again = parse_infotext(infotext(provenance(DiffusionKnobs(**taken.knobs).model_dump())))
    assert again.settings["Sampler"] == "UniPC" and like(again, DiffusionKnobs, CAN).knobs["sampler"] == sampler


def test_what_unipc_lacks_is_said_and_lcm_has_its_own_estimate():
    taken = like(parse_infotext(f"a\n{LINE}, Sampler: UniPC, UniPC variant: vary_coeff"), DiffusionKnobs, CAN)
    assert taken.knobs["sampler"] == "unipc" and [note.key for note in taken.notes] == ["UniPC variant"]
    taken = like(parse_infotext(f"a\n{LINE}, Sampler: LCM"), DiffusionKnobs, CAN)
    assert taken.knobs["latent_consistency"] is True and taken.knobs["spacing"] == "lcm_webui"


def test_truth_values_are_flags_of_the_command_line(tiny_runs, tmp_path):
    flags = ("--sampler", "unipc", "--lower-order-final", "false", "--order", "2", "--steps", "3", "--seed", "1")
    result = CliRunner().invoke(cli, ["paint", "a", "-m", str(tiny_runs["diffusion"]), "-o", str(tmp_path), *flags])
    assert result.exit_code == 0, result.output
    adaptive = ["paint", "a", "-n", "2", "-m", str(tiny_runs["diffusion"]), "-o", str(tmp_path), "--sampler", "dpm adaptive"]
    assert CliRunner().invoke(cli, adaptive).exit_code == 0
    knobs = read_provenance(tmp_path / "00000.png").knobs
    assert knobs["lower_order_final"] is False and knobs["order"] == 2
