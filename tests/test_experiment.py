"""The engine of experiments, with plain arithmetic as training: what is shared, what is kept, what is said, and SIGKILL."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from giverny.base.contracts import Score
from giverny.base.errors import InputError, choose
from giverny.base.files import atomic_write, sha256_file
from giverny.base.recipe import override
from giverny.compare import experiment
from giverny.compare.cells import Cell, ExperimentRecipe, Table, cells, read_experiment
from giverny.compare.experiment import Ended, Finished, Planned, Settled, Told, Working, run_experiment, survey
from giverny.compare.units import Unable, Units

BASE = """
title = "Two rates"
question = "Does a higher rate climb higher?"
recipe = "toy"
budget = 4
seeds = [0, 1, 2]
prompts = ["a", "bb"]
pictures = 3
measure = ["height"]
primary = "height"
better = "higher"
"""
RATE = """
[[axis]]
name = "rate"
values.one = []
values.two = ["rate=2"]
"""
SCALE = """
[[axis]]
name = "scale"
values.small = { knobs = ["scale=1"] }
values.large = { knobs = ["scale=3"] }
"""
HALF = """
[[control]]
name = "half the time"
share = 0.5
"""
MOMENTS = {"open", "os.rename", "os.remove", "os.mkdir"}  # at which a process is killed, just before the thing is done


class Toy:
    """An atelier whose model is a number that climbs, whose pictures are that number with noise, and that notes all it does.

    A training that is to burn raises at that step; `rest` is slept after every action.
    """

    def __init__(self, log: Path, rest: float = 0.0) -> None:
        self.log, self.rest = log, rest
        self.defaults: dict[str, Any] = {"rate": 1.0, "noise": 0.1, "burn": "never"}
        self.version = 1
        self.before: Callable[[str], None] = lambda action: None

    def note(self, *words: Any) -> None:
        with self.log.open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")
        self.before(str(words[0]))
        time.sleep(self.rest)

    def settle(self, cell: Cell) -> Settled:
        training, knobs = override(self.defaults, cell.overrides), override({"scale": 1.0}, cell.knobs)
        for given, known in ((training, self.defaults), (knobs, {"scale"})):
            for key in given:
                choose(key, known, "setting")
        instruments = {"height": {"version": self.version}, "spread": {"version": 1}, "odd": {}}
        if cell.model is not None:
            return Settled(Path(cell.model), knobs, instruments)
        return Settled({"recipe": cell.recipe, **training, "rate": float(training["rate"])}, knobs, instruments)

    def train(self, training: Any, seed: int, budget: float, folder: Path) -> Any:
        state = folder / "state.json"
        step, value = json.loads(state.read_text()) if state.is_file() else (0, 0.0)
        try:
            while step < int(budget):
                if training["burn"] == step:
                    raise InputError("a value that stays small", f"{value:.0f} at step {step} in {folder}")
                if training["burn"] == "badly":
                    value /= 0
                chance = random.Random(f"{seed} {step} {training['rate']} {training['noise']}")
                step, value = step + 1, value + training["rate"] + chance.gauss(0, training["noise"])
                atomic_write(state, json.dumps([step, value]))
                self.note("train", folder.parent.name, step)
                yield step
            atomic_write(folder / "model.json", json.dumps(value))
        finally:
            self.note("left", folder.parent.name)

    def fingerprint(self, folder: Path) -> str:
        return sha256_file(folder / "model.json")[:16]

    def paint(self, model: Path, prompts: Any, knobs: Any, seeds: Any, folder: Path) -> Any:
        value = json.loads((model / "model.json").read_text())
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if not (folder / f"{number}.json").is_file():
                shade = value * knobs["scale"] + len(prompt) + random.Random(seed).gauss(0, 0.1)
                atomic_write(folder / f"{number}.json", json.dumps(shade))
                self.note("paint", folder.parent.name, number)
            yield number

    def measure(self, pictures: Path, prompts: Any, seeds: Any, instruments: Any) -> list[Score]:
        shades = [json.loads((pictures / f"{i}.json").read_text()) for i in range(len(seeds))]
        self.note("measure", pictures.parent.name, *instruments)
        found = {"height": sum(shades) / len(shades), "spread": max(shades) - min(shades), "odd": 0.0}
        names = [name if name != "odd" else "even" for name in instruments]
        return [Score(name=n, value=found.get(n, 0), interval=(min(shades), max(shades)), conditions={"n": 3}) for n in names]

    def done(self) -> Counter[str]:
        """How often each thing was done."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return Counter(line for line in lines if not line.startswith("left"))

    def count(self, action: str) -> int:
        return sum(times for line, times in self.done().items() if line.startswith(action))


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "log")


def read(text: str, folder: Path) -> ExperimentRecipe:
    (folder / "asked.toml").write_text(text)
    return read_experiment(folder / "asked.toml")


