"""Captions of one's own pictures: what is written, what is kept, and that training reads it."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from giverny.base.errors import InputError
from giverny.cli import cli
from giverny.data.audit import audit, open_parts
from giverny.data.describe import caption_folder, compose
from giverny.data.folders import open_source


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def run(*args, code=0):
    result = CliRunner().invoke(cli, ["data", "caption", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def told(*args, code=0):
    (line,) = run(*args, "--json", code=code).stdout.splitlines()
    return json.loads(line)


def pictures(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), (20 * i % 256, 90, 255 - 10 * i % 256)).save(folder / name)


def write(folder, text, name="metadata.csv"):
    (folder / name).write_text(text, encoding="utf-8")


def captions(folder):
    source = open_source(folder, tolerate=1.0)
    return {entry.name: entry.captions for entry in source.entries}


# ---------------------------------------------------------------------------------------------------------------------
# Templates

DRESS = {"colour": "orange", "garment": "dress", "wearer": "women", "Art der Ware": "Kleid_lang"}


@pytest.mark.parametrize(
    ("template", "changes", "wanted"),
    [
        ("{a} {colour} {garment}", {}, "an orange dress"),
        ("a {colour} {garment}", {}, "an orange dress"),
        ("an {colour} {garment}", {"colour": "Red"}, "a red dress"),
        ("a {colour} {garment}", {"colour": ""}, "a dress"),
        ("a {colour} {garment}", {"garment": "trousers"}, "orange trousers"),
        ("a {colour} {garment}", {"garment": "Casual_Shoes"}, "orange casual shoes"),
        ("a {colour} {garment}", {"colour": "", "garment": "shoes"}, "shoes"),
        ("a {garment}", {"garment": "pair of shoes"}, "a pair of shoes"),
        ("a {garment}", {"garment": "canvas"}, "a canvas"),
        ("a {garment}", {"garment": "uniform"}, "a uniform"),
        ("a {garment}", {"garment": "cactus"}, "a cactus"),
        ("a photo of {a} {colour} {garment}", {}, "a photo of an orange dress"),
        ("a photo of a {colour} {garment} for {wearer}", {}, "a photo of an orange dress for women"),
        ("a photo of a {colour} {garment} for {wearer}", {"wearer": ""}, "a photo of an orange dress"),
        ("{garment}, {colour}, on white", {}, "dress, orange, on white"),
        ("{garment}, {colour}", {"colour": ""}, "dress"),
        ("a {garment} in {colour} with {wearer}", {"colour": ""}, "a dress with women"),
        ("A {colour} {garment}", {}, "An orange dress"),
        ("a {colour}-ish {garment}", {}, "an orange-ish dress"),
        ("{Art der Ware}", {}, "kleid lang"),
        ("a {colour} {garment}", {"colour": "", "garment": ""}, ""),
        ("a photo of clothes", {}, "a photo of clothes"),
        ("a very {colour} {garment}", {}, "a very orange dress"),
        ("a dress {{new}}", {}, "a dress {new}"),
    ],
)
def test_templates(template, changes, wanted):
    assert compose(template, DRESS | changes) == wanted


def test_with_every_word_known_a_template_is_what_python_makes_of_it(rng):
    letters = list("bcdfgklmnprt")
    for _ in range(50):
        names = ["".join(rng.choice(letters, 5)) for _ in range(4)]
        values = {name: "".join(rng.choice(letters, 6)) for name in names}
        parts = [str(rng.choice([f"{{{rng.choice(names)}}}", "of", "near", "with", "the"])) for _ in range(8)]
        template = " ".join([*parts, f"{{{names[0]}}}"])
        assert compose(template, values) == template.format(**values)


@pytest.mark.parametrize("template", ["{colour", "colour}", "{}", "{colour!r}", "{colour:>9}", "", "  ", "{ }"])
def test_templates_that_are_none(template, tmp_path):
    pictures(tmp_path, "a.png")
    with pytest.raises(InputError, match="a template such as"):
        compose(template, DRESS)
    run(tmp_path, "--template", template, code=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@pytest.fixture
def clothes(tmp_path):
    folder = tmp_path / "garderobe d'été"
    pictures(folder, "a.png", "in/é b.png", "c.png", "d.png", "loose.png")
    write(
        folder,
        "file_name,colour,garment,remark\n"
        'a.png,red,dress,"said, ""so"""\n'
        "in/e\u0301 b.png,NA,shoes,\n"  # the accent written apart, as some file systems do
        "c.png,,,nothing known\n"
        "d.png,orange,hat,\n"
        "gone.png,blue,hat,\n",
    )
    return folder


