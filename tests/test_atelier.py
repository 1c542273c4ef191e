"""Experiments with real trainings, from the command line: first steps, and broken off."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from giverny.assembly import Bench, family, train
from giverny.assembly.atelier import JUDGED, OF_KINDS, OF_WORDS
from giverny.base.contracts import Picture
from giverny.base.errors import InputError
from giverny.base.picture import write_picture
from giverny.base.recipe import to_toml
from giverny.cli import cli
from giverny.compare.cells import cells, read_experiment
from giverny.compare.experiment import run_experiment
from giverny.compare.grids import grid_of
from giverny.data.toy import COLOURS, ToyShapes

EXPERIMENT = """
title = "Toy: guidance and data"
question = "Does guidance change what is painted?"
recipe = "{recipe}"
budget = 60
seeds = [0, 1]
prompts = ["a red circle", "a blue square"]
pictures = 6
measure = ["KID", "diversity", "CLIP cosine"]
primary = "KID"
better = "lower"

[instrument]
reference = "toy"
features = "pixels"
words = "{model}"

[[axis]]
name = "guidance"
values = {{ "2" = {{ knobs = ["guidance=2"] }}, "1" = {{ knobs = ["guidance=1"] }} }}

[[control]]
name = "shuffled captions"
overrides = ["data.captions=shuffled"]
"""


@pytest.fixture
def asked(tmp_path, tiny_runs):
    """An experiment's file over the tiny recipe."""
    recipe, file = tmp_path / "tiny.toml", tmp_path / "toy.toml"
    recipe.write_text(to_toml(family("diffusion").tiny()))
    file.write_text(EXPERIMENT.format(recipe=recipe, model=tiny_runs["diffusion"]))
    return file


def run(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_an_experiment_from_the_command_line_and_again(asked, tmp_path):
    words = ("compare", asked, "--out", tmp_path / "out", "--store", tmp_path / "store", "--json")
    first = run(*words)
    assert first.exit_code == 0, first.output + str(first.exception)
    events = [json.loads(line) for line in first.output.splitlines() if line.startswith("{")]
    rows = [e for e in events if e["event"] == "row"]
    assert len(rows) == 6 and all(r["reason"] is None for r in rows), rows
    assert [s["name"] for s in rows[0]["scores"]] == ["KID", "diversity", "CLIP cosine"]
    shared = [r["training"] for r in rows if r["control"] is None]
    assert len(set(shared)) == 2, "two seeds, and guidance trains nothing anew"
    assert {r["training"] for r in rows if r["control"]}.isdisjoint(shared)
    finished = [e for e in events if e["event"] == "finished"]
    assert sum(e["kind"] == "training" for e in finished) == 4
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Does guidance change" in page and (tmp_path / "out" / "table.csv").read_text().count("\n") == 7
    second = run(*words)
    again = [json.loads(line) for line in second.output.splitlines() if line.startswith("{")]
    assert not [e for e in again if e["event"] == "finished"]
    assert [e["scores"] for e in again if e["event"] == "row"] == [e["scores"] for e in rows]


def test_killed_at_any_moment_it_goes_on(asked, tmp_path):
    words = [sys.executable, "-m", "giverny", "compare", asked, "--out", tmp_path / "out", "--store", tmp_path / "store"]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    until = time.monotonic() + 120
    while not list((tmp_path / "store").glob("training/*/done.json")) and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").glob("*/*/done.json")}
    assert done
    result = run("compare", asked, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert result.exit_code == 0, result.output
    assert all(p.stat().st_mtime_ns == when for p, when in done.items())
    assert "page in" in result.output and "not run yet" not in (tmp_path / "out" / "table.csv").read_text()


def test_a_cell_that_cannot_be_trained_leaves_its_reason_and_the_rest_goes_on(asked, tmp_path):
    text = asked.read_text() + '\n[[axis]]\nname = "size"\nvalues = { "16" = [], "15" = ["data.size=[15, 15]"] }\n'
    asked.write_text(text)
    recipe = read_experiment(asked, ["seeds=[0]", "control=[]"])
    events = list(run_experiment(recipe, Bench(recipe), tmp_path / "store", tmp_path / "out"))
    rows = events[-1].table.rows
    assert [bool(r.reason) for r in rows] == [False, True, False, True]
    assert "divisible" in rows[1].reason


def test_a_grid_over_settings_needs_no_file(tmp_path, tiny_runs):
    result = run(
        *("compare", "-m", tiny_runs["diffusion"], "--prompt", "a red circle", "--axis", "guidance=1,2"),
        *("--axis", "steps=1,3", "--out", tmp_path / "out", "--store", tmp_path / "store"),
    )
    assert result.exit_code == 0, result.output + str(result.exception)
    assert len(list((tmp_path / "store").glob("painting/*/work/00000.png"))) == 4
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("axes", "said"), [(["guidance"], "guidance=1,3,5"), (["guidance=1,1"], "differ"), ([], "one axis or more")]
)
def test_grids_that_are_none(axes, said):
    with pytest.raises(InputError, match=said):
        grid_of("wardrobe", ["a"], axes, [0])


