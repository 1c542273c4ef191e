"""The training room: a run is a function of its recipe and data, whatever happens to the processes that carry it out."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import training_toys as toys
import training_two
from giverny.base.contracts import Batch, Condition
from giverny.base.errors import InputError
from giverny.base.table import level_of
from giverny.sampling.schedules import ScheduleRecipe
from giverny.training import state
from giverny.training.denoise import DenoiseObjective, DenoiseRecipe
from giverny.training.log import RunLog, read_log
from giverny.training.loop import LoopRecipe, Trainer
from giverny.training.plan import Plan
from giverny.training.streams import StepStreams


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads: processes that are compared must have the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl read strictly, but for what the clock says."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time/step"} for line in lines]


# -- resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", toys.KINDS)
def test_ten_steps_are_five_and_resume_and_five(kind: str, accumulate: int, tmp_path: Path) -> None:
    whole = toys.trainer(kind, tmp_path / "whole", dropout=0.2, accumulate=accumulate)
    expected = toys.finish(whole)
    assert any(isinstance(m, nn.Dropout) and m.p for n in whole.objective.modules.values() for m in n.modules())
    assert {k.split(".")[0] for k in expected} == {"net", "ema", "opt"}

    first = toys.trainer(kind, tmp_path / "parts", dropout=0.2, accumulate=accumulate, save_every=4)
    reports = first.run()
    assert [next(reports).step for _ in range(5)] == [1, 2, 3, 4, 5]
    reports.close()
    assert not same(toys.tensors(first), expected)
    second = toys.trainer(kind, tmp_path / "parts", resume=True, dropout=0.2, accumulate=accumulate, save_every=5)
    assert same(toys.finish(second), expected)
    steps = [r["step"] for r in records(tmp_path / "parts")]
    assert steps == list(range(1, 11))
    train = [{k: v for k, v in r.items() if k.startswith("train/")} for r in records(tmp_path / "parts")]
    assert train == [{k: v for k, v in r.items() if k.startswith("train/")} for r in records(tmp_path / "whole")]


def test_a_run_does_not_depend_on_the_callers_random_numbers_and_leaves_them_alone(tmp_path: Path) -> None:
    first = toys.trainer("denoise", tmp_path / "a", dropout=0.2, steps=3)
    before = torch.get_rng_state()
    expected = toys.finish(first)
    assert torch.equal(torch.get_rng_state(), before)
    second = toys.trainer("denoise", tmp_path / "b", dropout=0.2, steps=3)
    for _ in second.run():
        torch.rand(3)
    assert same(toys.tensors(second), expected)


def test_dropout_differs_from_step_to_step(tmp_path: Path) -> None:
    """Seeding it for resume must not make it the same mask every time."""
    seen: list[Tensor] = []
    made = toys.trainer("adversarial", tmp_path, dropout=0.5, steps=4)
    layer = next(m for m in made.objective.modules["critic"].modules() if isinstance(m, nn.Dropout))
    layer.register_forward_hook(lambda module, given, out: seen.append((out == 0) & (given[0] != 0)))
    toys.finish(made)
    assert len(seen) > 4 and all(not torch.equal(a, b) for a, b in zip(seen, seen[1:], strict=False))


def test_ctrl_c_inside_a_step_is_heard_after_it_with_everything_saved(tmp_path: Path) -> None:
    expected = toys.finish(_slope(tmp_path / "whole"))

    def press(step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = _slope(tmp_path / "parts", toys.Slope(press))
    with pytest.raises(KeyboardInterrupt):
        for _ in stopped.run():
            pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    found = state.read_latest(tmp_path / "parts" / "state")
    assert found is not None and found[1].step == stopped.counters.step == 5
    assert same(toys.finish(_slope(tmp_path / "parts", resume=True)), expected)


def test_an_error_between_two_turns_leaves_no_half_step_on_disk(tmp_path: Path) -> None:
    """The critic has moved and the generator has not: such weights are no step of any run."""
    whole = toys.finish(toys.trainer("adversarial", tmp_path / "whole"))
    for call, turn, kept in ((7, "critic", 4), (5, "generator", 5)):  # two turns and one in turn: steps 4 and 6
        made = toys.trainer("adversarial", tmp_path, resume=True, save_every=5)
        losses, calls = made.objective.loss, []

        def fail(turn: str, *rest: Any, losses: Any = losses, calls: list[str] = calls, call: int = call) -> dict[str, Tensor]:
            calls.append(turn)
            if len(calls) == call:
                raise RuntimeError("a bad day")
            return losses(turn, *rest)

        made.objective.loss = fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="a bad day"):
            toys.finish(made)
        found = state.read_latest(tmp_path / "state")
        assert calls[-1] == turn and found is not None and found[1].step == kept
        assert made.counters.step == {"critic": 4, "generator": 6}[turn]
    assert same(toys.finish(toys.trainer("adversarial", tmp_path, resume=True)), whole)


def _slope(folder: Path, objective: toys.Slope | None = None, resume: bool = False, **changes: Any) -> Trainer:
    made = objective or toys.Slope()
    more = {k: changes.pop(k) for k in ("budget", "clock", "spent", "batches") if k in changes}
    stream = more.pop("batches", toys.batches())
    return Trainer(made, stream, toys.loop(**changes), folder, toys.batch_at(100), resume=resume, identity="slope", **more)


# -- being killed ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forks() -> Any:
    """Processes that have torch loaded already and no threads of the test run's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_toys"])
    return context


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unkilled")
    found = toys.finish(toys.trainer("adversarial", folder, dropout=0.2, steps=12, save_every=3))
    torch.set_num_threads(before)
    return found, records(folder)


