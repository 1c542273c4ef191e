"""What an experiment asks, as TOML: a base, axes of changes, seeds, prompts, scores; the cells of it; and the table it ends in.

A cell is one value of every axis; the first values together are the base cell, which the others are held against. A
positive control is a cell made worse on purpose, the base unless it says another. Whoever carries a cell out makes of it
what its names mean (`experiment.Atelier`); here they are words.

`base = "other.toml"` at the head of the file is the usual way to say only what differs from another experiment.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..base.contracts import Frozen, Score
from ..base.errors import InputError, choose
from ..base.files import atomic_write
from ..base.recipe import Recipe, check, override, read_recipe
from ..base.times import seconds
from .statistics import Scored, Verdict, Worse, judge

Clock = Literal["wall", "processor"]
Seed = Annotated[int, Field(ge=0, lt=2**40)]

WAITING = "not run yet"  # the reason of a row that nobody has tried
APART = 1_000_000  # between the painting seeds of one seed and the next


def _named(value: str) -> str:
    if not value or value != value.strip() or re.search("[=,\n]", value):
        raise ValueError("wanted a name without '=' and ',', and without spaces at its ends")
    return value


Name = Annotated[str, AfterValidator(_named)]


def _seconds(value: Any) -> Any:
    """A time such as 90s, 10m or 1.5h in seconds; what is no text passes."""
    try:
        return seconds(value) if isinstance(value, str) else value
    except InputError as error:
        raise ValueError(f"wanted {error.wanted}") from None  # what was given is said by `check`


def _assigned(values: tuple[str, ...]) -> tuple[str, ...]:
    override({}, values)  # refuses what is no assignment
    return values


Assignments = Annotated[tuple[str, ...], AfterValidator(_assigned)]


class Change(Frozen):
    """What a cell has that the base has not."""

    model: str | None = Field(None, description="a finished model instead of a training")
    recipe: str | None = Field(None, description="another recipe to train")
    preset: str | None = Field(None, description="of that recipe, or of the experiment's")
    overrides: Assignments = Field((), description='entries of the recipe, such as "denoiser.loop.batch=64"')
    knobs: Assignments = Field(
        (), description='settings of the painting, such as "guidance=3", and of what is asked for ("negative=...", '
        '"size=512x768", "seed=5"); these train nothing anew',
    )  # fmt: skip
    words: dict[Annotated[str, Field(min_length=1)], str] = Field(
        default_factory=dict, description="what stands in the prompts -> what stands there instead"
    )
    given: bool = Field(True, description="begin from the experiment's given pictures, where it has some")
    seeds: int | None = Field(None, ge=1, description="of the seeds the first so many: 1 gives a value, and decides nothing")
    against: str | None = Field(
        None, description="the value it is compared with, instead of the first; for a control: that it is a worse version of"
    )
    published: str = Field("", description="what a publication says of it, to stand beside what is found")

    @property
    def touched(self) -> set[str]:
        """What is changed, whatever it is changed to."""
        named = {f"{kind}.{a.partition('=')[0].strip()}" for kind in ("overrides", "knobs") for a in getattr(self, kind)}
        whole = {name for name in ("model", "recipe", "preset", "seeds", "against") if getattr(self, name) is not None}
        return named | {f"words.{part}" for part in self.words} | whole | (set() if self.given else {"given"})


class Axis(Frozen):
    """One thing that is varied. Its first value belongs to the base cell."""

    name: Name
    values: dict[Name, Assignments | Change] = Field(min_length=1, description="a list is one of overrides")

    @property
    def changes(self) -> dict[str, Change]:
        return {n: value if isinstance(value, Change) else Change(overrides=value) for n, value in self.values.items()}

    @property
    def touched(self) -> set[str]:
        return set[str]().union(*(change.touched for change in self.changes.values()))


class Control(Change):
    """A cell known to be worse than the base, or than the one of the value it stands `against`. An instrument that does not
    find it so cannot judge that cell."""

    name: Name
    share: float = Field(1.0, gt=0, le=1, description="of the budget of the others")
    score: str | None = Field(None, description="the score that has to find it worse; None: the primary one")
    better: Literal["higher", "lower"] | None = Field(None, description="values of that score")


class Cell(Frozen):
    """One thing to train (or open), paint with and measure, for every seed."""

    values: dict[str, str]  # axis -> value
    control: str | None = None
    recipe: str | None
    preset: str | None = None
    model: str | None  # where there is one, nothing is trained
    overrides: tuple[str, ...] = ()
    knobs: tuple[str, ...] = ()
    words: dict[str, str] = Field(default_factory=dict)
    given: bool = True
    seeds: int | None = None
    against: str | None = None  # the label of the cell it is compared with; None: the base
    published: str = ""
    share: float = 1.0

    @property
    def label(self) -> str:
        """How sentences call it."""
        return f"control {self.control}" if self.control is not None else _label(self.values)


def _label(values: Mapping[str, str]) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in values.items()) or "base"


class GivenRecipe(Frozen):
    """Pictures that painting begins from, the k-th picture of a row from the k-th of these, and so round again."""

    source: str = Field(description="a named set or a path")
    split: str = Field("test", description="part of a named set")
    strength: float = Field(1.0, ge=0, le=1, description="0 the picture as it is, 1 painted anew")


class InstrumentRecipe(Frozen):
    """What looks at the pictures, the same for all cells."""

    reference: str | None = Field(None, description="real pictures: a named set or a path; none: the data of the recipe")
    split: str = Field("test", description="part of a named set that is the reference")
    most: int | None = Field(None, ge=2, description="pictures of it to look at; none: all")
    features: str = Field("auto", description="inception, vgg, pixels, clip:MODEL, or a judge")
    resizer: str = Field("clean", description="how pictures come to its size")
    judge: str | None = Field(None, description='a classifier, for scores such as "judged colour"')
    words: str | None = Field(None, description='a model whose CLIP says how well words fit, for scores such as "CLIP cosine"')


class ExperimentRecipe(Recipe):
    """Cells x seeds, each trained under one budget, painted with one list of prompts and measured by the same scores."""

    title: str
    question: str = Field(description="what is to be decided")
    recipe: str | None = Field(None, description="what is trained: a recipe's name or file")
    preset: str | None = Field(None, description="of the recipe")
    model: str | None = Field(None, description="instead of a recipe: a finished model, of which only knobs can be varied")
    overrides: Assignments = Field((), description="of the recipe, in all cells")
    knobs: Assignments = Field((), description="of the painting, in all cells")
    budget: Annotated[float, BeforeValidator(_seconds)] | None = Field(
        None, gt=0, description='of each training, the same for all: seconds, or "10m"'
    )
    clock: Clock = Field(
        "wall", description="what counts a budget's seconds: the clock on the wall, or the processor's own (summed over "
        "threads), which other programs of the machine hardly disturb"
    )  # fmt: skip
    seeds: tuple[Seed, ...] = Field(min_length=1, description="each trains and paints every cell once")
    prompts: tuple[str, ...] = Field(min_length=1, description="pictures take them in turn")
    pictures: int = Field(ge=1, le=APART, description="of each cell and seed")
    measure: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), description="names of scores")
    primary: str | None = Field(None, description="the score that decides")
    better: Literal["higher", "lower"] | None = Field(None, description="values of it")
    instrument: InstrumentRecipe = InstrumentRecipe()
    given: GivenRecipe | None = Field(None, description="of painters that begin from pictures")
    against: Literal["base", "each other"] = Field("base", description="what every cell is compared with")
    axis: tuple[Axis, ...] = ()
    control: tuple[Control, ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> ExperimentRecipe:
        if (self.recipe is None) == (self.model is None):
            raise ValueError("wanted a recipe or a model, one of the two")
        axes, controls = [axis.name for axis in self.axis], [control.name for control in self.control]
        for what, names in ("axes", axes), ("controls", controls), ("seeds", self.seeds), ("scores", self.measure):
            twice = [str(name) for name, times in Counter[Any](names).items() if times > 1]
            if twice:
                raise ValueError(f"wanted {what} that differ; {', '.join(twice)} stands there twice")
        taken = [name for name, times in Counter(columns(self)).items() if times > 1]
        if taken:
            raise ValueError(f"wanted axes and scores with names of their own; the table has a column {taken[0]} already")
        if self.primary is None and (self.measure or self.control):
            raise ValueError("wanted a primary score: it decides, and controls are tested with it")
        if self.primary is not None:
            choose(self.primary, self.measure, "score that is measured, as primary")
            if self.better is None:
                raise ValueError(f"wanted better = 'higher' or 'lower': which values of {self.primary} are")
        for one, two in combinations(self.axis, 2):
            pairs = product(one.touched, two.touched)  # a table changed by one holds what another changes in it
            both = sorted(max(a, b, key=len) for a, b in pairs if f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}."))
            if both:
                raise ValueError(f"wanted axes that change different things; {one.name} and {two.name} both change {both[0]}")
        for control in self.control:
            if control.score is not None:
                choose(control.score, self.measure, f"score that is measured, for the control {control.name}")
                if control.better is None:
                    raise ValueError(f"wanted better = 'higher' or 'lower' of {control.score}, for the control {control.name}")
        changes = [*self.control, *(change for axis in self.axis for change in axis.changes.values())]
        for part in dict.fromkeys(part for change in changes for part in change.words):
            if not any(part in prompt for prompt in self.prompts):
                raise ValueError(f"wanted words that stand in a prompt; {part!r} does not")
        for cell in cells(self):
            if cell.recipe is None and cell.preset is not None:
                raise ValueError(f"wanted a preset of a recipe ({cell.label}); a finished model has none")
            if cell.model is not None and (cell.overrides or cell.share != 1):
                raise ValueError(f"wanted knobs alone for a finished model ({cell.label}); overrides and share need a training")
            if cell.model is None and self.budget is None:
                raise ValueError(f"wanted a budget for what is trained ({cell.label})")
        return self

    def seeds_of(self, cell: Cell) -> tuple[int, ...]:
        return self.seeds[: cell.seeds]

    def asked(self, seed: int, cell: Cell | None = None) -> tuple[list[str], list[int]]:
        """The prompt and the painting seed of every picture of a row. All cells are asked the same, but for a cell's words."""
        prompts = [self.prompts[i % len(self.prompts)] for i in range(self.pictures)]
        for part, other in cell.words.items() if cell else ():
            prompts = [prompt.replace(part, other) for prompt in prompts]
        return prompts, [seed * APART + i for i in range(self.pictures)]