def test_scores_without_their_instrument_are_refused_before_any_work(asked, tmp_path):
    recipe = read_experiment(asked, ['measure=["judged colour"]', 'primary="judged colour"', 'better="higher"'])
    events = list(run_experiment(recipe, Bench(recipe), tmp_path / "store", tmp_path / "out"))
    assert all("instrument.judge" in row.reason for row in events[-1].table.rows)
    assert not list((tmp_path / "store").glob("training/*"))


def test_every_score_that_may_be_named_is_measured(asked, tmp_path):
    """Shapes and colours by a judge of both, and the rest with it: no name is accepted that nothing gives."""
    pictures = tmp_path / "shapes"
    pictures.mkdir()
    toys, lines = ToyShapes(60, 28), []
    for number in range(60):
        words = toys.captions_of(number)[0].split()
        write_picture(pictures / f"{number}.png", Picture(toys.read(number).pixels))
        shape, colour = words[-1], next(word for word in words if word in COLOURS)
        lines.append(json.dumps({"file_name": f"{number}.png", "text": " ".join(words), "shape": shape, "colour": colour}))
    (pictures / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    judge = family("classifier").tiny().model_dump(mode="json", exclude_none=True)
    judge["data"] |= {"source": str(pictures), "attributes": ["shape", "colour"], "validation": 8}
    list(train(judge, tmp_path / "judge"))
    names = [*OF_KINDS, *OF_WORDS, *(f"{JUDGED}{of}" for of in ("shape", "colour", "all"))]
    changes = [f"measure={json.dumps(names)}", "seeds=[0]", "control=[]", "axis=[]", "pictures=40", 'clock="processor"']
    recipe = read_experiment(asked, [*changes, f'instrument.judge="{tmp_path / "judge"}"'])
    (row,) = list(run_experiment(recipe, Bench(recipe), tmp_path / "store", tmp_path / "out"))[-1].table.rows
    assert row.reason is None and [score.name for score in row.scores] == names
    card = json.loads((tmp_path / "store" / "training" / row.training / "work" / "model" / "card.json").read_text())
    assert card["training"]["clock"] == "processor"


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    recipe, run = family("diffusion").tiny(), tmp_path / "runs" / "one"
    first = train(recipe, run)
    next(first)
    with pytest.raises(InputError, match=r"that no other process trains; given .*which one is training"):
        next(train(recipe, run, resume=True))
    first.close()
    again = train(recipe, run, resume=True)
    next(again)
    again.close()
    assert [path.name for path in run.parent.iterdir()] == ["one"]


TRANSLATING = """
title = "Toy: given pictures"
question = "Is what is given seen in what is made?"
recipe = "{translator}"
budget = 60
seeds = [0, 1]
prompts = ["a circle"]
pictures = 6
measure = ["KID", "SSIM", "change", "untouched", "checkerboard / real"]
primary = "KID"
better = "lower"

[given]
source = "toy"

[instrument]
reference = "toy"
features = "pixels"

[[axis]]
name = "way"

[axis.values]
forth = {{}}
half = {{ knobs = ["strength=0.5"] }}
noise = {{ recipe = "{diffusion}", given = false, seeds = 1 }}

[[control]]
name = "untouched"
knobs = ["strength=0"]
score = "change"
better = "higher"
"""


def test_translators_are_given_pictures_and_others_begin_from_nothing(tmp_path):
    paths = {}
    for name in ("translator", "diffusion"):
        paths[name] = tmp_path / f"{name}.toml"
        paths[name].write_text(to_toml(family(name).tiny()))
    (tmp_path / "asked.toml").write_text(TRANSLATING.format(**paths))
    recipe = read_experiment(tmp_path / "asked.toml")
    table = list(run_experiment(recipe, Bench(recipe), tmp_path / "store", tmp_path / "out"))[-1].table
    assert all(row.reason is None for row in table.rows), [row.reason for row in table.rows]
    found = {(row.label, row.seed): {score.name: score.value for score in row.scores} for row in table.rows}
    assert len(found) == 7 and set(found["way=noise", 0]) == {"KID", "checkerboard / real"}
    for seed in (0, 1):
        whole, half, none = (found[label, seed] for label in ("way=forth", "way=half", "control untouched"))
        assert none["change"] == 0 and none["SSIM"] == pytest.approx(1) and none["untouched"] == 1
        assert half["change"] == pytest.approx(whole["change"] / 2, abs=2 / 255) and whole["change"] > 0.01
    trained = {row.training for row in table.rows if row.label != "way=noise"}
    assert len(trained) == 2, "strength trains nothing anew"
    assert "change finds control untouched worse" in table.instrument


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["given={}"], "source"),
        (['given={source="toy", strength=2}'], "strength"),
        (['measure=["KID", "SSIM"]', "given=none", "control=[]"], "given"),
    ],
)
def test_given_pictures_that_are_none_are_told(changes, said, tmp_path):
    paths = {name: tmp_path / f"{name}.toml" for name in ("translator", "diffusion")}
    for name, path in paths.items():
        path.write_text(to_toml(family(name).tiny()))
    (tmp_path / "asked.toml").write_text(TRANSLATING.format(**paths))
    with pytest.raises(InputError, match=said):
        recipe = read_experiment(tmp_path / "asked.toml", changes)
        Bench(recipe).settle(next(iter(cells(recipe))))
