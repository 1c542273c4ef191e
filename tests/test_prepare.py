"""One command from raw photographs to a set, and from the set to a model that paints: on a small real slice."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from giverny.assembly import open_painter, train
from giverny.base.contracts import Request
from giverny.cli import cli
from giverny.data.catalog import open_named
from giverny.data.clothes.colours import colour_counts, colour_model
from giverny.painters.diffusion.family import tiny
from giverny.pipelines.text2image import collect

FIXTURES = Path(__file__).parent / "fixtures"
FEW = ["--set", "foreground.loop.steps=60", "--set", "foreground.loop.batch=8", "--set", "per_pair=3", "--set", "size=16",
       "--set", "foreground.size=48", "--set", "foreground.channels=[8, 16]",
       "--set", 'pairs=[["t-shirt", "black"], ["dress", "blue"]]']  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wardrobe") / "wardrobe-cc0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIVERNY_DATA", str(FIXTURES))
        done = CliRunner().invoke(cli, ["data", "prepare", "wardrobe-cc0", *FEW, "-o", str(folder), "--json"])
        made = (folder / "train.zip").stat().st_mtime_ns
        again = CliRunner().invoke(cli, ["data", "prepare", "wardrobe-cc0", *FEW, "-o", str(folder), "--json"])
        other = CliRunner().invoke(cli, ["data", "prepare", "wardrobe-cc0", *FEW, "--set", "size=24", "-o", str(folder)])
    assert done.exit_code == 0, done.output
    assert again.exit_code == 0 and again.output.splitlines()[-1] == done.output.splitlines()[-1]
    assert other.exit_code == 2 and "--replace" in other.output
    assert (folder / "train.zip").stat().st_mtime_ns == made
    return folder


def rows(path):
    with zipfile.ZipFile(path) as archive:
        return [json.loads(line) for line in archive.read("metadata.jsonl").decode().splitlines()]


def test_the_set_is_what_its_card_says(prepared):
    card = json.loads((prepared / "card.json").read_text("utf-8"))
    learn, test = rows(prepared / "train.zip"), rows(prepared / "test.zip")
    assert (card["train"], card["test"]) == (len(learn), len(test))
    assert card["recoloured"] == sum(r["recoloured"] for r in learn) > 0
    assert not any(r["recoloured"] for r in test)
    held = {tuple(pair) for pair in card["held_out_pairs"]}
    assert held == {("t-shirt", "black"), ("dress", "blue")}
    assert not held & {(r["garment"], r["colour"]) for r in learn}, "a held-out pair was trained on"
    near = {(r["garment"], r["colour"]) for r in learn if r["recoloured"]}
    assert any((colour == "black") != (garment == "t-shirt") for garment, colour in near), "none could have been made"
    assert not {r["photograph"] for r in learn} & {r["photograph"] for r in test}
    for row in learn:
        assert row["text"] and all(not r or isinstance(r, str) for r in row["text"])
        assert not row["colour"] or any(row["colour"] in text for text in row["text"])
    counts = Counter((r["garment"], r["colour"]) for r in learn if r["colour"])
    assert max(counts.values()) <= card["recipe"]["most"]
    assert (prepared / "sheet.png").stat().st_size > 1000


def test_recoloured_pictures_show_the_colour_of_their_caption(prepared):
    """Read from the small pictures as they were written: those at full size were read as such before they were kept."""
    model, source, right = colour_model(), open_named(prepared), []
    card = json.loads((prepared / "card.json").read_text("utf-8"))
    for index, row in enumerate(rows(prepared / "train.zip")):
        if row["recoloured"]:
            pixels = source.read(index).pixels
            cloth = pixels.min(axis=2) < 235 if row["colour"] != "white" else pixels.min(axis=2) < 253
            odds = model.probabilities(colour_counts(pixels, cloth)[None])[0]
            right.append(model.names[int(odds.argmax())] == row["colour"])
    assert len(right) == card["recoloured"] < card["recolourings_tried"]
    assert np.mean(right) > 0.75, f"{np.mean(right):.0%} of {len(right)}"


def test_it_opens_as_a_set_of_captioned_pictures(prepared):
    source = open_named(prepared)
    assert len(source) == len(rows(prepared / "train.zip")) and len(open_named(prepared, "test")) > 0
    sample = source.read(0)
    assert sample.pixels.shape == (16, 16, 3) and sample.captions
    corners = np.mean([source.read(i).pixels[0, 0].mean() for i in range(min(20, len(source)))])
    assert corners > 235, "things from home lie on white"


def test_from_photographs_to_a_model_that_paints(prepared, tmp_path):
    recipe = tiny()
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": str(prepared)})})
    for _ in train(recipe, tmp_path / "run"):
        pass
    painter = open_painter(tmp_path / "run")
    requests = [Request(prompt="a red dress", seed=s, id=str(s)) for s in range(2)]
    pictures = collect(painter.paint(requests), requests)
    assert [p.pixels.shape for p in pictures] == [(16, 16, 3)] * 2


def test_a_wrong_pair_and_a_missing_set_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("GIVERNY_DATA", str(FIXTURES))
    said = CliRunner().invoke(cli, ["data", "prepare", "wardrobe-cc0", "--set", 'pairs=[["dres", "red"]]', "-o", str(tmp_path)])
    assert said.exit_code == 2 and "dress" in said.output
    said = CliRunner().invoke(cli, ["data", "prepare", "wardrobe", "-o", str(tmp_path)])
    assert said.exit_code == 2 and "fashion-products" in said.output
