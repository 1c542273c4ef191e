"""A prepared set of clothes in miniature: flat shapes on white, captioned as the real one is."""

import io
import json
import zipfile

import numpy as np
from PIL import Image

from giverny.data.clothes.words import captions

SHAPES = {"t-shirt": (2, 9), "trousers": (5, 15), "belt": (7, 8)}  # first and last line of the thing
INKS = {"red": (220, 20, 30), "blue": (30, 40, 210), "green": (20, 150, 40), "": (120, 90, 60)}


def write_wardrobe(folder, each=2, side=16):
    """train.zip and test.zip in a folder called wardrobe, which is how the catalog knows them; returns the folder."""
    place = folder / "wardrobe"
    place.mkdir()
    chance = np.random.default_rng(5)
    for split in ("train", "test"):
        rows, files = [], {}
        for garment, (first, last) in SHAPES.items():
            for colour, ink in INKS.items():
                for i in range(each):
                    at_home = i % 2 == 1
                    shade = "maroon" if colour == "red" and at_home else colour
                    wearer = "" if at_home else "Women"
                    pixels = np.full((16, 16, 3), 255, np.uint8)
                    pixels[first:last, 3:13] = np.clip(ink + chance.integers(-9, 9, (last - first, 10, 3)), 0, 255)
                    name, out = f"images/{len(rows):05d}.webp", io.BytesIO()
                    Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST).save(out, "WEBP", lossless=True)
                    files[name] = out.getvalue()
                    rows.append({"file_name": name, "text": captions(garment, colour, shade, wearer), "garment": garment,
                                 "colour": colour, "shade": shade, "wearer": wearer, "photograph": name,
                                 "from": "home" if at_home else "shop", "recoloured": False})  # fmt: skip
        with zipfile.ZipFile(place / f"{split}.zip", "w") as archive:
            archive.writestr("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            for name, content in files.items():
                archive.writestr(name, content)
    return place
