"""From raw photographs of clothes to a set that teaches word and colour together: cut out, named, recoloured, balanced.

One command makes it; each step is a file of the data room. What comes out is two zip archives with a `metadata.jsonl`
each (as any reader of captioned folders expects them), the held-out pairs, a card that says how it was made, and a sheet.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ..base.contracts import Frozen
from ..base.errors import InputError, nearest
from ..base.files import atomic_path, atomic_write
from ..base.images import png_bytes, resize
from ..base.runtime import derive_seed, threads
from ..base.sheet import grid
from ..data.clothes.colours import ColourModel, colour_counts, fit_colours, held_out
from ..data.clothes.garments import coloured_part, garment_cut
from ..data.clothes.photographs import Photograph, Photographs
from ..data.clothes.recolour import cloth_colour, recolour
from ..data.clothes.words import COLOURS, GARMENTS, captions
from ..data.duplicates import alike, print_of
from ..training.plan import LoopRecipe

Cutter = Callable[[Sequence[np.ndarray]], Iterator[np.ndarray | None]]  # pictures -> their cuts, in order
Told = Callable[[str, int, int], None]  # (what is being done, how many so far, of how many)

# Colours that goods of these kinds hardly come in another: metal and glass stay as they are.
PLAIN = frozenset({"watch", "sunglasses"})


class CuttingRecipe(Frozen):
    """The network that cuts things out (perception.foreground), and how it learns."""

    size: int = Field(96, ge=16, description="side of the squares it looks at, in pixels")
    channels: tuple[int, ...] = Field((16, 24, 48, 64), min_length=1, description="width of each level")
    loop: LoopRecipe = LoopRecipe(steps=1200, batch=16)


class PrepareRecipe(Frozen):
    """What is made of the photographs. pairs: (garment, colour) that no training picture may show."""

    name: str
    title: str = ""
    sources: tuple[Literal["fashion-products", "clothing-cc0"], ...] = Field(min_length=1, description="named sets")
    foreground: CuttingRecipe = CuttingRecipe()
    size: int = Field(64, ge=16, description="side of the square pictures, in pixels")
    per_pair: int = Field(40, ge=0, description="pictures each (garment, colour) is brought to by recolouring")
    most: int = Field(200, ge=1, description="photographs of one (garment, colour) that are kept")
    test: float = Field(0.08, gt=0, lt=0.5, description="share of the photographs kept for testing")
    sure: float = Field(0.6, ge=0, le=1, description="probability from which a colour that nobody named is believed")
    seen: float = Field(0.5, ge=0, le=1, description="probability of its new colour from which a recoloured picture is kept")
    seed: int = 0
    pairs: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _known(self) -> PrepareRecipe:
        for garment, colour in self.pairs:
            if garment not in GARMENTS or colour not in COLOURS:
                hint = nearest(garment, GARMENTS) if garment not in GARMENTS else nearest(colour, COLOURS)
                raise ValueError(f"pairs want a garment and a colour of ours, given {garment!r}, {colour!r}. {hint}")
        return self


@dataclass
class Seen:
    """What is known of a photograph before it is written."""

    row: Photograph
    source: Photographs
    cut: np.ndarray | None  # of the garment, packed bits; None: unknown
    shape: tuple[int, int]
    colour: str
    counts: np.ndarray | None = None  # colour_counts of the garment; None: it was not found
    group: int = 0  # near-duplicates share it
    odds: float = 0.0  # probability of its colour, as the colour model sees it
    cloth: np.ndarray | None = None  # Lab (3,)
    even: bool = False  # of one colour, so that it can be recoloured

    def mask(self) -> np.ndarray | None:
        if self.cut is None:
            return None
        height, width = self.shape
        return np.unpackbits(self.cut, count=height * width).reshape(self.shape).astype(bool)


@dataclass
class Prepared:
    """The making of one set. Every choice depends on the recipe's seed and the photographs alone."""

    recipe: PrepareRecipe
    sets: Sequence[Photographs]
    colours: ColourModel | None  # None: fitted to the shop's own names
    cutter: Cutter
    told: Told = lambda what, done, total: None
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, Any]:
        """Make the set; returns what its card says. Nothing takes its name in the folder before it is whole."""
        seen = self._look()
        self._name_colours(seen)
        train, test = self._split(seen)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "test.zip") as path:
            self._pack(path, [(s, None) for s in test], "writing test pictures")
        extra = self._recolourings(train)
        chosen = [(s, None) for s in self._capped(train)] + extra
        with atomic_path(folder / "train.zip") as path:
            shown = self._pack(path, chosen, "writing training pictures")
        atomic_write(folder / "sheet.png", png_bytes(shown))
        pairs = Counter((s.row.garment, (new or s.colour)) for s, new in ((s, t[0] if t else "") for s, t in chosen))
        self.facts |= {
            "photographs": {p.place: len(p.rows) for p in self.sets},
            "train": len(chosen), "recoloured": len(extra), "test": len(test),
            "held_out_pairs": [list(p) for p in self.recipe.pairs],
            "pairs": {f"{g}/{c}": n for (g, c), n in sorted(pairs.items()) if c},
            "recipe": self.recipe.model_dump(mode="json"),
        }  # fmt: skip
        atomic_write(folder / "card.json", json.dumps(self.facts, indent=2, ensure_ascii=False))
        return self.facts

    # -- looking -------------------------------------------------------------------------------------------------------

    def _look(self) -> list[Seen]:
        """Cut out and fingerprint every photograph; near-duplicates get a common group."""
        seen, prints = [], []
        total = sum(len(p.rows) for p in self.sets)
        for source in self.sets:
            for rows in _blocks(source.rows, 256):
                pictures = [source.pixels(row) for row in rows]
                if source.place == "home":
                    cuts = list(self.cutter(pictures))
                with threads(1):  # pictures are small: threads would wait for each other
                    if source.place == "shop":
                        cuts = [garment_cut(p, r.garment) for p, r in zip(pictures, rows, strict=True)]
                    for row, pixels, cut in zip(rows, pictures, cuts, strict=True):
                        packed = None if cut is None else np.packbits(cut)
                        seen.append(Seen(row, source, packed, pixels.shape[:2], row.colour))
                        prints.append(print_of(pixels))
                        self._measure(seen[-1], pixels, cut)
                self.told("looking at photographs", len(seen), total)
        near = alike(prints)[1] if prints else np.zeros(0, np.int64)
        for one, group in zip(seen, near.tolist(), strict=True):
            one.group = group
        self.facts["near_duplicates"] = len(seen) - len(set(near.tolist()))
        self.facts["cut_out"] = {p.place: sum(s.cut is not None for s in seen if s.source is p) for p in self.sets}
        return seen

    def _measure(self, one: Seen, pixels: np.ndarray, cut: np.ndarray | None) -> None:
        where = coloured_part(pixels, one.row.garment) if cut is None and one.row.place == "shop" else cut
        one.counts = colour_counts(pixels, where) if where is not None and where.any() else None
        if cut is not None and cut.sum() >= 40:
            one.cloth, share = cloth_colour(pixels, cut)
            one.even = share > 0.7

    def _name_colours(self, seen: list[Seen]) -> None:
        """Fit or take the colour model; name what nobody named, and doubt what is named against all evidence."""
        named = [(s.row.colour, s.counts) for s in seen if s.row.colour and s.counts is not None]
        model = self.colours
        if model is None:
            if len(named) < 100:
                raise InputError("100 photographs with a colour named", str(len(named)), "Use the colour model that ships.")
            labels, counts = [colour for colour, _ in named], np.stack([count for _, count in named])
            said, told, certain = held_out(counts, labels, tuple(COLOURS), seed=self.recipe.seed)
            right, sure = said == told, certain >= self.recipe.sure
            self.facts["colour_agreement"] = {
                "photographs": len(right), "agree": round(float(right.mean()), 4),
                "sure": round(float(sure.mean()), 4), "agree_where_sure": round(float(right[sure].mean()), 4),
            }  # fmt: skip
            model = fit_colours(counts, labels, tuple(COLOURS))
        self.colours = model
        doubted = found = 0
        for one in seen:
            if one.counts is None:
                continue
            odds = model.probabilities(one.counts[None])[0]
            name, sureness = model.names[int(odds.argmax())], float(odds.max())
            if one.colour and name != one.colour and odds[model.names.index(one.colour)] < 0.05 and sureness > 0.7:
                one.colour, doubted = "", doubted + 1
            elif not one.colour and sureness >= self.recipe.sure:
                one.colour, found = name, found + 1
            one.odds = float(odds[model.names.index(one.colour)]) if one.colour else 0.0
        self.facts["colours_named"], self.facts["colours_doubted"] = found, doubted

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _split(self, seen: list[Seen]) -> tuple[list[Seen], list[Seen]]:
        """(training, test): near-duplicates stay together; photographs of held-out pairs are for testing alone. A home
        photograph that could not be cut out is used in neither."""
        usable = [s for s in seen if s.row.place == "shop" or s.cut is not None]
        chance = np.random.default_rng(derive_seed("split", self.recipe.seed))
        groups = sorted({s.group for s in usable})
        testing = {g for g in groups if chance.random() < self.recipe.test}
        # A seller's name counts even where it is doubted.
        testing |= {
            s.group for s in usable for colour in (s.colour, s.row.colour) if (s.row.garment, colour) in self.recipe.pairs
        }
        first = {s.group: s for s in reversed(usable)}  # of near-duplicates, one
        kept = [s for s in usable if first[s.group] is s]
        self.facts["left_out"] = {"not_cut_out": len(seen) - len(usable), "duplicates": len(usable) - len(kept)}
        return [s for s in kept if s.group not in testing], [s for s in kept if s.group in testing]

    def _capped(self, train: list[Seen]) -> list[Seen]:
        """At most `most` of each (garment, colour)."""
        order = np.random.default_rng(derive_seed("most", self.recipe.seed)).permutation(len(train))
        count: Counter[tuple[str, str]] = Counter()
        kept = []
        for i in order:
            pair = (train[i].row.garment, train[i].colour)
            count[pair] += 1
            if count[pair] <= self.recipe.most:
                kept.append(int(i))
        return [train[i] for i in sorted(kept)]

    def _recolourings(self, train: list[Seen]) -> list[tuple[Seen, tuple[str, np.ndarray]]]:
        """(photograph, (new colour, the picture made)) until every allowed (garment, colour) has `per_pair` pictures.

        Sellers' names are not to be trusted one by one, and a print may hide the cloth: a recoloured picture is kept where
        the colour model sees in it what its caption will say.
        """
        chance = np.random.default_rng(derive_seed("recolour", self.recipe.seed))
        real = Counter((s.row.garment, s.colour) for s in train)
        cloths = defaultdict(list)  # colour -> the real cloths of it
        bases = defaultdict(list)  # garment -> what can be recoloured
        for one in train:
            if one.cloth is not None and one.even:
                bases[one.row.garment].append(one)
                if one.odds >= self.recipe.seen:
                    cloths[one.colour].append(one.cloth)
        made: list[tuple[Seen, tuple[str, np.ndarray]]] = []
        tried = 0
        wanted = [(g, c) for g in sorted(bases) for c in sorted(COLOURS) if g not in PLAIN and (g, c) not in self.recipe.pairs]
        for done, (garment, colour) in enumerate(wanted, 1):
            missing = self.recipe.per_pair - real[garment, colour]
            others = [b for b in bases[garment] if b.colour != colour]
            if len(cloths[colour]) >= 5:
                for i in chance.permutation(len(others)) if missing > 0 else ():
                    tried += 1
                    new = self._recoloured(others[int(i)], colour, cloths[colour][chance.integers(len(cloths[colour]))])
                    if new is not None:
                        made.append((others[int(i)], (colour, new)))
                        missing -= 1
                    if missing <= 0:
                        break
            self.told("recolouring", done, len(wanted))
        self.facts["recolourings_tried"] = tried
        return made

    def _recoloured(self, one: Seen, colour: str, target: np.ndarray) -> np.ndarray | None:
        """The picture as `_picture`, its cloth moved to a Lab colour; None where the colour model does not see the new one."""
        cut, model = one.mask(), self.colours
        assert cut is not None and model is not None
        new = recolour(one.source.pixels(one.row), cut, target, one.cloth)
        seen = model.probabilities(colour_counts(new, cut)[None])[0, model.names.index(colour)] >= self.recipe.seen
        return self._picture(one, new) if seen else None

    # -- writing -------------------------------------------------------------------------------------------------------

    def _pack(self, path: Path, chosen: Sequence[tuple[Seen, tuple[str, np.ndarray] | None]], doing: str) -> np.ndarray:
        """Write a zip of WebP pictures and their metadata; returns a sheet of some of them."""
        lines, shown = [], []
        show = set(np.random.default_rng(0).permutation(len(chosen))[:96].tolist())
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for number, (one, change) in enumerate(chosen):
                picture = change[1] if change else self._picture(one, one.source.pixels(one.row))
                name = f"images/{number:05d}.webp"
                archive.writestr(_entry(name), _webp(picture))
                lines.append(json.dumps({"file_name": name, **_said(one, change)}, ensure_ascii=False))
                if number in show:
                    shown.append(picture)
                if number % 100 == 99 or number + 1 == len(chosen):
                    self.told(doing, number + 1, len(chosen))
            archive.writestr(_entry("metadata.jsonl"), "\n".join(lines) + "\n")
        return grid(shown, columns=12) if shown else np.zeros((1, 1, 3), np.uint8)

    def _picture(self, one: Seen, pixels: np.ndarray) -> np.ndarray:
        """uint8 (S, S, 3): the garment as photographed or recoloured; from home, alone on white."""
        cut = one.mask()
        shown = alone(pixels, cut) if one.row.place == "home" and cut is not None else pixels
        return resize(shown, (self.recipe.size,) * 2)