def read_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentRecipe:
    """A checked experiment from a TOML file. Raises InputError that names every mistake."""
    return check(ExperimentRecipe, override(read_recipe(Path(path)), overrides), str(path))


def cells(recipe: ExperimentRecipe) -> list[Cell]:
    """Every combination of values, the base cell first, the last axis running fastest; then the controls."""
    found = []
    for values in product(*(axis.changes.items() for axis in recipe.axis)):
        names = {axis.name: name for axis, (name, _) in zip(recipe.axis, values, strict=True)}
        changes = [change for _, change in values]
        found.append(_cell(recipe, names, changes, _against(recipe, names, changes)))
    return found + [_control(recipe, control) for control in recipe.control]


def _control(recipe: ExperimentRecipe, control: Control) -> Cell:
    """The cell that a control makes worse, the base unless it says another, and the control's own change."""
    names = {axis.name: next(iter(axis.values)) for axis in recipe.axis}
    base = _label(names)
    if control.against is not None:
        known = Counter(value for axis in recipe.axis for value in axis.values)
        choose(control.against, list(known), f"value of an axis, for {control.name}")
        if known[control.against] > 1:
            raise ValueError(f"wanted a value that one axis alone has, for {control.name}; several have {control.against}")
        names |= {axis.name: control.against for axis in recipe.axis if control.against in axis.values}
    changes = [axis.changes[names[axis.name]] for axis in recipe.axis]
    return _cell(recipe, names, [*changes, control], _label(names) if _label(names) != base else None, control)


