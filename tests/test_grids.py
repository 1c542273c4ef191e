"""Grids over a published model, given by name and by path: which picture lies in which cell, the page, and the sheet."""

import csv
import json
import secrets

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from giverny.assembly import Bench, open_painter
from giverny.assembly.published import add_published
from giverny.base.errors import InputError
from giverny.base.picture import read_provenance
from giverny.cli import cli
from giverny.compare.cells import cells, read_experiment
from giverny.compare.experiment import run_experiment
from giverny.compare.experiment_page import write_experiment_page
from giverny.compare.grids import grid_of
from giverny.compare.units import picture_path
from published_twins import write_twin

pytestmark = pytest.mark.xdist_group("oracles")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two twins as folders, the first as a single file too, and a LoRA."""
    root = tmp_path_factory.mktemp("grids")
    for name in ("one", "two"):
        write_twin(root / name, "two_levels", secrets.randbelow(2**31))
    told = CliRunner().invoke(cli, ["models", "convert", str(root / "one"), str(root / "one.safetensors")])
    assert told.exit_code == 0, told.output
    (root / "lora").mkdir()
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(
        {f"{stem}.lora_up.weight": 3 * torch.randn(20, 2), f"{stem}.lora_down.weight": torch.randn(2, 16)},
        root / "lora" / "ink.safetensors",
    )
    return root


@pytest.fixture
def home(place, tmp_path, monkeypatch):
    """The user's models: the LoRA, and the first twin under a name."""
    monkeypatch.setenv("GIVERNY_MODELS", str(place))
    monkeypatch.chdir(tmp_path)
    if not (place / "named").exists():
        add_published(place / "one", "named")
    return tmp_path


def run(*words, code=0):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def told(*words):
    return [json.loads(line) for line in run(*words, "--json").splitlines() if line.startswith("{")]


def pictures(store, row, number=0):
    path = picture_path(store / "painting" / row.painting / "work", number)
    return np.asarray(Image.open(path)), read_provenance(path)


GRID = """
title = "Sampler, steps and words"
question = "What do they change?"
model = "{model}"
seeds = [0]
prompts = ["a red cat <lora:ink:0>"]
pictures = 2
knobs = ["seed=7", "negative=dog, \\"blurry\\"", "size=16x24", "spacing=normal"]

[[axis]]
name = "sampler"
values = {{ "euler" = {{ knobs = ["sampler=euler"] }}, "Euler a" = {{ knobs = ["sampler=Euler a"] }} }}

[[axis]]
name = "steps"
values = {{ "2" = {{ knobs = ["steps=2"] }}, "3" = {{ knobs = ["steps=3"] }} }}

[[axis]]
name = "ink"
values = {{ "none" = {{}}, "half" = {{ words = {{ "ink:0" = "ink:0.5" }} }} }}
"""


@pytest.mark.parametrize("model", ["named", "one", "one.safetensors"])
def test_a_file_of_axes_over_a_published_model(place, home, model):
    monkey = place / model if model != "named" else "named"
    if model == "one.safetensors":
        (home / "words").symlink_to(place / "one" / "tokenizer")
    (home / "asked.toml").write_text(GRID.format(model=monkey))
    recipe = read_experiment(home / "asked.toml")
    if model == "one.safetensors":  # which has no words beside it
        add_published(place / model, "single", reading_of(place), place=home / "models")
        recipe = recipe.model_copy(update={"model": str(home / "models" / "single")})
    events = list(run_experiment(recipe, Bench(recipe, "cpu"), home / "store", home / "out"))
    table = events[-1].table
    assert [row.reason for row in table.rows] == [None] * 8
    painter = open_painter(recipe.model)
    assert {row.fingerprint for row in table.rows} == {painter.fingerprint}
    seen = set()
    for cell, row in zip(cells(recipe), table.rows, strict=True):
        for number in range(2):
            pixels, said = pictures(home / "store", row, number)
            assert said.request.seed == 7 + number and said.request.size == (16, 24)
            assert said.request.negative == 'dog, "blurry"' and said.fingerprint == painter.fingerprint
            assert said.knobs["steps"] == int(cell.values["steps"])
            assert said.request.prompt == f"a red cat <lora:ink:{'0.5' if cell.values['ink'] == 'half' else '0'}>"
            seen.add(pixels.tobytes())
    assert len(seen) == 16, "every cell is another picture"
    page = write_experiment_page(table, home / "store", home / "out").read_text()
    assert "What do they change?" in page and page.count("data:image/") >= 8
    lines = list(csv.DictReader((home / "out" / "table.csv").open()))
    assert [line["fingerprint"] for line in lines] == [painter.fingerprint] * 8


def reading_of(place):
    from giverny.painters.diffusion.published import Reading

    return Reading(configs=place / "one", words=place / "one" / "tokenizer")