DEATHS = [(place, seed) for place in ("write", "rename", "log", "step") for seed in range(3)]


@pytest.mark.xdist_group("killed")
@pytest.mark.parametrize(("place", "seed"), [pytest.param(p, s, marks=[pytest.mark.slow] if s else []) for p, s in DEATHS])
def test_a_killed_run_resumes_as_if_nothing_had_happened(
    place: str, seed: int, tmp_path: Path, forks: Any, unkilled: tuple[dict[str, Tensor], list[dict[str, Any]]]
) -> None:
    most = {"write": 4, "rename": 4, "log": 12, "step": 18}[place]  # states, lines and optimiser steps of the run
    count = random.Random(f"{place} {seed}").randint(1, most)
    child = forks.Process(target=toys.die, args=(place, count, str(tmp_path)))
    child.start()
    child.join(600)
    assert child.exitcode == -signal.SIGKILL
    left = list((tmp_path / "state").glob(".*.part"))
    assert bool(left) == (place in ("write", "rename"))
    if place == "log":
        assert not (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    found = toys.finish(toys.trainer("adversarial", tmp_path, resume=True, dropout=0.2, steps=12, save_every=3))
    assert same(found, unkilled[0])
    assert records(tmp_path) == unkilled[1]
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == [
        "state-00000009.safetensors", "state-00000012.safetensors"
    ]  # fmt: skip


def test_a_damaged_state_is_passed_over_for_the_one_before_it(tmp_path: Path) -> None:
    expected = toys.finish(_slope(tmp_path))
    (tmp_path / "state" / "state-00000010.safetensors").write_bytes(b"\x10" * 100)
    again = _slope(tmp_path, resume=True)
    assert next(again.run()).step == 6
    assert same(toys.finish(_slope(tmp_path, resume=True)), expected)
    for path in (tmp_path / "state").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="readable state"):
        toys.finish(_slope(tmp_path, resume=True))