def alone(pixels: np.ndarray, cut: np.ndarray, margin: float = 0.06) -> np.ndarray:
    """What lies inside a cut, in the middle of a white square. uint8 (H, W, 3), bool (H, W) -> uint8 (S, S, 3)."""
    rows, columns = np.nonzero(cut.any(1))[0], np.nonzero(cut.any(0))[0]
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = round(max(bottom - top, right - left) * (1 + 2 * margin))
    square = np.full((side, side, 3), 255, np.uint8)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    inside = np.where(cut[top:bottom, left:right, None], pixels[top:bottom, left:right], 255)
    square[y : y + bottom - top, x : x + right - left] = inside
    return square


def _said(one: Seen, change: tuple[str, np.ndarray] | None) -> Mapping[str, Any]:
    colour, shade = (change[0], "") if change else (one.colour, one.row.shade if one.colour else "")
    row = one.row
    return {
        "text": list(captions(row.garment, colour, shade, row.wearer)),
        "garment": row.garment, "colour": colour, "shade": shade, "wearer": row.wearer, "from": row.place,
        "photograph": row.file, "recoloured": change is not None,
    }  # fmt: skip


def _webp(pixels: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=90, method=4)
    return out.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """A zip entry without the time of day, so that the same input makes the same file."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _blocks(rows: Sequence[Photograph], size: int) -> Iterator[Sequence[Photograph]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