def test_a_grid_from_a_few_words_is_a_sheet_and_its_pictures_are_those_of_paint(place, home):
    words = (
        "grid",
        "a red cat",
        "-m",
        place / "one",
        "--x",
        "steps=1,2,3",
        "--y",
        "sampler=euler a,ddim",
        "--z",
        "guidance=2,7",
    )
    events = told(*words, "--seed", 11, "--negative", "dog", "--size", "16x16", "--spacing", "normal")
    rows = [event for event in events if event["event"] == "row"]
    assert len(rows) == 12 and {row["reason"] for row in rows} == {None} and len({row["fingerprint"] for row in rows}) == 1
    out = home / "outputs" / "grid-00000"
    assert (out / "report.html").is_file() and [event["file"] for event in events if event["event"] == "sheet"] == [
        str(out.relative_to(home) / "grid.png")
    ]
    sheet = np.asarray(Image.open(out / "grid.png").convert("RGB"))
    same = ("--steps", 3, "--sampler", "ddim", "--guidance", 7, "--spacing", "normal", "--size", "16x16", "--negative", "dog")
    run("paint", "a red cat", "-m", place / "one", "--seed", 11, *same, "-o", home / "paint")
    single = np.asarray(Image.open(home / "paint" / "00000.png"))
    last = rows[-1]["painting"]
    (match,) = [row for row in rows if row["values"] == {"steps": "3", "sampler": "ddim", "guidance": "7"}]
    assert match["painting"] == last
    assert (np.asarray(Image.open(home / f"runs/experiments/store/painting/{last}/work/00000.png")) == single).all()
    times = 112 // 16  # what the sheet enlarges small pictures by
    large = single.repeat(times, 0).repeat(times, 1)
    corner = sheet[-(112 + 40) :, -(112 + 8) :]
    places = [(y, x) for y in range(41) for x in range(9) if (corner[y : y + 112, x : x + 112] == large).all()]
    assert len(places) == 1, "the last cell of the sheet is that picture"
    # nothing is painted twice, and the next sheet lies beside the first
    again = told(*words, "--seed", 11, "--negative", "dog", "--size", "16x16", "--spacing", "normal")
    assert not [event for event in again if event["event"] == "finished"]
    assert (home / "outputs" / "grid-00001" / "grid.png").is_file()


def test_axes_of_prompts_words_seeds_and_models(place, home):
    store = home / "store"
    common = ("--steps", 1, "--store", store, "--seed", 5, "--size", "16x16")
    models = f"model={place / 'one'},{place / 'two'}"
    rows = rows_of("grid", "-m", "named", "--x", 'prompt=a cat,"a cat, red"', "--y", models, *common)
    assert [prompt_of(store, row) for row in rows] == ["a cat", "a cat", "a cat, red", "a cat, red"]
    assert rows[0]["fingerprint"] == rows[2]["fingerprint"] != rows[1]["fingerprint"]
    rows = rows_of("grid", "a cat <lora:ink:0.5>", "-m", "named", "--x", "words=:0.5,:1", "--y", "seed=5,6", *common)
    assert [prompt_of(store, row)[-4:-1] for row in rows] == ["0.5", "0.5", "k:1", "k:1"]
    assert [provenance_of(store, row).request.seed for row in rows] == [5, 6, 5, 6]
    rows = rows_of("grid", "a cat", "-m", "named", "--x", 'negative=dog,"a, b"', "--y", "size=16x16,24x16", *common)
    assert [provenance_of(store, row).request.negative for row in rows] == ["dog", "dog", "a, b", "a, b"]
    assert [provenance_of(store, row).request.size for row in rows] == [(16, 16), (24, 16)] * 2


def test_a_lora_that_changed_is_painted_with_anew(place, home, monkeypatch):
    models = home / "models"
    (models / "lora").mkdir(parents=True)
    file = models / "lora" / "ink.safetensors"
    file.write_bytes((place / "lora" / "ink.safetensors").read_bytes())
    monkeypatch.setenv("GIVERNY_MODELS", str(models))
    words = ("grid", "a cat <lora:ink:0.5>", "-m", place / "one", "--x", "words=:0.5,:1", "--steps", 1, "--seed", 1)
    words += ("--size", "16x16", "--store", home / "store")
    first = rows_of(*words)
    assert [row["painting"] for row in rows_of(*words)] == [row["painting"] for row in first]
    stronger = {name: 2 * value for name, value in load_file(file).items()}
    save_file(stronger, file)
    assert not {row["painting"] for row in rows_of(*words)} & {row["painting"] for row in first}


def rows_of(*words):
    return [event for event in told(*words) if event["event"] == "row"]


def provenance_of(store, row):
    return read_provenance(store / "painting" / row["painting"] / "work" / "00000.png")


def prompt_of(store, row):
    return provenance_of(store, row).request.prompt


def test_what_cannot_be_a_grid_is_said(place, home):
    base = ("grid", "a cat", "-m", "named", "--seed", 1, "--steps", 1, "--store", home / "store")
    assert "words that stand in a prompt; 'dog'" in run(*base, "--x", "words=dog,cat", code=2)
    assert "did you mean 'steps'" in run(*base, "--x", "stepps=1,2", code=2)
    assert "such as 512x768" in run(*base, "--x", "size=big", code=2)
    assert "a seed" in run(*base, "--x", "seed=-1", code=2)
    assert "PROMPT" in run("grid", "-m", "named", "--x", "steps=1", code=2)
    assert "steps stands there twice" in run(*base, "--x", "steps=1,2", "--y", "steps=3,4", code=2)
    # a cell that cannot be painted leaves a grey place that says why, and the rest is there
    out = run(*base, "--x", "size=16x16,15x15", "-o", home / "out")
    assert "divisible" in out and (home / "out" / "grid.png").is_file()


@pytest.mark.parametrize(
    ("axes", "said"), [(['steps="1,2'], "quotation marks"), (["words="], "such as guidance"), (['prompt=a,"a"'], "differ")]
)
def test_axes_that_are_none(axes, said):
    with pytest.raises(InputError, match=said):
        grid_of("wardrobe", ["a"], axes, [0])


def test_values_are_called_by_words_that_a_table_can_hold():
    recipe = grid_of("m", [], ['prompt=a,"b, c","b= c"'], [0])
    assert list(recipe.axis[0].values) == ["a", "b c", "b c (3)"] and recipe.prompts == ("a",)
    assert recipe.asked(0, cells(recipe)[1])[0] == ["b, c"]
