"""The colour model that ships: fitted to the shop photographs whose seller named the colour, and how far it agrees.

    GIVERNY_DATA=... python benchmarks/colours.py [--write]

A fifth of the photographs is held out and asked about; --write fits to all of them and keeps the model in the package.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

import giverny.data.clothes
from giverny.base.runtime import threads
from giverny.data.catalog import raw_files
from giverny.data.clothes.colours import colour_counts, fit_colours, held_out
from giverny.data.clothes.garments import coloured_part
from giverny.data.clothes.photographs import shop_photographs
from giverny.data.clothes.words import COLOURS

NAMES = tuple(COLOURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    photographs = shop_photographs(raw_files("fashion-products"))
    counts, labels = [], []
    with threads(1):
        for row in photographs.rows:
            if row.colour:
                pixels = photographs.pixels(row)
                counts.append(colour_counts(pixels, coloured_part(pixels, row.garment)))
                labels.append(row.colour)
    all_counts = np.stack(counts)
    said, told, sureness = held_out(all_counts, labels, NAMES)
    sure = sureness >= 0.6
    print(f"{len(told)} held-out photographs: {np.mean(said == told):.1%} agree; where sure ({sure.mean():.0%}) ", end="")
    print(f"{np.mean((said == told)[sure]):.1%}")
    for name in NAMES:
        mine = told == name
        others = ", ".join(f"{n} {c}" for n, c in Counter(said[mine & (said != name)].tolist()).most_common(4))
        print(f"{name:10} {mine.sum():5} {np.mean(said[mine] == name):6.1%}   {others}")
    if args.write:
        note = f"fitted to {len(labels)} shop photographs; {np.mean(said == told):.3f} agreement on {len(told)} held out"
        target = Path(giverny.data.clothes.__file__).parent / "colours.json"
        target.write_text(fit_colours(all_counts, labels, NAMES, note=note).to_json(), "utf-8")
        print(f"kept in {target.name}: {target.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
