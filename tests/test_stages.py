"""Training told as stages: what is there is reused, what changed is trained again, and nothing finished is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import training_toys as toys
from giverny.base.contracts import StageJob, Trained
from giverny.base.errors import InputError
from giverny.base.files import fingerprint
from giverny.data.latents import write_latents
from giverny.data.toy import ToyShapes
from giverny.painters.diffusion.family import PAINTER
from giverny.pipelines.train import FINISH, StageReport, read_note, stage_folder, train_stages
from giverny.training.loop import LoopRecipe
from giverny.training.parallel import World
from giverny.training.plan import PACE


@dataclass
class Two:
    """A workshop of two small stages; the second is built on the first. `seconds` passes per step on `clock`."""

    first: LoopRecipe = toys.loop()
    second: LoopRecipe = toys.loop()
    shared: tuple[float, float] = (1.0, 3.0)
    seconds: float = 0.0
    preparing: float = 0.0
    now: list[float] = field(default_factory=lambda: [0.0])
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    fails: Callable[[int], None] = lambda step: None

    def shares(self) -> dict[str, float]:
        return dict(zip(("first", "second"), self.shared, strict=True))

    def jobs(self) -> Iterator[StageJob]:
        made: list[str] = []
        for name, loop in (("first", self.first), ("second", self.second)):
            made.append(fingerprint([made, loop.model_dump(exclude=set(PACE))]))

            def keep(tensors: dict[str, dict[str, Tensor]], name: str = name) -> None:
                self.kept[name] = tensors["line"]

            yield StageJob(name, self.shares()[name], loop, made[-1], self.start, keep)

    def start(self) -> Any:
        def tick(step: int) -> None:
            self.fails(step)
            self.now[0] += self.seconds

        self.now[0] += self.preparing
        return toys.Slope(tick), toys.batches(), toys.batch_at(100)

    def result(self) -> Trained:
        raise NotImplementedError

    def run(
        self, folder: Path, budget: float | None = None, resume: bool = True, shared: Path | None = None
    ) -> list[tuple[str, str]]:
        """The turning points of training it."""
        told = list(train_stages(self, folder, budget, resume, clock=lambda: self.now[0], shared=shared))
        return [(t.stage, t.happened) for t in told if t.happened != "step"]


NEW = [("first", "started"), ("first", "finished"), ("second", "started"), ("second", "finished")]


def test_finished_stages_are_reused_and_only_what_changed_is_trained_again(tmp_path: Path) -> None:
    before = Two()
    assert before.run(tmp_path) == NEW
    again = Two()
    assert again.run(tmp_path) == [("first", "reused"), ("second", "reused")]
    assert all(torch.equal(again.kept[s][k], before.kept[s][k]) for s in before.kept for k in before.kept[s])
    assert Two(first=toys.loop(log_every=3), shared=(2.0, 1.0)).run(tmp_path) == [("first", "reused"), ("second", "reused")]

    other = Two(second=toys.loop(learning_rate=0.5))
    assert other.run(tmp_path) == [("first", "reused"), ("second", "started"), ("second", "finished")]
    assert not torch.equal(other.kept["second"]["weight"], before.kept["second"]["weight"])
    assert Two(first=toys.loop(learning_rate=0.5)).run(tmp_path) == NEW

    back = Two()  # what was put aside is taken out again
    assert back.run(tmp_path) == [("first", "reused"), ("second", "reused")]
    assert torch.equal(back.kept["second"]["weight"], before.kept["second"]["weight"])


def test_runs_take_finished_stages_from_one_another(tmp_path: Path) -> None:
    lent, one, two = tmp_path / "lent", tmp_path / "one", tmp_path / "two"
    before = Two()
    assert before.run(one, shared=lent) == NEW and len(list(lent.iterdir())) == 2
    assert not any((folder / "state").exists() for folder in lent.iterdir())
    again = Two()
    assert again.run(two, resume=False, shared=lent) == [("first", "reused"), ("second", "reused")]
    assert all(torch.equal(again.kept[s][k], before.kept[s][k]) for s in before.kept for k in before.kept[s])
    told = Two(second=toys.loop(learning_rate=0.5)).run(tmp_path / "three", shared=lent)
    assert told == [("first", "reused"), ("second", "started"), ("second", "finished")] and len(list(lent.iterdir())) == 3
    assert Two(second=toys.loop(learning_rate=0.5)).run(tmp_path / "alone") == NEW


def test_a_stage_of_another_budget_is_not_taken(tmp_path: Path) -> None:
    lent, timed = tmp_path / "lent", {"first": toys.loop(steps=None), "second": toys.loop(steps=None)}
    for budget, known in ((60.0, False), (60.0, True), (90.0, False)):
        run = tmp_path / f"{budget}-{known}"
        told = Two(seconds=1.0, **timed).run(run, budget, shared=lent)
        assert told == ([("first", "reused"), ("second", "reused")] if known else NEW)


def test_a_half_finished_stage_is_not_replaced_by_a_shared_one(tmp_path: Path) -> None:
    lent = tmp_path / "lent"
    Two().run(tmp_path / "one", shared=lent)
    _stop(Two(), tmp_path / "two", "first", 6)
    assert Two().run(tmp_path / "two", shared=lent) == [*NEW[:2], ("second", "reused")]


def test_a_folder_with_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    Two().run(tmp_path)
    with pytest.raises(InputError, match="holds a run"):
        Two().run(tmp_path, resume=False)
    assert Two().run(tmp_path / "new", resume=False) == NEW


def test_an_unfinished_stage_of_another_recipe_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    _stop(Two(), tmp_path, "second", 6)
    other = Two(second=toys.loop(learning_rate=0.5), preparing=60.0)
    with pytest.raises(InputError, match="holds a run of another"):
        other.run(tmp_path)
    assert other.now == [0.0]
    with pytest.raises(InputError, match="steps for stage first or a time budget"):
        Two(first=toys.loop(steps=None)).run(tmp_path / "new")
    whole, mended = Two(), Two()
    whole.run(tmp_path / "whole")
    assert mended.run(tmp_path) == [("first", "reused"), ("second", "started"), ("second", "finished")]
    assert torch.equal(mended.kept["second"]["weight"], whole.kept["second"]["weight"])


def _stop(workshop: Two, folder: Path, stage: str, step: int, budget: float | None = None) -> None:
    """Close the run after a step of a stage, as Ctrl-C does."""
    with closing(train_stages(workshop, folder, budget, True, clock=lambda: workshop.now[0])) as told:  # type: ignore
        for report in told:
            if report.stage == stage and report.report is not None and report.report.step == step:
                return


def test_more_steps_train_on_and_fewer_are_refused(tmp_path: Path) -> None:
    Two().run(tmp_path)
    longer = Two(second=toys.loop(steps=16))
    told: list[StageReport] = list(train_stages(longer, tmp_path, resume=True))
    steps = [t.report.step for t in told if t.report is not None]
    assert steps == list(range(11, 17))
    note = read_note(stage_folder(tmp_path, "second"))
    assert note is not None and note["steps"] == 16
    assert longer.run(tmp_path) == [("first", "reused"), ("second", "reused")]
    with pytest.raises(InputError, match="16 steps or more"):
        Two().run(tmp_path)


def test_a_crash_between_weights_and_note_does_not_pass_for_a_finished_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from giverny.pipelines import train

    def crash(*_: Any) -> None:
        raise OSError("no more room")

    Two().run(tmp_path)
    monkeypatch.setattr(train, "atomic_write", crash)
    with pytest.raises(OSError, match="no more room"):
        Two(second=toys.loop(steps=16)).run(tmp_path)
    monkeypatch.undo()
    assert read_note(stage_folder(tmp_path, "second")) is None
    assert Two(second=toys.loop(steps=16)).run(tmp_path)[-2:] == [("second", "started"), ("second", "finished")]
    (stage_folder(tmp_path, "second") / "weights.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"readable weights.*done\.json"):
        Two(second=toys.loop(steps=16)).run(tmp_path)


def test_float64_stages_leave_float32_weights(tmp_path: Path) -> None:
    made = Two(first=toys.loop(precision="float64"))
    made.run(tmp_path)
    assert made.kept["first"]["weight"].dtype == torch.float32


# -- the budget of all stages ---------------------------------------------------------------------------------------------


def test_a_budget_is_shared_and_kept_over_all_stages(tmp_path: Path) -> None:
    free = toys.loop(steps=None)
    made = Two(free, free, seconds=2.0, preparing=20.0)
    made.run(tmp_path, budget=600.0)
    assert abs(made.now[0] - 600) <= 0.05 * 600
    notes = [read_note(stage_folder(tmp_path, s)) for s in ("first", "second")]
    first, second = (n["seconds"] for n in notes if n is not None)
    assert first == pytest.approx((600 - FINISH) / 4, rel=0.05) and first + second == pytest.approx(600 - FINISH, rel=0.02)


def test_a_stage_with_steps_of_its_own_leaves_what_it_does_not_need(tmp_path: Path) -> None:
    made = Two(toys.loop(steps=5), toys.loop(steps=None), seconds=1.0)
    made.run(tmp_path, budget=300.0)
    assert abs(made.now[0] - 300) <= 0.05 * 300


@pytest.mark.parametrize(("stage", "step"), [("first", 12), ("second", 30)])
def test_a_stopped_run_does_not_get_its_budget_anew(stage: str, step: int, tmp_path: Path) -> None:
    free = toys.loop(steps=None)
    whole = Two(free, free, seconds=4.0)
    whole.run(tmp_path / "whole", budget=600.0)
    part = Two(free, free, seconds=4.0)
    _stop(part, tmp_path / "part", stage, step, 600.0)
    later = Two(free, free, seconds=4.0)
    later.run(tmp_path / "part", budget=600.0)
    assert abs(part.now[0] + later.now[0] - 600) <= 0.05 * 600
    for name in ("first", "second"):
        assert torch.equal(later.kept[name]["weight"], whole.kept[name]["weight"])


def test_stages_reused_from_a_longer_run_leave_the_others_something(tmp_path: Path) -> None:
    free = toys.loop(steps=None)
    Two(free, free, seconds=30.0).run(tmp_path, budget=6000.0)
    short = Two(free, toys.loop(steps=None, learning_rate=0.5), seconds=1.0)
    assert short.run(tmp_path, budget=200.0)[0] == ("first", "reused")
    assert 80 < short.now[0] < 160


# -- a real family ----------------------------------------------------------------------------------------------------------


def _diffusion(run: Path, **changes: Any) -> tuple[list[tuple[str, str]], Any]:
    """Train the tiny diffusion model. changes: of its denoiser's loop, or by stage as {"autoencoder": {...}}."""
    recipe: Any = PAINTER.tiny()
    for stage, loop in changes.items():
        old = getattr(recipe, stage)
        recipe = recipe.model_copy(update={stage: old.model_copy(update={"loop": old.loop.model_copy(update=loop)})})
    workshop: Any = PAINTER.workshop(recipe, ToyShapes(count=64, size=16), run / "cache", World(), torch.device("cpu"))
    told = [(t.stage, t.happened) for t in train_stages(workshop, run, resume=True) if t.happened != "step"]
    return told, workshop