def test_captions_go_into_the_table(clothes):
    said = told(clothes, "--template", "a {colour} {garment}")
    assert (said["written"], said["kept"], said["without"], said["files"]) == (3, 0, 2, 1)
    assert said["skipped"] == [["gone.png", "listed in metadata.csv but missing"]]
    assert captions(clothes) == {"a.png": ("a red dress",), "in/é b.png": ("shoes",), "c.png": (), "d.png": ("an orange hat",)}
    rows = list(csv.DictReader((clothes / "metadata.csv").open(encoding="utf-8", newline="")))
    assert list(rows[0]) == ["file_name", "colour", "garment", "remark", "text"] and len(rows) == 5
    assert rows[0]["remark"] == 'said, "so"' and rows[4]["colour"] == "blue" and not rows[4]["text"]
    before = (clothes / "metadata.csv").read_bytes()
    again = told(clothes, "--template", "the {colour} {garment}")
    assert (again["written"], again["kept"], again["without"], again["files"]) == (0, 3, 2, 0)
    assert (clothes / "metadata.csv").read_bytes() == before and not list(clothes.rglob("*.part"))
    said = told(clothes, "--template", "the {colour} {garment}", "--replace")
    assert (said["written"], said["kept"]) == (3, 0) and captions(clothes)["a.png"] == ("the red dress",)
    # what the audit counts is the same table
    assert audit(open_parts(str(clothes))).captions.captions == 3