def run(toy: Toy, text: str, folder: Path, out: str = "out") -> Table:
    told = list(run_experiment(read(text, folder), toy, folder / "store", folder / out))
    assert isinstance(told[-1], Ended)
    return told[-1].table


def facts(table: Table) -> Any:
    """What must not depend on how often a run was stopped."""
    return json.loads(table.model_dump_json(exclude={"rows": {"__all__": {"seconds"}}}))


# -- cells --------------------------------------------------------------------------------------------------------------


def test_cells_are_every_combination_with_the_base_first_and_controls_last(tmp_path: Path) -> None:
    recipe = read(BASE + 'overrides = ["noise=0"]\n' + RATE + SCALE + HALF + 'overrides = ["rate=0.5"]\n', tmp_path)
    found = cells(recipe)
    assert [cell.label for cell in found] == [
        *(f"rate={rate}, scale={scale}" for rate in ("one", "two") for scale in ("small", "large")),
        "control half the time",
    ]
    assert found[3].overrides == ("noise=0", "rate=2") and found[3].knobs == ("scale=3",) and found[3].share == 1
    assert found[4].values == found[0].values and found[4].overrides == ("noise=0", "rate=0.5")
    assert found[4].knobs == ("scale=1",) and found[4].share == 0.5
    assert [cell.label for cell in cells(read(BASE, tmp_path))] == ["base"]


@pytest.mark.parametrize(("given", "seconds"), [("90", 90), ('"90s"', 90), ('"10m"', 600), ('"1.5h"', 5400)])
def test_a_budget_is_seconds_or_a_time(tmp_path: Path, given: str, seconds: float) -> None:
    assert read(BASE.replace("budget = 4", f"budget = {given}"), tmp_path).budget == seconds


