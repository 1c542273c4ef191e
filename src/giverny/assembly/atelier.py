"""Where experiments are carried out: the names of a cell become trainings, pictures and scores (compare.experiment.Atelier)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..base.contracts import Done, Failed, Instrument, Request, Score, Source
from ..base.errors import InputError, choose
from ..base.images import read_picture
from ..base.infotext import read_size
from ..base.recipe import check, override
from ..checkpoints.model_files import digest_of
from ..checkpoints.native import read_card
from ..compare.cells import Cell, ExperimentRecipe
from ..compare.experiment import Settled
from ..compare.units import picture_path
from ..metrics.scores import KINDS
from ..pipelines.measure import PATTERN, Measured, Shown, measure, start_of
from ..pipelines.pairs import PAIRED, Pairing
from .adapters import digests
from .instruments import cache_folder, open_instrument, open_part
from .opening import family, find_model, open_clip, open_judge, open_painter, published_path
from .reading import load_recipe, open_data, open_source
from .training import train

# Which measure gives which scores; those of words and of judges need no reference.
OF_KINDS = {
    "KID": "kid", "FID": "fid", "MiFID": "mifid", "memorization distance": "mifid", "precision": "manifold",
    "recall": "manifold", "coverage": "manifold", "density": "manifold", "diversity": "diversity", "nearest / real": "nearest",
}  # fmt: skip
OF_PAIRS = (*PAIRED, "untouched")  # beside the picture that painting began from
PATTERNS = {"checkerboard / real": PATTERN}
OF_WORDS = ("CLIP cosine", "CLIPScore", "CLIP percent", "R-precision")
JUDGED = "judged "


def _size(given: Any) -> list[int]:
    size = read_size(str(given)) if isinstance(given, str) else None
    if size is None:
        raise InputError("a size such as 512x768", repr(given))
    return list(size)


def _seed(given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < 2**62:
        raise InputError("a seed: a whole number from 0 on", repr(given))
    return given


def _strength(given: Any) -> float:
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 <= given <= 1:
        raise InputError("a strength from 0 to 1", repr(given))
    return float(given)


# Of a cell's knobs those that are parts of a request. A seed is the first one's, to which a picture's own is added; strength
# is how much is painted anew of the pictures that are given.
ASKED: Mapping[str, Callable[[Any], Any]] = {"negative": str, "size": _size, "seed": _seed, "strength": _strength}
ADAPTERS, GIVEN = "adapters", "given"  # beside them: what pictures depend on as well


class Bench:
    """compare.experiment.Atelier over recipes, models and data by name. Opens each thing once."""

    def __init__(self, recipe: ExperimentRecipe, device: str = "auto", stages: Path | None = None) -> None:
        """stages: where trainings leave finished stages for one another (two cells of one seed may share an autoencoder)."""
        self.recipe, self.device, self.stages = recipe, device, stages
        self._sources: dict[str, Source] = {}
        self._painter: tuple[tuple[Path, str], Any] | None = None  # the one that painted last

    # -- what a cell means ---------------------------------------------------------------------------------------------

    def settle(self, cell: Cell) -> Settled:
        knobs = override({}, cell.knobs)
        asked = {name: read(knobs.pop(name)) for name, read in ASKED.items() if name in knobs}
        model: Mapping[str, Any] | Path
        if cell.model is not None and (path := published_path(cell.model)) is not None:
            model, painter = path, self._opened(path)
            kind, own = family(painter.family), painter.defaults
        elif cell.model is not None:
            model = find_model(cell.model)
            card = read_card(model)
            kind, own = family(card.family), card.knobs
        else:
            checked: Any = load_recipe(str(cell.recipe), cell.overrides, cell.preset)
            kind, own = family(checked.family), getattr(checked, "knobs", {})
            told = checked.model_dump(mode="json", exclude={"budget", "title", "prompts", "licence", "knobs"})
            model = {"recipe": told, "data": self._data(checked.data).fingerprint, "giverny": version("giverny")}
            if (other := getattr(checked.data, "photographs", None)) is not None:
                model |= {"photographs": self._source(other).fingerprint}
        settled = check(kind.knobs, {**own, **knobs}, "knobs").model_dump(mode="json")
        if called := digests([*self.recipe.asked(0, cell)[0], asked.get("negative", "")]):
            asked[ADAPTERS] = called
        if cell.given and self.recipe.given is not None:
            asked = {GIVEN: self.given.fingerprint, "strength": self.recipe.given.strength, **asked}
        elif "strength" in asked:
            raise InputError("a strength where painting begins from given pictures", f"one of {cell.label}, which has none")
        instruments = {name: self._instrument_of(name, GIVEN in asked) for name in self.recipe.measure}
        return Settled(model, {**settled, **asked}, instruments)

    def fingerprint(self, folder: Path) -> str:
        if published_path(folder) is not None:
            return str(self._opened(folder).fingerprint)
        return read_card(find_model(folder)).fingerprint

    def _opened(self, model: Path) -> Any:
        """The painter of a model: the last one is kept, as long as its files are what they were."""
        published = published_path(model) is not None
        mark = model, digest_of(model) if published else read_card(find_model(model)).fingerprint
        if self._painter is None or self._painter[0] != mark:
            self._painter = None  # there may be no room for two
            self._painter = mark, open_painter(model if published else find_model(model), self.device)
        return self._painter[1]

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = open_source(name)
        return self._sources[name]

    def _data(self, data: Any) -> Source:
        """What a recipe learns from, one set or several."""
        named = " and ".join([*getattr(data, "sources", (data.source,)), *getattr(data, "sets", ())])
        if named not in self._sources:
            self._sources[named] = open_data(data)
        return self._sources[named]

    def _instrument_of(self, name: str, given: bool) -> dict[str, Any] | None:
        """All that a score depends on but the pictures; None where these cannot have it. given: they were begun from others."""
        of = self.recipe.instrument
        if name in OF_PAIRS:
            if self.recipe.given is None:
                raise InputError(f"[given] for the score {name!r}", "none", "Name the pictures that painting begins from.")
            return {"giverny": version("giverny"), "given": self.given.fingerprint} if given else None
        if name in PATTERNS:
            told = {"reference": self.reference.fingerprint, "most": of.most}
        elif name in OF_KINDS:
            told = {"reference": self.reference.fingerprint, "most": of.most, **self.instrument.conditions()}
        elif name in OF_WORDS:
            told = {"clip": of.words, "fingerprint": self.fingerprint(find_model(str(of.words)))} if of.words else {}
        elif name.startswith(JUDGED):
            told = self.judge.conditions() if self.judge is not None else {}
        else:
            choose(name, (*OF_KINDS, *PATTERNS, *OF_PAIRS, *OF_WORDS, f"{JUDGED}<attribute>", f"{JUDGED}all"), "score")
        if not told:
            entry = "words" if name in OF_WORDS else "judge"
            raise InputError(f"instrument.{entry} for the score {name!r}", "none", "Name a model in [instrument].")
        return {"giverny": version("giverny"), **told}

    # -- instruments ---------------------------------------------------------------------------------------------------

    @cached_property
    def instrument(self) -> Instrument:
        return open_instrument(self.recipe.instrument.features, self.recipe.instrument.resizer, self.device)

    @cached_property
    def reference(self) -> Source:
        named = self.recipe.instrument.reference
        if named is None:
            if self.recipe.recipe is None:
                raise InputError(
                    "instrument.reference: real pictures to measure against", "none, and no recipe whose data to take"
                )
            checked: Any = load_recipe(self.recipe.recipe, self.recipe.overrides, self.recipe.preset)
            named = checked.data.source
        return open_part(str(named), self.recipe.instrument.split)

    @cached_property
    def given(self) -> Source:
        assert self.recipe.given is not None
        return open_part(self.recipe.given.source, self.recipe.given.split)

    @cached_property
    def judge(self) -> Any:
        named = self.recipe.instrument.judge
        return open_judge(named, self.device) if named else None

    @cached_property
    def words(self) -> Any:
        named = self.recipe.instrument.words
        return (open_clip(named, self.device), {"clip": named}) if named else None

    # -- work ----------------------------------------------------------------------------------------------------------

    def train(self, training: Mapping[str, Any], seed: int, budget: float, folder: Path) -> Generator[Any, None, None]:
        recipe: Any = load_recipe(seeded(training["recipe"], seed))
        source = self._data(recipe.data)
        self._painter = None
        told = train(recipe, folder, budget, True, self.device, source, self.recipe.clock, self.stages)
        with closing(told) as told:  # type: ignore[type-var]
            yield from told

    def paint(
        self, model: Path, prompts: Sequence[str], knobs: Mapping[str, Any], seeds: Sequence[int], folder: Path
    ) -> Generator[Any, None, None]:
        more = {name: knobs[name] for name in ASKED if name in knobs}
        first, strength = more.pop("seed", 0), more.pop("strength", 1.0)
        settings = {name: value for name, value in knobs.items() if name not in (*ASKED, ADAPTERS, GIVEN)}
        painter, begun = self._opened(model), GIVEN in knobs
        if begun and "size" not in more:
            more["size"] = painter.size
        asked = []
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            if not picture_path(folder, i).is_file():
                start = start_of(self.given, i, strength) if begun else None
                asked.append(Request(prompt=prompt, seed=first + seed, knobs=settings, id=str(i), start=start, **more))
        with closing(painter.paint(asked)) as events:
            for event in events:
                if isinstance(event, Failed):
                    raise InputError("a picture", event.reason)
                if isinstance(event, Done):
                    event.artifact.save(picture_path(folder, int(event.id)))
                yield event

    def measure(
        self, pictures: Path, prompts: Sequence[str], seeds: Sequence[int], instruments: Mapping[str, Any]
    ) -> list[Score]:
        of = {**OF_KINDS, **PATTERNS}
        kinds = list(dict.fromkeys(kind for kind in (*KINDS, PATTERN) if kind in {of.get(name) for name in instruments}))
        worded, judged = any(name in OF_WORDS for name in instruments), any(name.startswith(JUDGED) for name in instruments)

        def shown() -> Iterator[Shown]:
            for number, prompt in enumerate(prompts):
                yield Shown(read_picture(picture_path(pictures, number).read_bytes()), prompt, number=number)

        scores: list[Score] = []
        if any(name in OF_PAIRS for name in instruments):
            pairing = Pairing()
            for one in shown():
                pairing.begun(start_of(self.given, one.number), one.pixels)
            scores += pairing.scores()
        if any(name not in OF_PAIRS for name in instruments):
            found: Measured = measure(
                shown(), self.reference, self.instrument, kinds, space=self.words if worded else None,
                judge=self.judge if judged else None, cache=cache_folder(), most=self.recipe.instrument.most,
                count=len(prompts), conditions={"seeds": [min(seeds), max(seeds)]},
            )  # fmt: skip
            scores += found.scores
        by_name = {score.name: score for score in scores}
        return [by_name[choose(name, by_name, "score")] for name in instruments]


def seeded(recipe: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The same recipe with this seed in every loop."""
    found = {key: seeded(value, seed) if isinstance(value, Mapping) else value for key, value in recipe.items()}
    return found | ({"loop": {**found["loop"], "seed": seed}} if found.get("loop") is not None else {})