def test_a_diffusion_model_trains_again_what_depends_on_a_change(tmp_path: Path) -> None:
    told, first = _diffusion(tmp_path)
    stages = ("autoencoder", "text", "denoiser", "decoder")
    assert told == [(s, h) for s in stages for h in ("started", "finished")]
    told, second = _diffusion(tmp_path)
    assert told == [(s, "reused") for s in stages]
    ours, theirs = (w.parts().networks() for w in (first, second))
    for name, network in ours.items():
        assert all(torch.equal(v, theirs[name].state_dict()[k]) for k, v in network.state_dict().items())
    (cache,) = (tmp_path / "cache").glob("latents-*.npy")
    written = cache.stat().st_mtime_ns

    told, _ = _diffusion(tmp_path, denoiser={"learning_rate": 3e-3})
    reused = [("autoencoder", "reused"), ("text", "reused")]
    assert told == [*reused, ("denoiser", "started"), ("denoiser", "finished"), ("decoder", "reused")]
    assert [p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("latents-*.npy")] == [written]
    told, _ = _diffusion(tmp_path, autoencoder={"learning_rate": 3e-3})
    assert told[2] == ("text", "reused") and told[-1] == ("decoder", "finished") and len(told) == 7
    assert len(list((tmp_path / "cache").glob("latents-*.npy"))) == 2
    # Other weights of the same recipe, as a longer budget brings them, make other latents and another denoiser.
    weights = stage_folder(tmp_path, "autoencoder") / "weights.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(weights))
    save_file({k: v * 1.01 for k, v in tensors.items()}, str(weights))
    told, _ = _diffusion(tmp_path, autoencoder={"learning_rate": 3e-3})
    assert told[0] == ("autoencoder", "reused") and told[-1] == ("decoder", "finished")
    assert len(list((tmp_path / "cache").glob("latents-*.npy"))) == 3


