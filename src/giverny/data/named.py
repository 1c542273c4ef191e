"""How the named sets that have a form of their own are put into words: garments, shop goods, emoji.

Their tables hold attributes, not captions; captions are composed here, most telling first.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..base.errors import InputError
from .arrays import ArraySource
from .captions import article
from .folders import FolderSource, open_table

_GARMENTS = {
    "T-Shirt": "a t-shirt",
    "Longsleeve": "a long-sleeved top",
    "Pants": "trousers",
    "Shoes": "shoes",
    "Shirt": "a shirt",
    "Dress": "a dress",
    "Outwear": "a jacket",
    "Shorts": "shorts",
    "Hat": "a hat",
    "Skirt": "a skirt",
    "Polo": "a polo shirt",
    "Undershirt": "an undershirt",
    "Blazer": "a blazer",
    "Hoodie": "a hoodie",
    "Body": "a bodysuit",
    "Top": "a top",
    "Blouse": "a blouse",
}

# Article types of the shop's list that come in pairs, or are a plural in themselves; all others are one thing.
_PAIRS = frozenset(
    {
        *("casual shoes", "sports shoes", "formal shoes", "heels", "flats", "sandals", "sports sandals", "flip flops"),
        *("sunglasses", "trousers", "jeans", "shorts", "track pants", "capris", "leggings", "tights", "stockings"),
        *("socks", "gloves", "cufflinks", "shoe accessories", "necklace and chains"),
    }
)
_SINGULAR = {"tshirts": "t-shirt", "scarves": "scarf", "watches": "watch", "dresses": "dress", "clutches": "clutch"}


def garment(row: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """(captions, class) of a row of the CC0 clothing photographs."""
    words = _GARMENTS.get(row["label"], row["label"].lower())
    if row["kids"] == "True":
        return (f"{words} for a child", words, f"a photo of {words} for a child"), row["label"]
    return (words, f"a photo of {words}"), row["label"]


def product(row: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """(captions, class) of a row of the shop photographs: colour, thing and wearer; brand names are left out."""
    kind, colour = row["articleType"].lower(), row["baseColour"].lower()
    thing = kind if kind in _PAIRS else _SINGULAR.get(kind, kind.removesuffix("s"))
    start, plain = ("", "") if kind in _PAIRS else (f"{article(colour)} ", f"{article(thing)} ")
    wearer = "" if row["gender"] == "Unisex" else f" for {row['gender'].lower()}"
    full = f"{start}{colour} {thing}"
    return tuple(dict.fromkeys((full + wearer, full, f"{plain}{thing}{wearer}", f"{plain}{thing}"))), kind


def open_clothing(path: Path, tolerate: float = 0.05) -> FolderSource:
    """The CC0 clothing photographs, zipped or unpacked: columns file, label, kids in `labels.csv`."""
    return open_table(path, "labels.csv", "file", garment, needed=("label", "kids"), tolerate=tolerate)


def open_products(path: Path, tolerate: float = 0.05) -> FolderSource:
    """The shop photographs, zipped or unpacked: columns file, articleType, baseColour, gender in `metadata.csv`."""
    needed = ("articleType", "baseColour", "gender")
    return open_table(path, "metadata.csv", "file", product, needed=needed, tolerate=tolerate)


def open_emoji(path: Path) -> ArraySource:
    """An .npz with `images` uint8 (N, H, W, 4) of straight alpha, laid on white, and `names` (N,), the captions."""
    try:
        with np.load(path, allow_pickle=False) as held:
            images, names = held["images"], held["names"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"an .npz with `images` and `names` at {path}", str(error), "fetch it again") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 4 or len(names) != len(images):
        raise InputError("uint8 images (N, H, W, 4) and N names", f"{images.dtype} {images.shape}, {len(names)} names")
    alpha = images[..., 3:].astype(np.uint16)
    onto_white = (images[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    texts = [(f"{name} emoji", str(name)) for name in names]
    return ArraySource("emoji", onto_white.astype(np.uint8), texts=texts, text_of=np.arange(len(names)))