def test_several_templates_need_a_list(clothes):
    both = ("--template", "a {colour} {garment}", "--template", "a photo of a {garment}")
    said = told(clothes, *both)
    assert said["files"] == 2 and said["written"] == 3
    assert captions(clothes)["a.png"] == ("a red dress", "a photo of a dress")
    assert captions(clothes)["in/é b.png"] == ("shoes", "a photo of shoes")
    lines = [json.loads(line) for line in (clothes / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert lines[0] == {"file_name": "a.png", "text": ["a red dress", "a photo of a dress"]} and len(lines) == 3
    assert told(clothes, *both)["written"] == 0
    write(clothes, (clothes / "metadata.csv").read_text("utf-8").replace("gone.png", "loose.png"))
    assert told(clothes, *both)["written"] == 1  # the new one alone
    assert captions(clothes)["loose.png"] == ("a blue hat", "a photo of a hat")
    told(clothes, "--template", "{garment}", "--replace")
    assert captions(clothes)["a.png"] == ("dress",) and captions(clothes)["loose.png"] == ("hat",)


def test_captions_that_are_there_are_kept(clothes):
    text = (clothes / "metadata.csv").read_text("utf-8").replace("remark", "text")
    write(clothes, text)
    said = told(clothes, "--template", "a {colour} {garment}", "--keep")
    assert (said["written"], said["kept"], said["without"]) == (2, 2, 1)
    assert captions(clothes)["a.png"] == ('said, "so"',) and captions(clothes)["c.png"] == ("nothing known",)
    assert captions(clothes)["d.png"] == ("an orange hat",)


def test_json_lines_keep_their_rows(tmp_path):
    pictures(tmp_path, "sub/a.png", "sub/b.png", "sub/c.png")
    rows = [{"file_name": "a.png", "kind": "rose", "size": 3}, {"file_name": "b.png", "text": "mine", "kind": "tulip"}]
    write(tmp_path / "sub", "".join(json.dumps(row) + "\n" for row in rows), "metadata.jsonl")
    assert told(tmp_path, "--template", "a {kind}", "--template", "{size} of {kind}")["written"] == 1
    assert captions(tmp_path) == {"sub/a.png": ("a rose", "3 of rose"), "sub/b.png": ("mine",)}
    lines = [json.loads(line) for line in (tmp_path / "sub" / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert lines[0] == {**rows[0], "text": ["a rose", "3 of rose"]} and lines[1] == rows[1]


def test_a_table_with_names_of_its_own_becomes_one_that_trains(tmp_path):
    pictures(tmp_path, "images/1.png", "images/2.png")
    write(tmp_path, "id,file,kind\n1,images/1.png,Rose\n2,images/2.png,Tulip\n")
    assert told(tmp_path, "--template", "a {kind}")["written"] == 2
    assert captions(tmp_path) == {"images/1.png": ("a rose",), "images/2.png": ("a tulip",)}
    (tmp_path / "metadata.csv").rename(tmp_path / "labels.csv")  # another name: its captions are not read, its columns are
    assert told(tmp_path, "--template", "the {kind}")["files"] == 1
    assert captions(tmp_path) == {"images/1.png": ("the rose",), "images/2.png": ("the tulip",)}


def test_unknown_attributes_name_those_that_exist(clothes, tmp_path):
    before = (clothes / "metadata.csv").read_bytes()
    output = run(clothes, "--template", "a {color} {garment}", code=2).output
    assert "did you mean 'colour'" in output and "garment" in output and "remark" in output and "{color}" in output
    assert (clothes / "metadata.csv").read_bytes() == before
    pictures(tmp_path / "plain", "a.png", "b.png")
    assert "no table" in run(tmp_path / "plain", "--template", "a {colour} hat", code=2).output
    assert "class folders" in run(tmp_path / "plain", "--template", "a {name}", code=2).output


def test_what_cannot_be_captioned_is_one_sentence(clothes, tmp_path):
    (tmp_path / "empty").mkdir()
    template = ("--template", "a {colour} {garment}")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", clothes)
    cases = [(tmp_path / "empty", "pictures"), (tmp_path / "missing", "does not exist"), (packed, "unpack it")]
    for path, word in cases:
        output = run(path, *template, code=2).output
        assert word in output and "Traceback" not in output
    assert "--template" in run(clothes, code=2).output
    assert "metadata.csv" in run(clothes, *template, "--write", "sidecar", code=2).output
    error = told(tmp_path / "empty", *template, code=2)
    assert error["event"] == "error" and error["wanted"] == "pictures"
    write(clothes, 'file_name,colour\n\'a.png","red\n')
    assert "metadata.csv" in run(clothes, *template, code=2).output


# ---------------------------------------------------------------------------------------------------------------------
# Class folders and sidecars


def test_class_folders_give_their_names(tmp_path):
    pictures(tmp_path, "water_lilies/1.png", "water_lilies/2.jpg", "iris/1.png", "Ägypten/1.png", "loose.png")
    (tmp_path / "iris" / "cut.png").write_bytes((tmp_path / "iris" / "1.png").read_bytes()[:40])
    said = told(tmp_path, "--template", "a painting of {a} {name}")
    assert (said["written"], said["without"], said["files"]) == (4, 1, 1)
    assert [name for name, _ in said["skipped"]] == ["iris/cut.png"]
    found = captions(tmp_path)
    assert found["iris/1.png"] == ("a painting of an iris",) and found["Ägypten/1.png"] == ("a painting of a ägypten",)
    assert found["water_lilies/2.jpg"] == ("a painting of water lilies",) and "iris/cut.png" not in found
    assert (tmp_path / "metadata.csv").is_file()


def test_sidecars_are_written_and_kept(tmp_path):
    pictures(tmp_path, "rose/1.png", "rose/2.png", "tulip/1.png")
    (tmp_path / "rose" / "2.txt").write_text("my own words\n")
    (tmp_path / "tulip" / "1.txt").write_text("\n")  # says nothing
    said = told(tmp_path, "--template", "a {name}", "--template", "one {name}")
    assert (said["written"], said["kept"], said["files"]) == (2, 1, 2)
    assert captions(tmp_path) == {
        "rose/1.png": ("a rose", "one rose"),
        "rose/2.png": ("my own words",),
        "tulip/1.png": ("a tulip", "one tulip"),
    }
    assert not list(tmp_path.glob("metadata*"))
    # a table goes before sidecars, so it takes over what they say
    assert told(tmp_path, "--template", "a {name}", "--write", "metadata")["written"] == 0
    pictures(tmp_path, "tulip/2.png")
    assert told(tmp_path, "--template", "a {name}", "--write", "metadata")["written"] == 1
    assert captions(tmp_path)["rose/2.png"] == ("my own words",) and captions(tmp_path)["rose/1.png"] == ("a rose", "one rose")
    assert captions(tmp_path)["tulip/2.png"] == ("a tulip",)


def test_one_sidecar_cannot_serve_two_pictures(tmp_path):
    pictures(tmp_path, "a.png", "a.jpg", "b.png")
    write(tmp_path, "which,kind\na.png,rose\na.jpg,tulip\nb.png,iris\n", "list.csv")
    assert "--write metadata" in run(tmp_path, "--template", "{kind}", "--write", "sidecar", code=2).output
    assert not list(tmp_path.glob("*.txt"))
    assert told(tmp_path, "--template", "{kind}")["written"] == 3


# ---------------------------------------------------------------------------------------------------------------------
# Captioners

CAPTIONER = '''
class Namer:
    """Says which channel is the strongest; a picture without red makes it fail if told to."""

    fails = False

    def caption(self, pixels):
        assert pixels.dtype == "uint8" and pixels.ndim == 3 and pixels.shape[2] == 3
        red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
        if self.fails and red < 10:
            raise RuntimeError("too little red")
        return ["a red field"] if red > max(green, blue) else [" a  blue field ", "", "blue"]


NAMER, WRONG, NOTHING = Namer(), type("Wrong", (), {"caption": lambda self, pixels: "a string"})(), 3
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with captioners, installed as pip leaves it: a module and its metadata on the path."""
    place = tmp_path / "site"
    about = place / "tiny_captioner-1.0.dist-info"
    about.mkdir(parents=True)
    (place / "tiny_captioner.py").write_text(CAPTIONER)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-captioner\nVersion: 1.0\n")
    names = ("namer=tiny_captioner:NAMER", "wrong=tiny_captioner:WRONG", "nothing=tiny_captioner:NOTHING")
    (about / "entry_points.txt").write_text("[giverny.captioners]\n" + "\n".join(names) + "\n")
    monkeypatch.syspath_prepend(str(place))
    yield
    sys.modules.pop("tiny_captioner", None)


def test_an_installed_captioner_is_found_by_name(installed, tmp_path):
    pictures(tmp_path / "p", *(f"{i:02d}.png" for i in range(13)))
    said = told(tmp_path / "p", "--captioner", "namer", "--template", "a photo")
    assert said["written"] == 13
    found = captions(tmp_path / "p")
    assert found["00.png"] == ("a photo", "a blue field", "blue") and found["12.png"] == ("a photo", "a red field")
    assert "did you mean 'namer'" in run(tmp_path / "p", "--captioner", "namr", code=2).output
    assert "caption(pixels)" in run(tmp_path / "p", "--captioner", "nothing", "--replace", code=2).output
    assert "list of strings" in run(tmp_path / "p", "--captioner", "wrong", "--replace", code=2).output
    assert captions(tmp_path / "p") == found


def test_without_any_captioner_the_door_says_so(tmp_path):
    pictures(tmp_path, "a.png")
    output = run(tmp_path, "--captioner", "blip", code=2).output
    assert "giverny.captioners" in output and "none is installed" in output


def test_a_captioner_that_fails_half_way_loses_nothing(installed, tmp_path):
    folder = tmp_path / "p"
    pictures(folder, *(f"{i:02d}.png" for i in range(8)))
    Image.new("RGB", (16, 12), (0, 90, 255)).save(folder / "05.png")
    Image.new("RGB", (16, 12), (20, 90, 255)).save(folder / "00.png")
    import tiny_captioner

    tiny_captioner.NAMER.fails = True
    with pytest.raises(RuntimeError, match="too little red"):
        caption_folder(folder, captioner="namer")
    assert sorted(captions(folder)) == [f"{i:02d}.png" for i in range(5)]
    tiny_captioner.NAMER.fails = False
    assert (said := told(folder, "--captioner", "namer"))["written"] == 3 and said["kept"] == 5
    assert len(captions(folder)) == 8
