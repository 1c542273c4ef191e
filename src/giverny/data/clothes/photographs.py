"""The raw photographs of clothes, from shop and from home, in one vocabulary: what each shows, as far as it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...base.errors import InputError
from ...base.images import read_picture
from ..tables import read_csv
from ..trees import FolderTree, ZipTree, open_tree
from .words import BY_HOME, BY_SHOP, colour_of_shade

Place = Literal["shop", "home"]


@dataclass(frozen=True)
class Photograph:
    """garment: as in words.GARMENTS. colour, shade, wearer: '' where not told. file: inside its set."""

    file: str
    place: Place
    garment: str
    colour: str = ""
    shade: str = ""
    wearer: str = ""


@dataclass(eq=False)
class Photographs:
    """One raw set; pixels are read one picture at a time. skipped: rows of things that are no garment of ours."""

    place: Place
    tree: FolderTree | ZipTree
    rows: tuple[Photograph, ...]
    skipped: int

    def pixels(self, row: Photograph) -> np.ndarray:
        """uint8 (H, W, 3). Raises InputError for a file that is missing or damaged."""
        try:
            return read_picture(self.tree.read_bytes(row.file))
        except (OSError, KeyError) as error:
            raise InputError("the picture that the table lists", f"{self.tree.root}: {row.file} ({error})") from error


def shop_photographs(path: str | Path) -> Photographs:
    """`fashion-products`, zipped or unpacked: columns file, articleType, baseColour, gender."""
    tree, table = _table(path, "metadata.csv", ("file", "articleType", "baseColour", "gender"))
    rows = []
    for row in table:
        colour = colour_of_shade(row["baseColour"])
        if row["articleType"] in BY_SHOP:
            basic, shade = colour or ("", "")
            wearer = row["gender"] if row["gender"] in ("Men", "Women") else ""
            rows.append(Photograph(row["file"], "shop", BY_SHOP[row["articleType"]], basic, shade, wearer))
    return Photographs("shop", tree, tuple(rows), len(table) - len(rows))


def home_photographs(path: str | Path) -> Photographs:
    """`clothing-cc0`, zipped or unpacked: columns file, label, kids. Nothing is told of colours."""
    tree, table = _table(path, "labels.csv", ("file", "label", "kids"))
    rows = []
    for row in table:
        if row["label"] in BY_HOME:
            wearer = "child" if row["kids"] == "True" else ""
            rows.append(Photograph(row["file"], "home", BY_HOME[row["label"]], wearer=wearer))
    return Photographs("home", tree, tuple(rows), len(table) - len(rows))


def _table(path: str | Path, table: str, columns: Sequence[str]) -> tuple[FolderTree | ZipTree, list[dict[str, str]]]:
    tree = open_tree(path)
    if table not in tree.names():
        raise InputError(f"{table} beside the pictures", f"{tree.root} without it", "check that the set is complete")
    return tree, read_csv(tree.read_bytes(table), table, columns)
