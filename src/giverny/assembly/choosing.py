"""The checkpoints that a run has kept, measured one by one, and the best of them taken as the run's model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..base.contracts import Score, Source, StageJob, Trained
from ..base.errors import InputError, choose
from ..base.files import atomic_write
from ..base.recipe import read_recipe
from ..base.runtime import pick_device
from ..checkpoints.native import read_card, write_model
from ..compare.losses import Foretold, foretold_by
from ..compare.report import CHECKPOINTS, write_report
from ..data.parted import Chosen
from ..metrics.scores import KINDS
from ..pipelines.measure import Painted, measure
from ..pipelines.pairs import Told, quiet
from ..pipelines.train import by_module, read_artefact, stage_folder
from ..training.log import read_log
from ..training.parallel import World
from ..training.state import checkpoints_of
from .atelier import JUDGED, OF_KINDS
from .instruments import cache_folder, open_instrument, open_part
from .opening import family, open_judge, open_painter
from .reading import load_recipe, open_data
from .training import MACHINE, card_of

COUNT = 100  # pictures of a painter that begins from nothing
SAID = ("n", "n_reference", "reference", "features", "given", "size", "rows")  # of a score's conditions, on the card


@dataclass(frozen=True)
class Looked:
    """A checkpoint and its scores."""

    step: int
    scores: tuple[Score, ...]

    def value(self, score: str) -> float:
        by_name = {one.name: one.value for one in self.scores}
        return by_name[choose(score, by_name, "score")]


@dataclass(frozen=True)
class Choice:
    """All checkpoints, the best of them, and what that rests on."""

    by: str
    better: Literal["higher", "lower"]
    looked: Sequence[Looked]
    best: Looked
    late: tuple[float, float]  # mean and standard deviation over the last third: how much it hangs on where a run ends
    foretold: Sequence[Foretold]  # which of the run's own losses go with the score


def better_of(score: str) -> Literal["higher", "lower"]:
    """Which values of a score are better. Raises InputError for one by which nothing can be chosen."""
    if score.startswith(JUDGED):
        return "higher"
    return KINDS[OF_KINDS[choose(score, OF_KINDS, "score to choose by")]].better


def best_of(looked: Sequence[Looked], by: str) -> Looked:
    """The checkpoint with the best value; of equal ones the later."""
    sign = 1 if better_of(by) == "higher" else -1
    return max(looked, key=lambda one: (sign * one.value(by), one.step))


@dataclass
class Run:
    """A run folder with checkpoints, opened by its recipe. stage: the last that has any, of which one is chosen."""

    folder: Path
    device: str = "auto"

    def __post_init__(self) -> None:
        path = self.folder / "recipe.toml"
        if not path.is_file():
            raise InputError("a run folder, with its recipe", f"{self.folder}", "It is made by `giverny train`.")
        self.recipe: Any = load_recipe(read_recipe(path))
        stages = [name for name in self._workshop().shares() if checkpoints_of(stage_folder(self.folder, name))]
        if not stages:
            remedy = "Train with loop.checkpoints = 20, or any other number of them."
            raise InputError("a run that has kept checkpoints", f"{self.folder}, with none", remedy)
        self.stage = stages[-1]

    @cached_property
    def source(self) -> Source:
        return open_data(self.recipe.data)

    def _workshop(self) -> Any:
        make = family(self.recipe.family).workshop
        return make(self.recipe, self.source, self.folder / "cache", World(), pick_device(self.device))

    @property
    def checkpoints(self) -> dict[int, Path]:
        return checkpoints_of(stage_folder(self.folder, self.stage))

    @cached_property
    def held(self) -> Source | None:
        """Given pictures that training did not see; None where painting begins from nothing."""
        if family(self.recipe.family).task != "picture to picture":
            return None
        given: Source = self.source.given  # type: ignore[attr-defined]
        return Chosen(given, [int(row) for row in self._workshop().held_given], "held-out")

    def trained(self, step: int) -> Trained:
        """What the run would have come to, had it ended with this checkpoint."""
        path = self.checkpoints[step]
        workshop = self._workshop()
        for job in workshop.jobs():
            job.keep(self._tensors(job, path))
        made: Trained = workshop.result()
        return made

    def _tensors(self, job: StageJob, path: Path) -> Any:
        if job.name != self.stage:
            found = read_artefact(stage_folder(self.folder, job.name), job.identity)
            if found is None:
                raise InputError(f"a finished stage {job.name} of this recipe", f"none in {self.folder}", "Resume the run.")
            return found
        try:
            return by_module(load_file(str(path)))
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"a readable checkpoint {path.name}", str(error), "Remove it, and choose from the others."
            ) from error

    def write(self, step: int, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write the model of a checkpoint. facts: for its card."""
        made, place = self.trained(step), pick_device(self.device)
        card = card_of(self.recipe, self.source, made, self.folder, place)
        told = {**card.training, **self._machine(), "checkpoint": {"step": step, "of": list(self.checkpoints), **facts}}
        write_model(folder, card.model_copy(update={"training": told}), made.networks, made.extras)

    def _machine(self) -> dict[str, Any]:
        """What the run trained on, where it has ended: the machine that chooses may be another one."""
        known = read_card(self.folder / "model").training if (self.folder / "model" / "card.json").is_file() else {}
        return {key: known[key] for key in ("device", "clock", *MACHINE) if key in known}

    def look(
        self,
        by: str = "KID",
        reference: str | None = None,  # None: what the recipe learns to paint
        split: str = "train",
        features: str = "auto",
        judge: str | None = None,
        prompt: str | None = None,  # what pictures ought to show, for the judge and for painters that read words
        kinds: Sequence[str] = ("kid", "fid", "mifid"),
        told: Told = quiet,
    ) -> Iterator[Looked]:
        """Measure every checkpoint, each with the same pictures: those held out, where it begins from pictures."""
        better_of(by)
        real = open_part(reference or str(self.recipe.data.source), split)
        instrument, judging = open_instrument(features, device=self.device), open_judge(judge, self.device) if judge else None
        held = self.held
        count = len(held) if held is not None else COUNT
        prompts = (prompt,) if prompt is not None else self.recipe.prompts or ("",)
        asked = [(prompts[i % len(prompts)], "") for i in range(count)]
        whole = len(self.checkpoints) * count
        for number, step in enumerate(self.checkpoints):

            def moved(text: str, done: int, _: int | None, before: int = number * count) -> None:
                told(text, before + done, whole)

            with TemporaryDirectory() as folder:
                self.write(step, Path(folder), {})
                painted = Painted(open_painter(folder, self.device), asked, given=held, size=tuple(self.recipe.data.size))
                found = measure(
                    painted, real, instrument, kinds, judge=judging, cache=cache_folder(), count=count, told=moved
                )  # fmt: skip
            yield Looked(step, found.scores)

    def chosen(self, looked: Sequence[Looked], by: str) -> Choice:
        """What the measured checkpoints come to."""
        values = [one.value(by) for one in looked]
        last = values[-max(2, len(values) // 3) :]
        late = fmean(last), stdev(last) if len(last) > 1 else 0.0
        log = read_log(stage_folder(self.folder, self.stage) / "metrics.jsonl")
        foretold = foretold_by(log, {one.step: one.value(by) for one in looked})
        return Choice(by, better_of(by), looked, best_of(looked, by), late, foretold)

    def take(self, choice: Choice) -> Path:
        """Make the best one the run's model, and tell of all of them in the run's folder and on its page."""
        best = next(score for score in choice.best.scores if score.name == choice.by)
        facts = {"by": choice.by, "value": best.value, "conditions": {k: v for k, v in best.conditions.items() if k in SAID}}
        self.write(choice.best.step, self.folder / "model", facts)
        kept = {
            "stage": self.stage, "by": choice.by, "better": choice.better, "chosen": choice.best.step, "late": choice.late,
            "checkpoints": [
                {"step": one.step, "scores": [score.model_dump(mode="json") for score in one.scores]} for one in choice.looked
            ],
            "foretold": [asdict(one) for one in choice.foretold],
        }  # fmt: skip
        atomic_write(self.folder / CHECKPOINTS, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        write_report(self.folder)
        return self.folder / "model"