def _cell(
    recipe: ExperimentRecipe,
    names: dict[str, str],
    changes: Sequence[Change],
    against: str | None,
    control: Control | None = None,
) -> Cell:
    def last(name: str, otherwise: Any = None) -> Any:
        return next((value for change in reversed(changes) if (value := getattr(change, name)) is not None), otherwise)

    model = last("model", None if last("recipe") else recipe.model)
    trained = last("recipe", recipe.recipe) if model is None else None
    return Cell(
        values=names,
        control=control.name if control else None,
        recipe=trained,
        preset=last("preset", recipe.preset if trained == recipe.recipe else None) if model is None else last("preset"),
        model=model,
        overrides=sum((change.overrides for change in changes), recipe.overrides),
        knobs=sum((change.knobs for change in changes), recipe.knobs),
        words={part: other for change in changes for part, other in change.words.items()},
        given=recipe.given is not None and all(change.given for change in changes),
        seeds=last("seeds"),
        against=against,
        published="; ".join(c.published for c in ([control] if control else changes) if c.published),
        share=control.share if control else 1.0,
    )


def _against(recipe: ExperimentRecipe, names: dict[str, str], changes: Sequence[Change]) -> str | None:
    """The label of the cell that a cell names to be compared with."""
    others = dict(names)
    for axis, change in zip(recipe.axis, changes, strict=True):
        if change.against is not None:
            others[axis.name] = choose(change.against, axis.values, f"value of {axis.name}, to compare with")
    return _label(others) if others != names else None