def test_states_of_networks_that_share_tensors_come_back(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    plan = Plan.of_steps(1, None)
    state.write(tmp_path, state.collect({"tied": tied}, {}, {}), state.Counters(plan=plan, precision="float32"))
    found = state.read_latest(tmp_path)
    assert found is not None and torch.equal(found[0]["net.tied.1.weight"], tied[0].weight)


# -- another recipe, other steps --------------------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_neither_overwritten_nor_taken_for_another(tmp_path: Path) -> None:
    toys.finish(_slope(tmp_path))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for refused, words in (
        (_slope(tmp_path), "holds a run"),
        (_slope(tmp_path, resume=True, learning_rate=0.5), "holds a run of another"),
        (_slope(tmp_path, resume=True, batch=16), "holds a run of another"),
        (_slope(tmp_path, resume=True, steps=9), "10 steps or more"),
    ):
        with pytest.raises(InputError, match=words):
            toys.finish(refused)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    toys.finish(_slope(tmp_path, resume=True, log_every=3, save_every=2, preview_every=7))  # of no weight


def test_a_run_may_be_trained_longer_its_rate_as_if_planned_from_the_start(tmp_path: Path) -> None:
    toys.finish(_slope(tmp_path, steps=10, warmup=0))
    toys.finish(_slope(tmp_path, steps=20, warmup=0, resume=True))
    rates = [r["train/rate"] for r in records(tmp_path)]
    cosine = [0.5 * (1 + math.cos(math.pi * s / n)) for n, steps in ((10, range(10)), (20, range(10, 20))) for s in steps]
    assert rates == pytest.approx(cosine)


def test_neither_steps_nor_budget_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="time budget"):
        toys.finish(_slope(tmp_path, steps=None))
    assert not (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(InputError, match="divisible"):
        _slope(tmp_path, accumulate=3)


# -- several processes, several parts ---------------------------------------------------------------------------------------


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of the trainings in training_two.py."""
    out = tmp_path_factory.mktemp("two")
    script = Path(training_two.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.xdist_group("two")
@pytest.mark.parametrize("kind", training_two.PAIRED)
def test_two_processes_equal_one_with_the_same_global_batch(kind: str, two: Path, tmp_path: Path) -> None:
    one = training_two.train(kind, tmp_path)
    leader, other = (torch.load(two / f"{kind}-{rank}.pt") for rank in (0, 1))
    assert one["net." + {"contrast": "clip.logit_scale"}.get(kind, next(iter(one))[4:])].dtype == torch.float64
    assert far(one, leader) < 1e-5
    assert same(leader, other)


@pytest.mark.xdist_group("two")
def test_a_whole_family_trains_in_two_processes(two: Path, tmp_path: Path) -> None:
    one = training_two.family(tmp_path)
    leader, other = (torch.load(two / f"family-{rank}.pt") for rank in (0, 1))
    assert same(leader, other)
    assert far(one, leader) < 0.03  # float32, and latents kept in half precision between the stages


@pytest.mark.xdist_group("two")
def test_running_statistics_are_the_leaders_in_every_process(two: Path) -> None:
    """Each process sees other rows: without sharing, what is saved would be no process's but the leader's."""
    leader, other = (torch.load(two / f"adversarial-{rank}.pt") for rank in (0, 1))
    assert "net.generator.1.running_mean" in leader and same(leader, other)


@pytest.mark.xdist_group("two")
def test_processes_skip_together_and_keep_one_plan(two: Path, tmp_path: Path) -> None:
    leader, other = (torch.load(two / f"skip-{rank}.pt") for rank in (0, 1))
    assert same(leader, other) and all(bool(v.isfinite().all()) for v in leader.values())
    assert torch.equal(leader["net.line.idle"], torch.ones(2, 2))
    counters = state.read_counters(two / "skip" / "state")
    assert counters is not None and counters.skipped == 1
    ours, theirs = (torch.load(two / f"plan-{rank}.pt") for rank in (0, 1))
    assert ours["steps"] == theirs["steps"] and abs(float(ours["seconds"]) - 60) <= 3


@pytest.mark.parametrize("kind", ["denoise", "reconstruct"])
def test_two_parts_of_a_batch_equal_the_whole(kind: str, tmp_path: Path) -> None:
    whole = training_two.train(kind, tmp_path / "1")
    assert far(whole, training_two.train(kind, tmp_path / "2", accumulate=2)) < 1e-6


# -- the clock --------------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when work is done: `pace(step, now)` seconds per gradient, `pause` per validation."""

    def __init__(self, pace: Callable[[int, float], float], pause: float = 0.0, start: float = 0.0) -> None:
        self.pace, self.pause, self.now = pace, pause, start

    def __call__(self) -> float:
        return self.now

    def objective(self) -> toys.Slope:
        def work(step: int) -> None:
            self.now += self.pace(step, self.now)

        def look() -> None:
            self.now += self.pause

        return toys.Slope(work, look)


def noisy(step: int, now: float) -> float:
    return 2.0 * 2 ** random.Random(step).uniform(-1, 1)


PACES: dict[str, Callable[[int, float], float]] = {
    "steady": lambda step, now: 2.0,
    "twice as slow half way": lambda step, now: 2.0 if now < 300 else 4.0,
    "twice as fast half way": lambda step, now: 2.0 if now < 300 else 1.0,
    "twice as slow near the end": lambda step, now: 2.0 if now < 530 else 4.0,
    "noisy": noisy,
    "slow to start": lambda step, now: 12.0 if now < 60 else 1.5,
    "swinging": lambda step, now: 2.0 * 2 ** math.sin(now / 40),
    "a stall": lambda step, now: 40.0 if 200 < now < 230 else 2.0,
}


@pytest.mark.parametrize("pause", [0.0, 5.0])
@pytest.mark.parametrize("name", PACES)
def test_a_budget_is_kept_on_machines_that_drift(name: str, pause: float, tmp_path: Path) -> None:
    clock = Clock(PACES[name], pause)
    made = _slope(tmp_path, clock.objective(), steps=None, budget=600.0, clock=clock)
    reports = list(made.run())
    assert abs(clock.now - 600) <= 0.05 * 600
    half = min(reports, key=lambda r: abs(r.seconds - 300)).values["rate"]
    assert 0.25 < half < 0.75  # the rate falls with the time, not with a first guess of the steps
    assert reports[-1].step == reports[-1].total == made.counters.step
    rates = [r.values["rate"] for r in reports[5:]]
    assert all(b <= a for a, b in zip(rates, rates[1:], strict=False)) and rates[-1] < 0.05


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_keeps_any_budget_within_its_last_steps(seed: int) -> None:
    """The plan alone, with what the loop tells it: wild machines, cheap and dear states, wrong first guesses."""
    chance = random.Random(seed)
    base, pause = 10 ** chance.uniform(-2, 0), chance.choice([0, 1, 10])
    period, swing = chance.uniform(50, 2000), chance.uniform(0, 1)
    budget, now, step, looked = 600.0, 0.0, 0, 0
    plan = Plan.of_budget(budget, 0.0, base * 10 ** chance.uniform(-1, 1), None)
    while step < plan.total:
        took = base * 2 ** (swing * math.sin(now / period) + chance.uniform(-1, 1))
        now, step = now + took, step + 1
        plan = plan.timed(step, took)
        plan = plan.corrected(step, now, None) if plan.is_due(step, now) else plan
        if step >= looked + plan.save_every or step >= plan.total:
            now, looked, plan = now + pause, step, plan.paused(pause)
    assert abs(now - budget) <= 0.05 * budget
    assert step * base > 0.3 * budget  # pauses did not eat the time


def test_a_plan_belongs_to_the_state_and_a_resumed_run_follows_it(tmp_path: Path) -> None:
    """With a clock that says the same at the same steps, a stopped run ends where the other does, bit for bit."""
    clock = Clock(lambda step, now: 2.0 + (step % 3), 1.0)
    whole = _slope(tmp_path / "whole", clock.objective(), steps=None, budget=120.0, clock=clock)
    expected, plans = toys.finish(whole), whole.counters.plan
    for stops in ([7], [3, 20, 24]):
        folder = tmp_path / str(len(stops))
        for stop in stops:
            clock = Clock(lambda step, now: 2.0 + (step % 3), 1.0, start=1e6)
            part = _slope(folder, clock.objective(), resume=True, steps=None, budget=120.0, clock=clock)
            reports = part.run()
            while next(reports).step < stop:
                pass
            reports.close()
            kept = state.read_counters(folder / "state")
            assert kept is not None and kept.plan == part.counters.plan and kept.step == stop
        last = _slope(folder, clock.objective(), resume=True, steps=None, clock=clock)  # the budget is known by now
        assert same(toys.finish(last), expected)
        assert last.counters.plan == plans
        assert [r["train/rate"] for r in records(folder)] == [r["train/rate"] for r in records(tmp_path / "whole")]


def test_a_measured_plan_is_kept_before_the_first_step(tmp_path: Path) -> None:
    clock = Clock(lambda step, now: 1.0)
    reports = _slope(tmp_path, clock.objective(), steps=None, budget=50.0, clock=clock, spent=10.0).run()
    next(reports)
    first = state.read_counters(tmp_path / "state")
    assert first is not None and first.step == 0 and first.plan.budget == 50.0
    assert first.seconds == 13.0  # ten spent on preparing, three on calibrating
    reports.close()


def test_another_budget_makes_another_plan_at_once(tmp_path: Path) -> None:
    clock = Clock(lambda step, now: 1.0)
    reports = _slope(tmp_path, clock.objective(), steps=None, budget=50.0, clock=clock).run()
    while next(reports).step < 20:
        pass
    reports.close()
    clock.now = 0.0
    more = _slope(tmp_path, clock.objective(), resume=True, steps=None, budget=100.0, clock=clock)
    found = list(more.run())
    assert found[0].step == 21 and abs(more.counters.seconds - 100) <= 5
    assert found[0].values["rate"] > 0.8  # a quarter of the run is behind it, no longer half


@pytest.mark.slow
def test_twenty_seconds_by_a_real_clock(tmp_path: Path) -> None:
    made = toys.objective("denoise")
    run = Trainer(made, toys.batches(), toys.loop(steps=None), tmp_path, toys.batch_at(100), budget=20.0)
    began = run.clock()
    toys.finish(run)
    assert abs(run.clock() - began - 20) <= 1


def test_the_rate_rises_and_falls_as_written() -> None:
    recipe = LoopRecipe(steps=100, warmup=10, decay="cosine", decay_from=0.4)
    plan = Plan.of_steps(100, None)
    for step, expected in (
        (0, 0.1), (4, 0.5), (9, 1.0), (39, 1.0), (40, 1.0),
        (55, 0.5 * (1 + math.cos(math.pi * 0.25))), (70, 0.5), (99, 0.5 * (1 + math.cos(math.pi * 59 / 60))),
    ):  # fmt: skip
        assert recipe.rate(step, plan.progress(step)) == pytest.approx(expected)
    linear = LoopRecipe(steps=100, warmup=0, decay="linear")
    assert [linear.rate(s, plan.progress(s)) for s in (0, 25, 99)] == pytest.approx([1.0, 0.75, 0.01])
    constant = LoopRecipe(steps=100, warmup=4, decay="constant")
    assert [constant.rate(s, plan.progress(s)) for s in (0, 1, 50)] == pytest.approx([0.25, 0.5, 1.0])


# -- the guard --------------------------------------------------------------------------------------------------------------


def _with_nan(steps: Callable[[int], bool]) -> Callable[[int], Iterator[Batch]]:
    def stream(start: int) -> Iterator[Batch]:
        for i, batch in enumerate(toys.batches()(start), start):
            yield {**batch, "pixels": batch["pixels"] * math.nan, "latents": batch["latents"] * math.nan} if steps(i) else batch

    return stream


@pytest.mark.parametrize("kind", toys.KINDS)
def test_a_batch_that_is_not_finite_moves_nothing(kind: str, tmp_path: Path) -> None:
    made = toys.trainer(kind, tmp_path, steps=6)
    made.batches = _with_nan(lambda step: step in (2, 3))
    kept: list[dict[str, Tensor]] = []
    for report in made.run():
        kept.append(toys.tensors(made))
        assert report.values["skipped"] == (report.step in (3, 4))
    assert same(kept[1], kept[2]) and same(kept[2], kept[3])
    assert not same(kept[3], kept[4])
    assert all(bool(v.isfinite().all()) for v in kept[-1].values() if v.is_floating_point())
    assert made.counters.skipped == 2
    assert not any(k.endswith("loss") for k in records(tmp_path)[2]) and all("NaN" not in str(r) for r in records(tmp_path))


def test_twenty_bad_updates_in_a_row_stop_the_run_with_the_good_weights_kept(tmp_path: Path) -> None:
    made = _slope(tmp_path, steps=100, save_every=4, batches=_with_nan(lambda step: step >= 6))
    kept = {}
    with pytest.raises(InputError, match=r"finite losses.*20 updates in a row up to step 26"):
        for report in made.run():
            kept[report.step] = toys.tensors(made)
    found = state.read_latest(tmp_path / "state")
    assert found is not None and state.finite(found[0]) and same(found[0], kept[6])
    again = _slope(tmp_path, steps=100, save_every=4, resume=True)  # the data is mended: it goes on
    assert next(again.run()).values["skipped"] == 0


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    objective = toys.Slope()
    made = _slope(tmp_path, objective, save_every=2, steps=8)
    with pytest.raises(InputError, match=r"finite weights.*step 4.*step 2 is the last good"):
        for report in made.run():
            if report.step == 3:
                made.averages["line"]["weight"][0, 0] = math.inf
    found = state.read_latest(tmp_path / "state")
    assert found is not None and found[1].step == 2 and state.finite(found[0])


# -- precision --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wide", "narrow", "expected"), [(2.0, 1.0, "bfloat16"), (1.0, 1.0, "float32"), (1.0, 2.0, "float32")])
def test_the_precision_that_measures_faster_is_taken_and_kept(
    wide: float, narrow: float, expected: str, tmp_path: Path
) -> None:
    clock = Clock(lambda step, now: narrow if torch.is_autocast_enabled("cpu") else wide)
    before = toys.tensors(made := _slope(tmp_path, clock.objective(), precision="auto", clock=clock, steps=4))
    reports = made.run()
    next(reports)
    assert made.counters.precision == expected
    kept = state.read_latest(tmp_path / "state")
    assert kept is not None and kept[1].precision == expected and same(kept[0], before)  # measuring moved nothing
    reports.close()
    clock.pace = lambda step, now: 1.0
    again = _slope(tmp_path, clock.objective(), precision="auto", clock=clock, steps=4, resume=True)
    toys.finish(again)
    assert again.counters.precision == expected


def test_measuring_leaves_running_statistics_alone(tmp_path: Path) -> None:
    expected = toys.finish(toys.trainer("adversarial", tmp_path / "a", steps=3))
    measured = toys.trainer("adversarial", tmp_path / "b", steps=3, precision="auto")
    measured.clock = lambda: 0.0
    assert same(toys.finish(measured), expected)


@pytest.mark.parametrize("kind", toys.KINDS)
def test_bfloat16_trains(kind: str, tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()
    made = toys.trainer(kind, tmp_path, steps=30, learning_rate=5e-3, precision="bfloat16", warmup=0, decay="constant")
    for network in made.objective.modules.values():
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    losses = [r.values for r in made.run()]
    assert torch.bfloat16 in seen
    assert all(v.dtype != torch.bfloat16 for v in toys.tensors(made).values())
    if len(made.turns) == 1:
        assert sum(v["loss"] for v in losses[-5:]) < 0.9 * sum(v["loss"] for v in losses[:5])
        plain = toys.finish(toys.trainer(kind, tmp_path / "float32", steps=1, warmup=0))
        rough = toys.finish(toys.trainer(kind, tmp_path / "bfloat16", steps=1, warmup=0, precision="bfloat16"))
        assert far(plain, rough) > 0


def test_a_second_order_turn_is_computed_in_full_precision(tmp_path: Path) -> None:
    seen: dict[str, bool] = {}
    made = toys.trainer("adversarial", tmp_path, steps=1, precision="bfloat16")
    losses = made.objective.loss

    def watch(turn: str, *rest: Any) -> dict[str, Tensor]:
        seen[turn] = torch.is_autocast_enabled("cpu")
        return losses(turn, *rest)

    made.objective.loss = watch  # type: ignore[method-assign]
    toys.finish(made)
    assert seen == {"critic": False, "generator": True}


@pytest.mark.parametrize("kind", toys.KINDS)
def test_float64_is_float64_everywhere(kind: str, tmp_path: Path) -> None:
    made = toys.trainer(kind, tmp_path, steps=2, precision="float64")
    if isinstance(made.objective, DenoiseObjective):
        made.objective.paint = lambda: made.objective.denoiser.conv_in.weight[:1, :3].expand(8, 3, 3, 3)  # type: ignore
    found = toys.finish(made)
    assert {v.dtype for k, v in found.items() if v.is_floating_point() and not k.endswith(".step")} == {torch.float64}
    resumed = toys.trainer(kind, tmp_path, steps=4, precision="float64", resume=True)
    assert next(resumed.run()).step == 3


# -- what is written down -----------------------------------------------------------------------------------------------------


def test_tensorboard_reads_back_what_the_json_lines_say(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stop in (7, 8, 3, 12):  # closed, resumed, resumed to a state before the last line, resumed
        made = _slope(tmp_path, resume=True, steps=12, save_every=4)
        if stop == 3:  # the run was killed after steps that no state knows of
            log = RunLog(tmp_path, (tmp_path / "metrics.jsonl").stat().st_size, 8)
            log.write(9, {"train/loss": 777.0})
            log.write(10, {"train/loss": 777.0})
            log.settle()
            log.close()
            (lost,) = tmp_path.glob("events.*.00000008")
            lost.rename(lost.with_suffix(".00000007-lost"))  # as if its second had passed
            continue
        reports = made.run()
        while made.counters.step < stop:
            next(reports)
        reports.close()
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    lines = read_log(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in lines] == list(range(1, 13))
    curves = {k for r in lines for k in r} - {"step"}
    assert curves == set(board.Tags()["scalars"]) and {"train/loss", "valid/error", "time/step"} <= curves
    for curve in curves:
        expected = [(r["step"], np.float32(r[curve])) for r in lines if curve in r]
        assert [(e.step, np.float32(e.value)) for e in board.Scalars(curve)] == expected


def test_validation_and_previews_come_when_they_are_due(tmp_path: Path) -> None:
    toys.finish(toys.trainer("reconstruct", tmp_path, steps=10, save_every=5, preview_every=3, log_every=4))
    lines = records(tmp_path)
    assert [r["step"] for r in lines] == [1, 4, 5, 8, 10]
    assert [r["step"] for r in lines if "valid/psnr" in r] == [5, 10]
    assert sorted(int(p.stem) for p in (tmp_path / "previews").iterdir()) == [3, 6, 9, 10]


def test_validation_sees_the_averaged_weights_and_always_the_same_noise(tmp_path: Path) -> None:
    made = toys.trainer("denoise", tmp_path, steps=4, save_every=2, learning_rate=1e-9, average=0.0)
    toys.finish(made)
    first, last = (r["valid/error"] for r in records(tmp_path) if "valid/error" in r)
    assert first == pytest.approx(last, rel=1e-5)
    objective = toys.Slope()
    seen: list[Tensor] = []
    objective.see = lambda: seen.append(objective.line.weight.detach().clone())
    made = _slope(tmp_path / "b", objective, steps=4, save_every=4)
    toys.finish(made)
    assert torch.equal(seen[0], made.averages["line"]["weight"])
    assert not torch.equal(seen[0], objective.line.weight)  # and they were put back


def test_a_log_leaves_out_a_torn_line_and_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    log = RunLog(tmp_path, keep_bytes=10**6)  # longer than the file: it must not be filled up with zeros
    log.write(1, {"train/loss": 0.5, "train/norm": math.inf})
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "trai')
    assert read_log(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 0.5}]
    assert read_log(tmp_path / "nothing.jsonl") == []


# -- the arithmetic ------------------------------------------------------------------------------------------------------


def test_updates_and_averages_follow_the_written_formulas(tmp_path: Path) -> None:
    """AdamW (Loshchilov and Hutter 2019) with clipping, the rate's curve, decay of matrices only, and the average."""
    recipe = toys.loop(
        steps=8, warmup=3, decay="linear", learning_rate=0.05, weight_decay=0.3, clip=0.4, betas=(0.8, 0.95), average=0.6,
        precision="float64",
    )  # fmt: skip
    made = Trainer(toys.Slope(), toys.batches(), recipe, tmp_path)
    line = nn.Linear(3, 2).double()
    line.load_state_dict({k: v for k, v in made.objective.modules["line"].state_dict().items() if k != "idle"})
    average = {k: v.detach().clone() for k, v in line.state_dict().items()}
    moments = {k: (torch.zeros_like(p), torch.zeros_like(p)) for k, p in line.named_parameters()}
    clipped = 0
    for step in range(8):
        line.zero_grad()
        x = toys.batch_at(step)["pixels"].double().mean((2, 3))
        noise = StepStreams(0, step, 0, 8, dtype=torch.float64).normal("noise", (8, 2))
        (line(x) - x[:, :2].flip(1) - 0.1 * noise).square().mean().backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in line.parameters() if p.grad is not None))
        clipped += norm > 0.4
        rate = 0.05 * min(1, (step + 1) / 3) * (1 - step / 8)
        with torch.no_grad():
            for name, p in line.named_parameters():
                assert p.grad is not None
                grad = p.grad * min(1.0, 0.4 / (norm + 1e-6))
                m, v = moments[name]
                m.mul_(0.8).add_(grad, alpha=0.2)
                v.mul_(0.95).add_(grad.square(), alpha=0.05)
                p.mul_(1 - rate * (0.3 if name == "weight" else 0.0))
                p.sub_(rate * (m / (1 - 0.8 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
                decay = min(0.6, (1 + step) / (10 + step))
                average[name] = decay * average[name] + (1 - decay) * p
    assert clipped > 0  # or the test would not see it
    toys.finish(made)
    assert torch.equal(made.objective.modules["line"].state_dict()["idle"], torch.ones(2, 2).double())
    for name, p in line.named_parameters():
        assert torch.allclose(made.objective.modules["line"].state_dict()[name], p, rtol=0, atol=1e-10)
        assert torch.allclose(made.averages["line"][name], average[name], rtol=0, atol=1e-10)


class Silent(nn.Module):
    """Predicts 0, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.told = nn.Parameter(torch.zeros(1)), []

    def prepare(self, condition: Condition) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, prepared: Any) -> Tensor:
        self.told.append((x.detach(), t))
        return x * self.weight


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_the_denoising_loss_is_the_weighted_error_of_the_papers(prediction: Any, gamma: float | None) -> None:
    """Hang et al. 2023: min(SNR, gamma) in units of the sample, divided by SNR for noise and by SNR + 1 for velocity."""
    table = ScheduleRecipe(kind="linear").table()
    network = Silent().double()
    objective = DenoiseObjective(network, table, DenoiseRecipe(prediction=prediction, min_snr_gamma=gamma))
    batch = {"latents": toys.shapes()[0][:16].double()}
    streams = StepStreams(3, 4, 0, 16, dtype=torch.float64)
    found = objective.loss("denoiser", batch, {}, streams)
    noise = streams.normal("noise", batch["latents"].shape)
    (x, t), total, plain = network.told[0], 0.0, 0.0
    assert len(set((t // (len(table) / 16)).tolist())) == 16  # one time in each sixteenth of the table
    for i in range(16):
        level = level_of(table, t[i])
        a, s = float(level.alpha), float(level.sigma)
        clean = batch["latents"][i]
        assert torch.allclose(x[i], a * clean + s * noise[i])
        wanted = {"epsilon": noise[i], "v": a * noise[i] - s * clean, "sample": clean}[prediction]
        snr = (a / s) ** 2
        weight = 1.0 if gamma is None else min(snr, gamma) / {"epsilon": snr, "v": snr + 1, "sample": 1.0}[prediction]
        plain += float(wanted.square().mean()) / 16
        total += weight * float(wanted.square().mean()) / 16
    assert found["loss"].item() == pytest.approx(total, rel=1e-9)
    assert float(found["error"]) == pytest.approx(plain, rel=1e-9)


def test_captions_are_dropped_as_often_as_asked_and_never_in_validation() -> None:
    told: list[str] = []

    def condition(texts: Any) -> Condition:
        told.extend(texts)
        return Condition()

    objective = DenoiseObjective(Silent(), ScheduleRecipe().table(), DenoiseRecipe(caption_dropout=0.2), condition)
    batch = {"latents": torch.zeros(2000, 1, 1, 1), "captions": ["a word"] * 2000}
    objective.loss("denoiser", batch, {}, StepStreams(0, 0, 0, 2000))
    assert abs(told.count("") / 2000 - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 2000)
    told.clear()
    objective.validate(batch, StepStreams(0, 0, 0, 2000))
    assert "" not in told


def test_draws_depend_on_seed_step_and_name_only_and_shares_make_up_the_whole() -> None:
    def draws(seed: int = 1, step: int = 2, name: str = "noise", first: int = 0, rows: int = 12) -> list[Tensor]:
        streams = StepStreams(seed, step, first, 12)
        shape = (rows, 3, 2)
        return [streams.normal(name, shape), streams.uniform(name, shape), streams.spread(name, rows)]

    whole = draws()
    StepStreams(1, 2, 0, 12).normal("another", (12, 5))
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(whole, draws(), strict=True))
    for other in (draws(seed=2), draws(step=3), draws(name="time")):
        assert not any(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    shares = [draws(first=0, rows=4), draws(first=4, rows=4), draws(first=8, rows=4)]
    assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*shares, strict=True), strict=True))
    places = (whole[2] * 12).floor()
    assert len(places.unique()) == 12 and not torch.equal(places.sort().values, places)  # evenly spread, in no order
    many = torch.cat([StepStreams(0, s, 0, 500).normal("noise", (500, 4)) for s in range(5)])
    assert abs(float(many.mean())) < 0.05 and abs(float(many.std()) - 1) < 0.05


# -- not a diffusion loop -----------------------------------------------------------------------------------------------------


def test_a_gan_learns_toy_shapes_in_the_same_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    objective = toys.gan(generator_every=1, r1=0.0)
    recipe = toys.loop(steps=150, batch=32, warmup=10, learning_rate=2e-3, save_every=50, decay="constant", average=0.9)
    run = Trainer(objective, toys.batches(batch=32), recipe, tmp_path, toys.batch_at(0, batch=64))
    with torch.no_grad():
        start = objective.validate(toys.batch_at(0, batch=64), StepStreams(0, 0, 0, 64))
    toys.finish(run)
    end = [r for r in records(tmp_path) if "valid/mean_gap" in r][-1]
    assert end["valid/mean_gap"] < 0.5 * float(start["mean_gap"])
    assert end["valid/spread_gap"] < 0.7 * float(start["spread_gap"])
    assert {"train/critic.loss", "train/generator.loss"} <= end.keys()
