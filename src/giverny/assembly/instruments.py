"""Names of instruments, judges and measurements become objects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ..base.contracts import Instrument, Picture, Score, Source
from ..base.errors import InputError
from ..base.files import fingerprint_tensors
from ..base.runtime import pick_device
from ..base.sheet import grid
from ..base.tensors import unfilled
from ..checkpoints.native import fill, read_card, write_card
from ..data.catalog import CATALOG, open_named
from ..data.folders import FolderSource
from ..data.parted import Chosen
from ..data.weights import at_hand, weights_of
from ..perception import instruments
from ..perception.inception import TAPS, FIDInception
from ..perception.resizers import get_resizer
from ..perception.vgg import LPIPS, VGG16
from ..pipelines.measure import Measured, Painted, from_source, measure, prompts_of
from ..pipelines.pairs import Told, compare_pairs, quiet
from ..pipelines.prompts import read_prompts
from .opening import find_model, open_clip, open_judge, open_painter
from .reading import open_source

INCEPTION, VGG, LINEAR = "inception-2015-12-05", "vgg16", "lpips-vgg"
OVERVIEW = re.compile(r"sheet-\d{5}")  # how `giverny paint` calls its contact sheets
COUNT = 500  # pictures painted where nobody says how many


def open_instrument(name: str = "auto", resizer: str = "clean", device: str = "auto") -> Instrument:
    """What looks at pictures, by name: inception (or inception-64, -192, -768), vgg, pixels, clip:MODEL, or a judge's name or
    folder. "auto": inception where its weights are on this machine, else pixels."""
    place = pick_device(device)
    get_resizer(resizer)  # refused even where what looks has its own
    if name == "auto":
        name = "inception" if at_hand(INCEPTION) else "pixels"
    if name == "pixels":
        return instruments.small_pixels()
    if name == "inception" or name.removeprefix("inception-") in TAPS:
        with unfilled():
            network = FIDInception()
        tensors = weights_of(INCEPTION)
        fill(network, tensors, "Inception")
        tap = name.removeprefix("inception-") if name != "inception" else "2048"
        return instruments.inception(network, fingerprint_tensors(tensors), resizer, tap, str(place))
    if name == "vgg":
        with unfilled():
            tower = VGG16(tops=True)
        tensors = weights_of(VGG)
        fill(tower, tensors, "VGG16")
        return instruments.vgg(tower, fingerprint_tensors(tensors), resizer, str(place))
    if name.startswith("clip:"):
        return ClipEye(name.removeprefix("clip:"), device)
    return open_judge(name, device)


def open_lpips() -> LPIPS:
    """LPIPS with its published weights, of VGG16 and of its own layers."""
    tensors = {f"net.{k}": v for k, v in weights_of(VGG).items() if k.startswith("features.")}
    tensors |= {k.replace(".model.1.", "."): v for k, v in weights_of(LINEAR).items()}
    with unfilled():
        network = LPIPS()
    fill(network, tensors, "LPIPS")
    return network


class ClipEye:
    """contracts.Instrument: the picture tower of a CLIP."""

    resizer = "as in training: covered and cut"

    def __init__(self, model: str, device: str) -> None:
        self.space, self.name = open_clip(model, device), f"clip:{model}"
        self.width = self.space.clip.recipe.shared_width

    def conditions(self) -> dict[str, Any]:
        return {
            "features": self.name, "width": self.width, "resizer": self.resizer,
            "looked_at": f"{self.space.size} x {self.space.size}", "weights": fingerprint_tensors(self.space.clip.state_dict()),
        }  # fmt: skip

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        filled = -len(pixels) % instruments.BATCH  # always batches of one size: see perception/instruments.py
        padded = np.concatenate([pixels, np.zeros((filled, *pixels.shape[1:]), np.uint8)])
        parts = [self.space.pictures(padded[i : i + instruments.BATCH]) for i in range(0, len(padded), instruments.BATCH)]
        return torch.cat(parts)[: len(pixels)].float().cpu()


# ---------------------------------------------------------------------------------------------------------------------
# A measurement


@dataclass
class Measuring:
    """All that a measurement needs, opened."""

    pictures: Painted | Source
    reference: Source
    instrument: Instrument
    space: tuple[Any, Mapping[str, Any]] | None
    judge: Any
    folder: Path | None  # of the model that is measured
    notes: tuple[str, ...]
    count: int | None

    def run(self, kinds: Sequence[str], most: int | None, seed: int, pairs: bool = False, told: Told = quiet) -> Measured:
        if pairs:
            if isinstance(self.pictures, Painted):
                raise InputError("two folders of pictures with --pairs", "a model")
            distance = partial(instruments.perceptual_distance, open_lpips()) if at_hand(VGG) else None
            return Measured(tuple(compare_pairs(self.pictures, self.reference, distance, told)))
        shown = self.pictures if isinstance(self.pictures, Painted) else from_source(self.pictures, self.count)
        return measure(
            shown, self.reference, self.instrument, kinds, space=self.space, judge=self.judge, cache=cache_folder(), most=most,
            count=self.count, conditions={} if isinstance(shown, Painted) else {"pictures": self.pictures.name},  # type: ignore[union-attr]
            seed=seed, told=told,
        )  # fmt: skip

    def draw(self, found: Measured, most: int = 16) -> Picture:
        """The pictures nearest to a reference picture, and that picture below each."""
        chosen = found.nearest[:most]
        if not chosen or isinstance(self.pictures, Painted):
            wanted = "pictures of a folder, with their nearest reference pictures"
            raise InputError(wanted, "a model, or --pairs", "Paint into a folder and measure that.")
        above = [self.pictures.read(ours).pixels for ours, _, _ in chosen]
        below = [self.reference.read(theirs).pixels for _, theirs, _ in chosen]
        labels = [f"distance {d:.3g}" for _, _, d in chosen] + [""] * len(below)
        return Picture(grid([*above, *below], columns=len(chosen), labels=labels, scale=None))

    def put_on_card(self, scores: Sequence[Score]) -> None:
        """Scores of these names are replaced, others stay."""
        assert self.folder is not None
        card, names = read_card(self.folder), {score.name for score in scores}
        others = [score for score in card.scores if score.name not in names]
        write_card(self.folder, card.model_copy(update={"scores": (*others, *scores)}))


def open_measuring(
    what: str,
    reference: str,
    split: str = "test",
    features: str = "auto",
    resizer: str = "clean",
    words: str = "auto",
    judge: str | None = None,
    prompts: Path | None = None,
    count: int | None = None,
    seed: int = 0,
    knobs: Mapping[str, Any] | None = None,
    device: str = "auto",
    given: str | None = None,
    strength: float = 1.0,
) -> Measuring:
    """what: a model, or a folder, archive or named set of pictures. given: pictures that the model's begin from. See
    `giverny measure --help` for the rest."""
    real = open_part(reference, split)
    instrument, notes = open_instrument(features, resizer, device), list[str]()
    if features == "auto" and instrument.name.startswith("pixels"):
        notes.append(
            "Inception's weights are not on this machine: looking at small pixels, which see colour and outline alone. "
            "--features inception fetches them; --features clip:MODEL or a judge's name looks with our own."
        )
    folder = _model_folder(what)
    pictures: Painted | Source
    if folder is not None:
        first = None if given is None else open_part(given, split)
        if prompts is not None:
            asked = _asked(prompts, count or (len(first) if first is not None else None))
        elif first is not None:
            asked = [("", "")] * (count or len(first))
        else:
            asked = prompts_of(real, count or COUNT, seed)
        if not any(prompt for prompt, _ in asked):
            if first is None:
                notes.append(f"{real.name} has no captions: the model is asked with the empty prompt.")
            words = "none" if words == "auto" else words  # nothing is said that pictures could fit
        painter: Any = open_painter(folder, device)
        if first is not None and "start" not in getattr(painter, "can", frozenset()):
            raise InputError("a model that begins from pictures, for --from", f"{painter.name}, of family {painter.family}")
        size = painter.size if first is not None else None  # not the given picture's own
        pictures = Painted(painter, asked, seed, dict(knobs or {}), size, first, strength)
        count = len(asked)
    else:
        pictures = _without_overviews(open_part(what, split), notes)
        count = min(count or len(pictures), len(pictures))
        if prompts or knobs or given:
            raise InputError("a model, for prompts, settings and given pictures", f"{what}, which holds pictures")
    space = _words(words, what if folder is not None else None, device)
    told_by = open_judge(judge, device) if judge else None
    return Measuring(pictures, real, instrument, space, told_by, folder, tuple(notes), count)


def _asked(file: Path, count: int | None) -> list[tuple[str, str]]:
    """(prompt, category) of a file's rows, in turn where more pictures are wanted than it has."""
    rows = [(row.prompt, row.category) for row in read_prompts(file)]
    return [rows[i % len(rows)] for i in range(count or len(rows))]