def change(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (change("pictures", "picture"), "picture: unknown key; did you mean 'pictures'"),
        (change("share", "shaer"), "control.0.shaer: unknown key; did you mean 'share'"),
        (change("knobs =", "nobs ="), "nobs: unknown key"),
        (change('"scale"', '"rate"'), "wanted axes that differ; rate stands there twice"),
        (change('values.one = []\nvalues.two = ["rate=2"]', "values = {}"), "axis.0.values: .*at least 1"),
        (change('["rate=2"]', '["rate"]'), "wanted an assignment such as"),
        (change('["rate=2"]', '"rate=2"'), "axis.0.values.two: wanted a list or a table"),
        (change('primary = "height"', 'primary = "hight"'), "measured, as primary; given 'hight'. did you mean 'height'"),
        (change('primary = "height"', ""), "wanted a primary score"),
        (change('better = "higher"', ""), "wanted better = 'higher' or 'lower'"),
        (change('better = "higher"', 'better = "more"'), "better: wanted 'higher' or 'lower'"),
        (change('measure = ["height"]', 'measure = ["height", "height"]'), "wanted scores that differ; height"),
        (change("seeds = [0, 1, 2]", "seeds = [1, 1]"), "wanted seeds that differ; 1 stands"),
        (change("seeds = [0, 1, 2]", "seeds = []"), "seeds: .*at least 1"),
        (change("seeds = [0, 1, 2]", "seeds = [-1]"), "seeds.0: wanted a number greater"),
        (change('"scale"', '"seed"'), "the table has a column seed already"),
        (change('"scale"', '"height"'), "the table has a column height already"),
        (change('"scale"', '"height low"'), "the table has a column height low already"),
        (change('knobs = ["scale=1"]', 'overrides = ["rate.of.climbing=7"]'), "rate and scale both change overrides.rate.of"),
        (change("budget = 4", ""), "wanted a budget for what is trained"),
        (change("budget = 4", "budget = 0"), "budget: wanted a number greater than 0"),
        (change("budget = 4", 'budget = "soon"'), 'budget: wanted a time such as 90s, 30m or 1.5h; given "soon"$'),
        (change('recipe = "toy"', ""), "wanted a recipe or a model, one of the two"),
        (change('recipe = "toy"', 'model = "toy"'), "wanted knobs alone for a finished model"),
        (change('knobs = ["scale=1"]', 'overrides = ["rate=7"]'), "rate and scale both change overrides.rate"),
        (change("share = 0.5", "share = 1.5"), "control.0.share: wanted a number less than or equal to 1"),
        (change('"half the time"', '"a=b"'), "control.0.name: wanted a name without"),
        (change("values.two", 'values."two, three"'), "axis.0.values.*wanted a name without"),
        (lambda text: text + HALF, "wanted controls that differ"),
        (change("title", "[title"), "a recipe in TOML"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told(tmp_path: Path, changed: Callable[[str], str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(changed(BASE + RATE + SCALE + HALF), tmp_path)


# -- what is done, and what is not done again ---------------------------------------------------------------------------


def test_axes_of_knobs_share_a_training_and_scores_stand_in_the_table(toy: Toy, tmp_path: Path) -> None:
    table = run(toy, BASE + RATE + SCALE, tmp_path)
    assert toy.count("train") == 2 * 3 * 4  # rates x seeds x steps
    assert toy.count("paint") == 4 * 3 * 3 and toy.count("measure") == 4 * 3
    assert [(row.label, row.seed) for row in table.rows[:4]] == [
        *(("rate=one, scale=small", seed) for seed in (0, 1, 2)), ("rate=one, scale=large", 0)
    ]  # fmt: skip
    assert all(row.reason is None and row.scores[0].conditions == {"n": 3} for row in table.rows)
    assert len({row.training for row in table.rows}) == 6 and len({row.painting for row in table.rows}) == 12
    assert 15 < table.rows[-1].scores[0].value < 30  # four steps of two, times three
    for row in table.rows:
        work = tmp_path / "store" / "training" / row.training / "work"
        assert row.fingerprint == toy.fingerprint(work) and set(row.seconds) == {"training", "painting"}
    assert table.verdicts[0].sentence.startswith("rate=one, scale=large better than rate=one, scale=small by ")
    assert len(table.verdicts) == 3 and table.verdicts[0].level == pytest.approx(1 - 0.05 / 3, abs=0.02)


def test_cells_of_a_seed_are_asked_the_same_and_seeds_are_asked_apart(toy: Toy, tmp_path: Path) -> None:
    table = run(toy, BASE + RATE, tmp_path)
    asked = {}
    for row in table.rows:
        told = json.loads((tmp_path / "store" / "painting" / row.painting / "unit.json").read_text())
        assert told["prompts"] == ["a", "bb", "a"] and told["model"] == row.fingerprint
        assert asked.setdefault(row.seed, told["seeds"]) == told["seeds"]
    assert len({seed for seeds in asked.values() for seed in seeds}) == 9


def test_a_second_run_does_nothing_and_comes_to_the_same(toy: Toy, tmp_path: Path) -> None:
    first = run(toy, BASE + RATE + SCALE + HALF, tmp_path)
    before = toy.done()
    told = list(run_experiment(read(BASE + RATE + SCALE + HALF, tmp_path), toy, tmp_path / "store", tmp_path / "out"))
    assert toy.done() == before and told[-1].table == first
    assert not any(isinstance(event, Working) for event in told)
    assert all(not event.fresh for event in told if isinstance(event, Finished))


def test_events_say_how_far_it_is(toy: Toy, tmp_path: Path) -> None:
    told = list(run_experiment(read(BASE + RATE, tmp_path), toy, tmp_path / "store", tmp_path / "out"))
    assert told[0] == Planned(cells=2, rows=6)
    rows = [event for event in told if isinstance(event, Told)]
    assert [event.done for event in rows] == [1, 2, 3, 4, 5, 6] and {event.total for event in rows} == {6}
    assert [event.row.seed for event in rows] == [0, 0, 1, 1, 2, 2]  # a whole seed first: there is soon something to see
    first = [event for event in told if isinstance(event, Working) and event.unit == rows[0].row.training]
    assert [event.event for event in first] == [None, 1, 2, 3, 4] and {event.kind for event in first} == {"training"}
    kinds = Counter(event.kind for event in told if isinstance(event, Finished) and event.fresh)
    assert kinds == {"training": 6, "painting": 6, "measuring": 6}


def test_experiments_share_what_they_have_in_common(toy: Toy, tmp_path: Path) -> None:
    first = run(toy, BASE + RATE, tmp_path)
    before = toy.done()
    more = BASE.replace("Two rates", "Three").replace('["height"]', '["spread", "height"]').replace("[0, 1, 2]", "[2, 0]")
    second = run(toy, more + RATE + 'values.three = ["rate=3"]\n', tmp_path, "other")
    new = toy.done() - before
    assert sum(line.startswith("train") for line in new.elements()) == 2 * 4  # the third rate, at two seeds
    measured = sorted(line.split(" ", 2)[2] for line in new.elements() if line.startswith("measure"))
    assert measured == ["spread"] * 4 + ["spread height"] * 2  # of shared pictures only what was not yet measured
    known = {(row.label, row.seed): row for row in first.rows}
    for row in second.rows[:4]:
        same = known[row.label, row.seed]
        assert (row.training, row.painting, row.fingerprint) == (same.training, same.painting, same.fingerprint)
        assert [score.name for score in row.scores] == ["spread", "height"] and row.scores[1] == same.scores[0]


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        (change("rate=2", "rate=2.5"), {"train", "paint", "measure"}),
        (change("budget = 4", "budget = 5"), {"train", "paint", "measure"}),
        (change("seeds = [0]", "seeds = [3]"), {"train", "paint", "measure"}),
        (change('recipe = "toy"', 'recipe = "toy"\noverrides = ["noise=0.3"]'), {"train", "paint", "measure"}),
        (change('recipe = "toy"', 'recipe = "toy"\nknobs = ["scale=2"]'), {"paint", "measure"}),
        (change('["a", "bb"]', '["a", "ccc"]'), {"paint", "measure"}),
        (change("pictures = 3", "pictures = 4"), {"paint", "measure"}),
        (change('recipe = "toy"', 'recipe = "toy"\nknobs = ["scale=1.0"]'), set()),  # its default, said aloud
        (change('recipe = "toy"', 'recipe = "toy"\noverrides = ["rate=1.0"]'), set()),
        (change("Two rates", "Rates, twice"), set()),
    ],
)
def test_only_what_a_change_can_reach_is_done_again(
    toy: Toy, tmp_path: Path, changed: Callable[[str], str], kinds: set[str]
) -> None:
    text = BASE.replace("[0, 1, 2]", "[0]") + RATE
    run(toy, text, tmp_path)
    before = toy.done()
    run(toy, changed(text), tmp_path, "other")
    assert {line.split(" ")[0] for line in toy.done() - before} == kinds


def test_another_version_of_an_instrument_measures_anew(toy: Toy, tmp_path: Path) -> None:
    run(toy, BASE + RATE, tmp_path)
    toy.version = 2
    run(toy, BASE + RATE, tmp_path)
    assert toy.count("measure") == 12 and toy.count("paint") == 18


def test_a_grid_over_a_finished_model_trains_nothing_and_needs_no_score(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("7.0")
    text = re.sub("(budget|measure|primary|better).*\n", "", BASE).replace('recipe = "toy"', f'model = "{tmp_path.as_posix()}"')
    table = run(toy, text + SCALE, tmp_path)
    assert toy.count("train") == 0 and toy.count("paint") == 2 * 3 * 3
    assert {row.fingerprint for row in table.rows} == {toy.fingerprint(tmp_path)} and not any(row.reason for row in table.rows)
    assert table.verdicts == () and table.instrument == "nothing is measured"


def test_models_stand_against_each_other_in_an_arena(toy: Toy, tmp_path: Path) -> None:
    lines = []
    for name, value in (("low", 1.0), ("high", 9.0), ("same", 1.001)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(str(value))
        lines.append(f'values.{name}.model = "{(tmp_path / name).as_posix()}"\n')
    text = BASE.replace('recipe = "toy"', f'model = "{(tmp_path / "low").as_posix()}"\nagainst = "each other"')
    table = run(toy, text + '[[axis]]\nname = "model"\n' + "".join(lines), tmp_path)
    assert [(v.first, v.second) for v in table.verdicts] == [
        ("model=low", "model=high"), ("model=low", "model=same"), ("model=high", "model=same")
    ]  # fmt: skip
    # the same noise in all three: differences without any spread prove nothing, and it says so
    assert {v.said for v in table.verdicts} == {"unknown"} and "differ by -8 in each seed" in table.verdicts[0].sentence


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_cell_that_fails_says_why_and_the_others_go_on(toy: Toy, tmp_path: Path) -> None:
    axis = RATE + 'values.burnt = ["burn=2"]\nvalues.broken = ["burn=badly"]\nvalues.misspelt = ["raet=2"]\n'
    table = run(toy, BASE + axis + SCALE, tmp_path)
    reasons = {row.label: row.reason for row in table.rows if row.seed == 1}
    assert reasons["rate=two, scale=large"] is None
    burnt = reasons["rate=burnt, scale=small"] or ""
    assert "wanted a value that stays small; given 2 at step 2 in training" in burnt
    assert str(tmp_path) not in burnt and reasons["rate=burnt, scale=large"] == burnt
    assert "ZeroDivisionError: float division by zero" in (reasons["rate=broken, scale=small"] or "")
    misspelt = reasons["rate=misspelt, scale=large"] or ""
    assert misspelt.startswith("settings: wanted a known setting; given 'raet'. did you mean 'rate'?")
    assert toy.count("train") == 2 * 3 * 4 + 3 * 2  # the burnt one two steps at each seed, once, though two cells want it
    begun = Counter(line for line in toy.log.read_text().splitlines() if line.startswith("left"))
    assert len(begun) == 4 * 3 and set(begun.values()) == {1}
    traces = [path.read_text() for path in (tmp_path / "store").glob("training/*/error.txt")]
    assert len(traces) == 3 + 3 and sum("value /= 0" in trace for trace in traces) == 3  # a defect keeps its traceback
    said = {verdict.second: verdict.sentence for verdict in table.verdicts}
    assert said["rate=burnt, scale=small"].startswith(
        "cannot be told: rate=burnt, scale=small has no value at seed 0 (training"
    )
    assert "better than" in said["rate=two, scale=small"]


def test_what_failed_is_tried_again_by_the_next_run_and_goes_on(toy: Toy, tmp_path: Path) -> None:
    def refuse(action: str) -> None:
        if action == "paint":
            raise OSError("no room on the shelf")

    toy.before = refuse
    table = run(toy, BASE + RATE, tmp_path)
    assert all("painting" in (row.reason or "") and "OSError: no room on the shelf" in (row.reason or "") for row in table.rows)
    assert all(row.fingerprint and row.training for row in table.rows)  # what there is stands in the row
    toy.before = lambda action: None
    again = run(toy, BASE + RATE, tmp_path)
    assert all(row.reason is None for row in again.rows) and max(toy.done().values()) == 1
    assert not list((tmp_path / "store").glob("*/*/error.txt"))


def test_the_store_tells_without_any_work_how_far_it_is(toy: Toy, tmp_path: Path) -> None:
    text = BASE + RATE + 'values.burnt = ["burn=2"]\nvalues.misspelt = ["raet=2"]\n'
    recipe = read(text, tmp_path)
    assert {row.reason for row in survey(recipe, toy, tmp_path / "store").rows[:9]} == {"not run yet"}
    assert not (tmp_path / "store" / "training").exists() and not toy.log.exists()
    asked = iter(range(99))

    def refuse(action: str) -> None:
        if action == "measure" and next(asked) == 3:
            raise OSError("no room on the shelf")

    toy.before = refuse
    table = run(toy, text, tmp_path)
    assert sum(row.reason is None for row in table.rows) == 5
    before = toy.done()
    assert survey(recipe, toy, tmp_path / "store") == table and toy.done() == before  # with the reasons of what failed
    more = read(text.replace('["height"]', '["spread", "height"]'), tmp_path)
    rows = survey(more, toy, tmp_path / "store").rows
    assert rows[0].scores == table.rows[0].scores and rows[0].reason == "not run yet"  # of two scores, one is there


def test_two_runs_in_one_process_keep_out_of_each_others_way(toy: Toy, tmp_path: Path) -> None:
    recipe = read(BASE + RATE, tmp_path)
    first = run_experiment(recipe, toy, tmp_path / "store", tmp_path / "out")
    while toy.count("train") < 2:
        next(first)
    second = [event.row for event in run_experiment(recipe, Toy(tmp_path / "b"), tmp_path / "store", tmp_path / "other")
              if isinstance(event, Told)]  # fmt: skip
    assert [row.reason is None for row in second] == [False] + [True] * 5
    assert "another run is at work on it" in (second[0].reason or "")
    rows = [event.row for event in first if isinstance(event, Told)]  # what the second has done meanwhile is found done
    assert all(row.reason is None for row in rows) and toy.count("train") == 4
    assert survey(recipe, toy, tmp_path / "store").rows[0].reason is None


def test_a_unit_that_was_finished_while_its_lock_was_awaited_is_not_done_again(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = BASE.replace("[0, 1, 2]", "[0]")
    run(toy, text, tmp_path)
    before, real, seen = toy.done(), Units.result, Counter[Path]()

    def late(self: Units, folder: Path) -> Any:
        """As if the other run had ended just after the first look."""
        seen[folder] += 1
        return None if seen[folder] == 1 else real(self, folder)

    monkeypatch.setattr(Units, "result", late)
    units = Units(tmp_path / "store")
    engine = experiment.Engine(read(text, tmp_path), toy, units)
    [(cell, ready)] = engine.ready()
    list(engine.row(cell, ready, 0))
    assert toy.done() == before and len(seen) == 3


def test_a_spoilt_note_is_made_again_and_one_that_cannot_be_read_costs_nothing(toy: Toy, tmp_path: Path) -> None:
    table = run(toy, BASE + RATE, tmp_path)
    units = Units(tmp_path / "store")
    for kind in ("training", "painting", "measuring"):
        victim = next((tmp_path / "store" / kind).iterdir()) / "done.json"
        victim.write_text('{"score": {"name": "height", "worth": 3}, "seconds": 1}' if kind == "measuring" else "[1, 2")
    before = toy.done()
    assert facts(run(toy, BASE + RATE, tmp_path)) == facts(table)
    assert {line.split()[0] for line in toy.done() - before} == {"measure"}  # steps and pictures were still there
    folder = tmp_path / "store" / "training" / table.rows[0].training
    (folder / "done.json").unlink()
    (folder / "done.json").mkdir()
    with pytest.raises(Unable, match="cannot be read"):
        units.result(folder)
    again = run(toy, BASE + RATE, tmp_path)
    assert [row.reason is None for row in again.rows] == [False] + [True] * 5 and toy.count("train") == 24


def test_halves_of_letters_in_an_error_stop_nothing(toy: Toy, tmp_path: Path) -> None:
    def refuse(action: str) -> None:
        if action == "paint":
            raise OSError("no file \udcff")

    toy.before = refuse
    assert all("no file ?" in (row.reason or "") for row in run(toy, BASE + RATE, tmp_path).rows)


def test_a_model_that_is_not_the_one_its_training_ended_with_is_not_painted_with(toy: Toy, tmp_path: Path) -> None:
    table = run(toy, BASE + RATE, tmp_path)
    victim = table.rows[1].training
    (tmp_path / "store" / "training" / victim / "work" / "model.json").write_text("99")
    again = run(toy, BASE.replace("pictures = 3", "pictures = 4") + RATE, tmp_path)
    assert [row.reason is None for row in again.rows] == [True, False, True, True, True, True]
    assert f"wanted the model of fingerprint {table.rows[1].fingerprint}" in (again.rows[1].reason or "")


def test_settings_that_cannot_be_named_are_refused_before_anything_is_done(toy: Toy, tmp_path: Path) -> None:
    table = run(toy, BASE + RATE.replace("rate=2", "rate=nan"), tmp_path)
    assert [row.reason is None for row in table.rows] == [True] * 3 + [False] * 3
    assert toy.count("train") == 3 * 4 and "ValueError: Out of range float" in (table.rows[3].reason or "")


def test_scores_that_were_not_asked_for_are_an_error(toy: Toy, tmp_path: Path) -> None:
    table = run(toy, BASE.replace('measure = ["height"]', 'measure = ["height", "odd"]'), tmp_path)
    assert all("wanted scores height, odd; given height, even" in (row.reason or "") for row in table.rows)
    table = run(toy, BASE.replace('"height"', '"width"'), tmp_path)
    assert all("wanted a known score; given 'width'" in (row.reason or "") for row in table.rows)


def test_ctrl_c_stops_with_a_table_of_what_there_is(toy: Toy, tmp_path: Path) -> None:
    whole = run(Toy(tmp_path / "other log"), BASE + RATE, tmp_path, "whole")
    asked = iter(range(20))

    def interrupt(action: str) -> None:
        if action == "train" and next(asked) == 9:
            signal.raise_signal(signal.SIGINT)

    toy.before = interrupt
    steps = run_experiment(read(BASE + RATE, tmp_path), toy, tmp_path / "fresh", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        list(steps)
    table = Table.model_validate_json((tmp_path / "out" / "table.json").read_text())
    assert [row.reason for row in table.rows] == [None, "not run yet", "not run yet"] * 2
    assert table.verdicts[0].sentence == "cannot be told: rate=one has no value at seed 1 (not run yet), and 3 more"
    assert toy.log.read_text().splitlines()[-1].startswith("left")  # the training was let go in an orderly way
    toy.before = lambda action: None
    told = list(run_experiment(read(BASE + RATE, tmp_path), toy, tmp_path / "fresh", tmp_path / "out"))
    assert max(toy.done().values()) == 1 and facts(told[-1].table) == facts(whole)


def test_closing_the_iterator_stops_and_the_time_taken_counts(toy: Toy, tmp_path: Path) -> None:
    toy.rest = 0.1
    steps = run_experiment(read(BASE + RATE, tmp_path), toy, tmp_path / "store", tmp_path / "out")
    while toy.count("train") < 3:
        next(steps)
    steps.close()
    [noted] = (tmp_path / "store").glob("training/*/spent.json")
    spent = json.loads(noted.read_text())
    assert spent >= 3 * 0.1 and (tmp_path / "out" / "table.csv").is_file()
    assert toy.log.read_text().splitlines()[-1].startswith("left")
    toy.rest = 0.0
    assert run(toy, BASE + RATE, tmp_path).rows[0].seconds["training"] > spent
    assert not noted.exists()


# -- controls and the table ---------------------------------------------------------------------------------------------


def test_a_control_that_is_told_apart_lets_the_instrument_judge(toy: Toy, tmp_path: Path) -> None:
    table = run(toy, BASE + RATE + HALF, tmp_path)
    assert table.instrument == "height finds control half the time worse than rate=one"
    assert table.verdicts[0].sentence.startswith("rate=two better than rate=one by ") and len(table.controls) == 1
    assert toy.count("train") == 3 * (4 + 4 + 2)  # the control for half the time


@pytest.mark.parametrize(
    ("control", "why"),
    [
        ('overrides = ["noise=0.11"]', "no difference shown between rate=one and control bad"),
        ('overrides = ["rate=3"]', "control bad better than rate=one by"),
        ('overrides = ["burn=1"]', "control bad has no value at seed 0"),
    ],
)
def test_a_control_that_is_not_told_apart_forbids_every_verdict(toy: Toy, tmp_path: Path, control: str, why: str) -> None:
    table = run(toy, BASE + RATE + f'[[control]]\nname = "bad"\n{control}\n', tmp_path)
    assert table.instrument.startswith(f"height cannot judge here: it does not find control bad worse than rate=one ({why}")
    assert [v.sentence for v in table.verdicts] == [f"cannot be told: {table.instrument}"]
    assert all(row.scores for row in table.rows if row.control is None)  # the numbers stand there all the same


def test_the_table_is_written_as_json_and_csv(toy: Toy, tmp_path: Path) -> None:
    text = BASE.replace('["height"]', '["spread", "height"]') + RATE + 'values."a; \\"b\\"" = ["burn=0"]\n' + HALF
    table = run(toy, text, tmp_path)
    assert Table.model_validate_json((tmp_path / "out" / "table.json").read_text("utf-8")) == table
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text("utf-8"))))
    assert len(lines) == len(table.rows) == 12
    for line, row in zip(lines, table.rows, strict=True):
        assert line["rate"] == row.values["rate"] and line["seed"] == str(row.seed) and line["control"] == (row.control or "")
        assert line["reason"] == (row.reason or "") and line["fingerprint"] == row.fingerprint
        for score in row.scores:
            assert float(line[score.name]) == score.value and json.loads(line[f"{score.name} conditions"]) == {"n": 3}
            assert (float(line[f"{score.name} low"]), float(line[f"{score.name} high"])) == score.interval
        assert bool(row.scores) == bool(line["height"]) == (line["reason"] == "")


# -- SIGKILL ------------------------------------------------------------------------------------------------------------


def finished(store: Path) -> set[tuple[str, str]]:
    """(action, unit) of all that is done; a score is known by its painting, as in the toy's log."""
    found = set()
    for path in store.glob("*/*/done.json"):
        told = json.loads((path.parent / "unit.json").read_text())
        kind = path.parent.parent.name
        found.add(("measure", told["painting"]) if kind == "measuring" else (kind.removesuffix("ing"), path.parent.name))
    return found


def finish(toy: Toy, text: str, folder: Path, whole: Table) -> None:
    """A second run: it comes to what an undisturbed one comes to, and does nothing twice that was finished."""
    done, before = finished(folder / "store"), toy.done()
    assert facts(run(toy, text, folder)) == facts(whole)
    new = toy.done() - before
    assert not {tuple(line.split()[:2]) for line in new} & done
    assert all(times == 1 for line, times in toy.done().items() if not line.startswith("measure"))  # steps and pictures too
    assert not toy.done() - Counter(dict.fromkeys(toy.done(), 2))  # a score that was broken off was begun again once


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("action", ["train", "paint", "measure"])
def test_killed_in_the_middle_of_a_unit_a_second_run_goes_on(tmp_path: Path, action: str) -> None:
    text = BASE + RATE
    (tmp_path / "whole").mkdir()
    whole = run(Toy(tmp_path / "other log"), text, tmp_path / "whole")
    read(text, tmp_path)
    toy = Toy(tmp_path / "log")
    child = subprocess.Popen([sys.executable, __file__, str(tmp_path), action])
    try:
        limit = time.monotonic() + 300
        while not (tmp_path / "waiting").exists() and time.monotonic() < limit and child.poll() is None:
            time.sleep(0.02)
        assert (tmp_path / "waiting").exists() and child.poll() is None
        meanwhile = run(toy, text.replace("[0, 1, 2]", "[0]"), tmp_path, "meanwhile").rows[0].reason or ""
        assert "another run is at work on it" in meanwhile
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert toy.count(action) > 0
    finish(toy, text, tmp_path, whole)


def in_a_child(work: Callable[[], Any]) -> int:
    """The signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_killed_before_any_file_is_touched_a_second_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "BEAT", 0.0)  # so that notes of the time are killed as well
    text = BASE.replace("[0, 1, 2]", "[5]").replace("budget = 4", "budget = 2").replace("pictures = 3", "pictures = 2") + SCALE
    (tmp_path / "whole").mkdir()
    whole = run(Toy(tmp_path / "other log"), text, tmp_path / "whole")
    moment = ended = 0
    while moment == 0 or ended:
        moment += random.randint(1, 9)  # another selection in every run of this test
        folder = tmp_path / str(moment)
        folder.mkdir()
        toy, left = Toy(folder / "log"), iter(range(moment))

        def kill(event: str, arguments: Iterable[Any], place: str = str(folder), left: Any = left) -> None:
            if event in MOMENTS and str(next(iter(arguments))).startswith(place) and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        def killed(toy: Toy = toy, folder: Path = folder, hook: Any = kill) -> None:
            sys.addaudithook(hook)
            run(toy, text, folder)

        ended = in_a_child(killed)
        assert ended in (0, -signal.SIGKILL)
        finish(toy, text, folder, whole)
    assert moment > 80


if __name__ == "__main__":  # the process that is killed: it stops for good in the middle of the action that is named
    place, at = Path(sys.argv[1]), sys.argv[2]
    worker = Toy(place / "log")

    def wait(action: str) -> None:
        if action == at and (at == "measure" or worker.count(at) == 2):
            (place / "waiting").touch()
            time.sleep(600)

    worker.before = wait
    for _ in run_experiment(read_experiment(place / "asked.toml"), worker, place / "store", place / "out"):
        pass


# -- cells that differ in more than an override ---------------------------------------------------------------------------

OTHERS = """
[[axis]]
name = "way"
values.plain = { published = "4.2 in a report" }
values.other = { recipe = "another", against = "two" }
values.two = { overrides = ["rate=2"] }
values.few = { overrides = ["noise=0.3"], seeds = 1 }
"""


def test_a_cell_may_have_another_recipe_fewer_seeds_and_another_one_it_is_held_against(toy: Toy, tmp_path: Path) -> None:
    recipe = read(BASE + OTHERS + HALF, tmp_path)
    plain, other, two, few, _ = cells(recipe)
    assert (plain.recipe, other.recipe, few.recipe) == ("toy", "another", "toy")
    assert other.against == two.label and plain.against is None and recipe.seeds_of(few) == (0,)
    table = run(toy, BASE + OTHERS + HALF, tmp_path)
    assert len(table.rows) == 13 and sum(row.label == few.label for row in table.rows) == 1
    compared = {(v.first, v.second) for v in table.verdicts}
    assert compared == {(two.label, other.label), (plain.label, two.label)}, "one seed decides nothing, and costs nothing"
    assert {v.winner for v in table.verdicts} == {two.label}


def test_a_control_is_found_by_the_score_it_names(toy: Toy, tmp_path: Path) -> None:
    noisy = """
[[control]]
name = "noisy"
overrides = ["rate=1.0001"]
score = "spread"
better = "lower"
"""
    table = run(toy, BASE.replace('["height"]', '["height", "spread"]') + RATE + noisy, tmp_path)
    assert "spread does not find control noisy worse" in table.instrument
    assert table.controls[0].winner is None and {v.said for v in table.verdicts} == {"unknown"}


def test_a_control_may_be_another_cell_made_worse(toy: Toy, tmp_path: Path) -> None:
    of_two = HALF + HALF.replace("half the time", "half of two") + 'against = "two"\n'
    recipe = read(BASE + OTHERS + of_two, tmp_path)
    plain, other, two, _, half, half_of_two = cells(recipe)
    assert half.against is None and half_of_two.against == two.label and half_of_two.overrides == two.overrides
    assert (half_of_two.values, half_of_two.share, half_of_two.label) == (two.values, 0.5, "control half of two")
    table = run(toy, BASE + OTHERS + of_two, tmp_path)
    assert [(v.first, v.winner) for v in table.controls] == [(one.label, one.label) for one in (plain, two)]
    assert f"height finds control half of two worse than {two.label}" in table.instrument
    noisy = BASE + OTHERS + HALF + HALF.replace("0.5", "1.0").replace("half the time", "as good") + 'against = "two"\n'
    table = run(toy, noisy + 'overrides = ["noise=0.11"]\n', tmp_path)
    assert f"height cannot judge {two.label} here" in table.instrument and {v.said for v in table.verdicts} == {"unknown"}
    assert other.label in {v.second for v in table.verdicts}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OTHERS + HALF + 'against = "tow"', "two"),
        (OTHERS + SCALE.replace("large", "two") + HALF + 'against = "two"', "several have two"),
        (OTHERS.replace('against = "two"', 'against = "tow"'), "two"),
        (OTHERS.replace("seeds = 1", "seeds = 0"), "seeds"),
        (HALF + 'score = "spread"\nbetter = "lower"\n', "spread"),
        (HALF + 'score = "height"\n', "better"),
    ],
)
def test_what_cannot_be_held_against_anything_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read(BASE + text, tmp_path)


def test_a_score_that_a_cell_cannot_have_is_left_out_and_the_others_are_there(toy: Toy, tmp_path: Path) -> None:
    settle = toy.settle

    def without(cell: Cell) -> Settled:
        found = settle(cell)
        odd = {"spread": None} if cell.values["rate"] == "two" else {}
        return Settled(found.model, found.knobs, {**found.instruments, **odd})

    toy.settle = without  # type: ignore[method-assign]
    table = run(toy, BASE.replace('["height"]', '["height", "spread"]') + RATE, tmp_path)
    told = {row.label: [score.name for score in row.scores] for row in table.rows}
    assert told == {"rate=one": ["height", "spread"], "rate=two": ["height"]} and not any(row.reason for row in table.rows)