# ---------------------------------------------------------------------------------------------------------------------
# The answer


class Row(Frozen):
    """What came of one cell at one seed. training, painting: names of the units, where the work lies."""

    label: str
    values: dict[str, str]  # axis -> value
    control: str | None = None
    seed: int
    scores: tuple[Score, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)  # of the training and of the painting
    fingerprint: str = ""  # of the model that painted
    training: str = ""
    painting: str = ""
    reason: str | None = None  # why scores are missing


class Table(Frozen):
    """An experiment's answer. A number stands here with its interval and conditions, a cell that failed with its reason."""

    experiment: ExperimentRecipe
    rows: tuple[Row, ...]  # cell by cell, the controls last
    instrument: str  # whether the primary score can judge here
    controls: tuple[Verdict, ...]
    verdicts: tuple[Verdict, ...]

    def csv(self) -> str:
        """One line per row; of a score its value, the ends of its interval, and its conditions as JSON."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(columns(self.experiment))
        for row in self.rows:
            found = {score.name: score for score in row.scores}
            numbers: list[Any] = []
            for name in self.experiment.measure:
                score = found.get(name)
                ends = score.interval if score and score.interval else ("", "")
                numbers += [score.value, *ends, json.dumps(score.conditions)] if score else [""] * 4
            spent = [row.seconds.get(kind, "") for kind in ("training", "painting")]
            last = [*spent, row.fingerprint, row.training, row.painting, row.reason or ""]
            values = [row.values[axis.name] for axis in self.experiment.axis]
            lines.writerow([*values, row.control or "", row.seed, *numbers, *last])
        return text.getvalue()

    def write(self, out: Path) -> None:
        """`table.json` and `table.csv`, each whole or not at all."""
        atomic_write(out / "table.json", self.model_dump_json(indent=2) + "\n")
        atomic_write(out / "table.csv", self.csv())


def columns(recipe: ExperimentRecipe) -> list[str]:
    """Headings of the table as CSV."""
    scores = [f"{score}{part}" for score in recipe.measure for part in ("", " low", " high", " conditions")]
    spent = ["training seconds", "painting seconds"]
    axes = [axis.name for axis in recipe.axis]
    return [*axes, "control", "seed", *scores, *spent, "fingerprint", "training", "painting", "reason"]


def tabulate(recipe: ExperimentRecipe, rows: Sequence[Row]) -> Table:
    """The table of rows, cell by cell, a row for every seed; and what may be said of them."""
    controls: list[Verdict] = []
    verdicts: list[Verdict] = []
    instrument = "nothing is measured"
    if recipe.primary is not None and recipe.better is not None:
        primary = Scored(recipe.primary, _outcomes(rows, recipe.primary), recipe.better)
        known = cells(recipe)
        own = {c.name: Scored(c.score, _outcomes(rows, c.score), c.better) for c in recipe.control if c.score and c.better}
        base = known[0].label
        worse = {c.label: Worse(c.against or base, own.get(c.control, primary)) for c in known if c.control is not None}
        # One seed where others have more is meant to show a direction, and costs those that decide nothing.
        able = [cell for cell in known if cell.control is None and len(recipe.seeds_of(cell)) > min(1, len(recipe.seeds) - 1)]
        if recipe.against == "base":
            pairs = [(cell.against or base, cell.label) for cell in able if cell.label != base]
        else:
            pairs = list(combinations([cell.label for cell in able], 2))
        beside = {cell.label: cell.against or base for cell in known if cell.control is None}
        instrument, controls, verdicts = judge(primary, pairs, base, worse, beside)
    return Table(experiment=recipe, rows=rows, instrument=instrument, controls=controls, verdicts=verdicts)


def _outcomes(rows: Sequence[Row], score: str | None) -> dict[str, dict[int, float | str]]:
    """{label: {seed: the score's value, or why there is none}}"""
    found: dict[str, dict[int, float | str]] = {}
    for row in rows:
        value = next((each.value for each in row.scores if each.name == score), None)
        found.setdefault(row.label, {})[row.seed] = (row.reason or f"no {score}") if value is None else value
    return found
