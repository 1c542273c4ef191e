"""Checkpoints that a run keeps, on the way and through a stop, and the choice of the best of them."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import training_toys as toys
from giverny.assembly import family, open_painter, train
from giverny.assembly.choosing import Looked, Run, best_of
from giverny.base.contracts import Score
from giverny.base.errors import InputError
from giverny.checkpoints.native import read_card
from giverny.cli import cli
from giverny.compare.losses import foretold_by
from giverny.training.state import checkpoints_of

pytestmark = pytest.mark.xdist_group("contract")


def trainer(folder, checkpoints, steps=12, **more):
    return toys.trainer("denoise", folder, resume=True, steps=steps, checkpoints=checkpoints, average=0.9, **more)


@pytest.mark.parametrize(
    ("checkpoints", "wanted"), [(0, []), (1, [12]), (3, [4, 8, 12]), (5, [3, 5, 8, 10, 12]), (99, [*range(1, 13)])]
)
def test_checkpoints_lie_evenly_over_a_run_and_hold_its_averages(tmp_path, checkpoints, wanted):
    run = trainer(tmp_path, checkpoints)
    seen = {}
    for report in run.run():
        if report.step in wanted:
            seen[report.step] = {f"net/{k}": v.clone() for k, v in run.averages[next(iter(run.averages))].items()}
    found = checkpoints_of(tmp_path)
    assert list(found) == wanted
    for step, path in found.items():
        kept = {name.split("/", 1)[1]: value for name, value in load_file(path).items()}
        assert all(torch.equal(kept[name.split("/", 1)[1]], value) for name, value in seen[step].items())


def test_a_run_that_goes_on_forgets_what_it_will_come_by_again(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    toys.finish(trainer(whole, 5, save_every=4))
    reports = trainer(broken, 5, save_every=4).run()
    while next(reports).step < 7:
        pass
    state = sorted((broken / "state").glob("*.safetensors"))[-1]
    reports.close()  # leaves a state of step 7, which is then lost, as if the machine had gone
    for path in (broken / "state").glob("*.safetensors"):
        if path != state:
            path.unlink()
    (broken / "checkpoints" / "00000011.safetensors").write_bytes(b"of a plan that was corrected since")
    toys.finish(trainer(broken, 5, save_every=4))
    assert list(checkpoints_of(broken)) == list(checkpoints_of(whole))
    for ours, theirs in zip(checkpoints_of(broken).values(), checkpoints_of(whole).values(), strict=True):
        one, other = load_file(ours), load_file(theirs)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny translator of two stages with five checkpoints each."""
    folder = tmp_path_factory.mktemp("choosing") / "run"
    recipe = family("translator").tiny()
    recipe = recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"checkpoints": 5})})
    list(train(recipe, folder))
    return folder


def test_the_best_checkpoint_becomes_the_model(run):
    before = read_card(run / "model").fingerprint
    noted = run / "model" / "card.json"
    elsewhere = json.loads(noted.read_text()) | {
        "training": {**json.loads(noted.read_text())["training"], "threads": 77, "device": "cuda:3", "clock": "processor"}
    }
    noted.write_text(json.dumps(elsewhere))  # trained on another machine
    result = CliRunner().invoke(cli, ["choose", str(run), "--features", "pixels", "--measures", "kid,fid", "--json"])
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
    told = {e["step"]: e["scores"] for e in events if e["event"] == "checkpoint"}
    assert list(told) == [2, 4, 6, 8, 10] and set(told[2]) >= {"KID", "FID", "SSIM", "untouched", "edge correlation"}
    best = min(told, key=lambda step: told[step]["KID"])
    assert events[-1] == {"event": "chosen", "step": best, "by": "KID", "value": told[best]["KID"], "taken": True}
    card = read_card(run / "model")
    assert card.training["checkpoint"]["step"] == best and card.training["checkpoint"]["value"] == told[best]["KID"]
    assert card.training["checkpoint"]["of"] == list(told)
    assert [card.training[what] for what in ("threads", "device", "clock")] == [77, "cuda:3", "processor"]
    kept = load_file(run / "stages" / "again" / "checkpoints" / f"{best:08d}.safetensors")
    painter = open_painter(run / "model", "cpu")
    own = dict(painter.networks[1].state_dict())
    assert all(torch.equal(own[k.removeprefix("forth/")].half(), v.half()) for k, v in kept.items() if k.startswith("forth/"))
    assert (card.fingerprint == before) == (best == 10)
    page = (run / "report.html").read_text()
    assert "KID of checkpoints" in page
    record = json.loads((run / "checkpoints.json").read_text())
    assert record["chosen"] == best and len(record["checkpoints"]) == 5 and record["stage"] == "again"


def test_a_look_alone_leaves_the_model(run):
    files = {p: p.read_bytes() for p in (run / "model").iterdir()}
    words = ["choose", str(run), "--features", "pixels", "--measures", "kid", "--by", "KID", "--dry-run"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0 and "best KID at step" in result.output and "taken" not in result.output
    assert files == {p: p.read_bytes() for p in (run / "model").iterdir()}


def test_a_diffusion_model_is_chosen_from_pictures_of_nothing(tmp_path):
    recipe = family("diffusion").tiny()
    denoiser = recipe.denoiser.model_copy(update={"loop": recipe.denoiser.loop.model_copy(update={"checkpoints": 2})})
    list(train(recipe.model_copy(update={"denoiser": denoiser}), tmp_path / "run"))
    run = Run(tmp_path / "run", "cpu")
    looked = list(run.look(features="pixels", kinds=("kid",)))
    assert len(looked) == 2 and {score.name for score in looked[0].scores} == {"KID"}
    assert open_painter(run.take(run.chosen(looked, "KID")), "cpu").fingerprint


def of(step, **values):
    return Looked(step, tuple(Score(name=name, value=value, conditions={}) for name, value in values.items()))


def test_directions_and_ties():
    looked = [of(1, KID=0.3, precision=0.1), of(2, KID=0.1, precision=0.5), of(3, KID=0.1, precision=0.5)]
    assert best_of(looked, "KID").step == 3 and best_of(looked[:2], "precision").step == 2
    with pytest.raises(InputError, match="score to choose by"):
        best_of(looked, "beauty")


def test_losses_of_a_run_beside_the_scores_of_its_checkpoints():
    """A quantity counts with its mean since the checkpoint before."""
    records = [{"step": s, "train/loss": float(s) + (100 if s % 2 else -100), "train/rate": 1.0} for s in range(1, 25)]
    values = {4: 0.1, 8: 0.2, 12: 0.4, 16: 0.3, 20: 0.5, 24: 0.6}
    (told,) = foretold_by(records, values)
    assert told.quantity == "train/loss" and told.rows == 6 and told.rho == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert foretold_by(records, dict(list(values.items())[:4])) == []


@pytest.mark.parametrize("case", ["nothing", "a file", "a run without", "damaged"])
def test_what_cannot_be_chosen_from_is_told(case, tmp_path, run, tiny_runs):
    place, said = tmp_path / "none", "run folder"
    if case == "a file":
        place.write_text("no run")
    if case == "a run without":
        place, said = tiny_runs["translator"], "checkpoints"
    if case == "damaged":
        import shutil

        shutil.copytree(run, place)
        said = "readable checkpoint"
        (place / "stages" / "again" / "checkpoints" / "00000002.safetensors").write_bytes(b"cut short")
    result = CliRunner().invoke(cli, ["choose", str(place), "--features", "pixels"])
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output