def open_part(name: str, split: str) -> Source:
    """A named set's part, or pictures by path; "toy" is made on the spot."""
    if name == "toy":
        return open_source(name)
    if name in CATALOG:
        return open_named(name, split if split in CATALOG[name].splits else CATALOG[name].splits[0])
    path = Path(name)
    return open_named(path, split if (path / f"{split}.zip").is_file() else "train")


def _without_overviews(source: Source, notes: list[str]) -> Source:
    """What `giverny paint` left in a folder, without the contact sheets beside the pictures."""
    if not isinstance(source, FolderSource):
        return source
    rows = [i for i, entry in enumerate(source.entries) if not OVERVIEW.match(PurePosixPath(entry.name).name)]
    if len(rows) == len(source):
        return source
    notes.append(f"left out {len(source) - len(rows)} contact sheets (sheet-*.png)")
    return Chosen(source, rows, "without-overviews")


def _model_folder(what: str) -> Path | None:
    try:
        return find_model(what)
    except InputError:
        if what in CATALOG or Path(what).exists():
            return None
        raise


def _words(words: str, model: str | None, device: str) -> tuple[Any, Mapping[str, Any]] | None:
    """A CLIP, and what is said of it; "auto": that of the model that is measured, which knows its words but is no stranger."""
    if words == "none" or (words == "auto" and model is None):
        return None
    name = words if words != "auto" else str(model)
    try:
        space = open_clip(name, device)
    except InputError:
        if words == "auto":
            return None
        raise
    own = {"its_own": True} if name == model else {}
    return space, {"clip": name, "clip_weights": fingerprint_tensors(space.clip.state_dict()), **own}


def cache_folder() -> Path:
    """Where it is kept what references looked like."""
    from platformdirs import user_cache_path

    return user_cache_path("giverny", appauthor=False) / "looked"