def test_latents_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    from giverny.data.loader import Loader

    loader = Loader(ToyShapes(count=10, size=8), size=(8, 8), channels=3, batch=1, seed=0, flip=True)
    path, seen = tmp_path / "latents.npy", []

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(pixels))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return pixels, pixels.abs()

    with pytest.raises(KeyboardInterrupt):
        list(write_latents(path, loader, encode, 5 * 8 * 8))
    assert list(tmp_path.iterdir()) == []
    list(write_latents(path, loader, encode, 5 * 8 * 8))
    array = np.load(path)
    plain = loader.pixels_of(np.arange(10)).numpy()
    assert array.shape == (20, 2, 3, 8, 8)
    assert np.array_equal(array[:10, 0], plain.astype(np.float16))
    assert np.array_equal(array[10:, 0], plain[..., ::-1].astype(np.float16))
    assert seen == [5, 5, 5, 5, 5, 5, 5], "five pictures at a time, the third call broken off"
    before = len(seen)
    assert list(write_latents(path, loader, encode)) == [] and len(seen) == before


def test_a_note_says_what_a_stage_took(tmp_path: Path) -> None:
    Two(seconds=2.0).run(tmp_path)
    note = json.loads((stage_folder(tmp_path, "first") / "done.json").read_text("utf-8"))
    assert note | {"identity": ""} == {
        "identity": "", "steps": 10, "seconds": 20.0, "precision": "float32", "batch": toys.BATCH, "skipped": 0
    }  # fmt: skip
