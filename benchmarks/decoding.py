"""How fast training pictures come: JPEG files of 256 pixels decoded and fitted, and batches of an array set.

    python benchmarks/decoding.py

Every line is the best of three rounds, because other programs on the machine only ever make it slower. Pictures are
made on the spot: smooth colour with noise, so that the files are about as large as photographs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from giverny.data.arrays import ArraySource
from giverny.data.folders import open_source
from giverny.data.loader import Loader


def write_pictures(folder: Path, count: int, side: int = 256) -> int:
    """JPEG files with the detail of photographs; returns their mean size in bytes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
        grain = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))
        Image.blend(coarse, grain, 0.45).save(folder / f"{i:04}.jpg", quality=90)
    return sum(file.stat().st_size for file in folder.iterdir()) // count


def rate(loader: Loader, steps: int) -> float:
    """Pictures a second through the stream, the best of three rounds."""

    def rounds() -> Iterator[float]:
        for _ in range(3):
            start = time.perf_counter()
            shown = sum(len(batch["labels"]) for batch in loader.stream(0, steps))
            yield shown / (time.perf_counter() - start)

    return max(rounds())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), 512
        weight = write_pictures(folder, count)
        start = time.perf_counter()
        source = open_source(folder)
        opening = count / (time.perf_counter() - start)
        print(f"{count} JPEG files of 256x256, {weight / 1000:.0f} kB on average\n")
        print(f"{'what':<44}{'workers':>8}{'pictures/s':>12}")
        print(f"{'open the folder (every file checked)':<44}{'-':>8}{opening:>12.0f}")
        for side in (256, 64):
            for workers in (1, 2):
                loader = Loader(source, size=(side, side), channels=3, batch=32, seed=0, fit="crop", workers=workers)
                what = f"read, fit to {side}x{side}, batches of 32"
                print(f"{what:<44}{workers:>8}{rate(loader, count // 32):>12.0f}")
    pixels = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1), dtype=np.uint8)
    array = ArraySource("array", pixels, np.arange(60_000) % 10)
    for workers in (1, 2):
        loader = Loader(array, size=(32, 32), channels=1, batch=256, seed=0, flip=True, workers=workers)
        what = "28x28 array padded to 32x32, batches of 256"
        print(f"{what:<44}{workers:>8}{rate(loader, 200):>12.0f}")


if __name__ == "__main__":
    main()
