"""What the limits of near copies do: how many altered copies are found, and how many pictures of a set are called copies.

    python benchmarks/duplicates.py
    python benchmarks/duplicates.py my/pictures

Without a name it takes the shop photographs, in which very much looks alike, and the clothes at home, in which nothing
does. Alterations are those that a picture suffers on its way through the web.
"""

from __future__ import annotations

import io
import sys
import time

import numpy as np
from PIL import Image

from giverny.data.catalog import open_named
from giverny.data.duplicates import NEAR_BITS, NEAR_COLOUR, alike, print_of

TRIED = 500  # pictures that are altered


def packed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = round(image.width * factor), round(image.height * factor)
    return packed(image.resize(size, Image.Resampling.LANCZOS), 75)


ALTERATIONS = {
    "JPEG, quality 50": lambda image: packed(image, 50),
    "JPEG, quality 25": lambda image: packed(image, 25),
    "0.6 times as large": lambda image: scaled(image, 0.6),
    "twice as large": lambda image: scaled(image, 2),
    "5 % darker": lambda image: image.point(lambda level: round(0.95 * level)),
    "2 % cut off around": lambda image: image.crop((2, 2, image.width - 2, image.height - 2)),
}


def main() -> None:
    print(f"near copies: {NEAR_BITS} of 64 bits, {NEAR_COLOUR} of 255")
    for name in sys.argv[1:] or ("fashion-products", "clothing-cc0"):
        source = open_named(name)
        start = time.perf_counter()
        prints = [print_of(source.read(i).pixels) for i in range(len(source))]
        read = time.perf_counter() - start
        start = time.perf_counter()
        same, near = alike(prints)
        searched = time.perf_counter() - start
        different, groups = len(set(same.tolist())), np.bincount(near)
        print(f"\n{name}: {len(source)} pictures, read in {read:.1f} s, searched in {searched:.2f} s")
        print(f"  copies {len(source) - different}, near copies {different - (groups > 0).sum()}, largest group {groups.max()}")
        chosen = np.random.default_rng(0).permutation(len(source))[:TRIED]
        for what, alter in ALTERATIONS.items():
            found = 0
            for i in chosen:
                altered = alter(Image.fromarray(source.read(int(i)).pixels)).convert("RGB")
                found += bool(alike([prints[i], print_of(np.asarray(altered))])[1][1] == 0)
            print(f"  {what:20} {found / len(chosen):6.1%} found")


if __name__ == "__main__":
    main()
