"""Audits: what is planted in a folder is found, and what is computed agrees with what other libraries compute."""

from __future__ import annotations

import csv
import gc
import json
import shutil
import weakref
import zipfile
from collections import Counter

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from click.testing import CliRunner
from PIL import Image, ImageFilter

from conftest import FIXTURES
from giverny.base.contracts import Sample
from giverny.base.errors import InputError
from giverny.base.images import read_picture
from giverny.cli import cli
from giverny.data.audit import Audit, Part, audit, open_parts
from giverny.data.looks import SIDE, look, quantity
from test_report import ADDRESSES, Page


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def run(*args, code=0):
    result = CliRunner().invoke(cli, ["data", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def audited(*args):
    (line,) = run("audit", *args, "--json").stdout.splitlines()
    told = json.loads(line)
    assert told.pop("event") == "audit"
    told.pop("page")
    return Audit.model_validate(told)


def scene(rng, size=(72, 96)):
    """A picture with large and small shapes, in colour: uint8 (H, W, 3)."""
    coarse = Image.fromarray(rng.integers(30, 226, (5, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = rng.integers(-12, 13, (size[1], size[0], 3))
    return (np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8)


def save(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def table(folder, rows, name="metadata.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def planted(tmp_path, rng):
    """A folder with a table, in which every kind of fault is planted once. 40 sound pictures, 3 further files."""
    folder = tmp_path / "kleider straße"
    rows = []
    for i in range(40):
        pixels = scene(rng)
        form = "png" if i % 4 else "jpg"
        match i:
            case 5:  # the pixels of an earlier one
                pixels = read_picture(folder / rows[1]["file_name"])
            case 11:  # an earlier one, smaller and compressed
                pixels = np.asarray(Image.fromarray(read_picture(folder / rows[2]["file_name"])).resize((60, 80)))
            case 17:
                pixels = (scene(rng) * 0.1).astype(np.uint8)
            case 23:
                pixels = np.full((96, 72, 3), (200, 30, 40), np.uint8)
            case 29:
                pixels = np.asarray(Image.fromarray(scene(rng)).filter(ImageFilter.GaussianBlur(4)))
            case 31:
                pixels = scene(rng)[:, :, :1].repeat(3, axis=2)
            case 37:
                pixels = scene(rng, (200, 40))
        name = f"bilder/été {i:02d}.{form}"
        save(folder / name, pixels, **({"quality": 92} if form == "jpg" else {}))
        colour = ["red", "blue", "", "n/a"][i % 4] if i % 8 else "<script>alert(1)</script>"
        text = f"a {colour} dress" if i % 4 < 2 else ""
        split = "test" if i in (5, 11) else "train"
        rows.append(dict(file_name=name, text=text, colour=colour, garment=["dress", "hat"][i % 3 == 0], split=split, id=i * 7))
    (folder / "bilder" / "cut.jpg").write_bytes((folder / "bilder" / "été 00.jpg").read_bytes()[:300])
    save(folder / "loose.png", scene(rng))
    rows.append(dict(rows[3], file_name="bilder/cut.jpg"))
    rows.append(dict(rows[3], file_name="bilder/gone.png"))
    table(folder, rows)
    return folder


def test_what_is_planted_is_found(planted, tmp_path):
    found = audited(planted, "-o", tmp_path / "page.html")
    assert found.pictures == 40 and found.parts == {"train": 38, "test": 2}
    assert dict(found.unreadable).keys() == {"bilder/cut.jpg", "bilder/gone.png"} and found.unlisted == ("loose.png",)
    attributes = {a.name: {v.value: v.count for v in a.values} for a in found.attributes}
    assert attributes["garment"] == {"dress": 26, "hat": 14} and attributes["format"] == {"PNG": 30, "JPEG": 10}
    assert attributes["colour"] == {"blue": 10, "red": 5, "<script>alert(1)</script>": 5} and found.other_columns == ("id",)
    assert next(a for a in found.attributes if a.name == "colour").missing == 20
    assert attributes["shape"] == {"upright": 39, "lying": 1} and attributes["size"]["72 x 96"] == 38
    assert (found.copies, found.near_copies) == (1, 1)
    (leak, back) = found.leaks
    assert (leak.part, leak.other, leak.pictures, leak.same) == ("test", "train", 2, 1)
    assert (back.part, back.pictures, back.same) == ("train", 2, 1)
    assert [g.distinct for g in found.groups] == [1, 2]
    assert {tuple(sorted(p.name[11:13] for p in g.places)) for g in found.groups} == {("01", "05"), ("02", "11")}
    worst = {c.name: (c.count, [p.name[11:13] for p in c.worst]) for c in found.concerns}
    assert worst["dark"][1][0] == "17" and worst["empty"] == (1, worst["empty"][1]) and worst["empty"][1][0] == "23"
    assert worst["blurred"][1][:3] == ["23", "29", "17"] and worst["blurred"][0] == 3
    assert worst["oddly shaped"] == (1, ["37"]) and worst["grey"] == (1, ["31"]) and worst["small"] == (0, [])
    words = found.captions
    assert (words.without, words.captions, words.distinct) == (20, 20, 3)
    assert words.words[0].value == "dress" and words.words[0].count == 20 and words.lengths.median == 3
    # the second run says the same
    assert audited(planted) == found
    text = run("audit", planted).output
    assert "shared: of test 2 in train, 1 of them to the pixel" in text and "cut.jpg" in text


def test_the_page_stands_alone(planted, tmp_path):
    run("audit", planted, "-o", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not page.unbalanced and not page.open
    assert all(address.startswith("data:image/") for address in page.addresses) and len(page.images) > 40
    assert "script" not in page.tags and "<script>alert(1)</script>" in page.text and ADDRESSES
    for told in ("kleider straße", "cut.jpg", "2 values", "été 17.png", "shares with", "loose.png"):
        assert told in page.html
    assert (tmp_path / "page.html").stat().st_size < 1_500_000 and not list(tmp_path.glob("*.part"))
    assert "a folder" in run("audit", planted, "-o", tmp_path, code=2).output


def test_a_table_without_captions_and_a_zip_are_taken(planted, tmp_path):
    rows = list(csv.DictReader((planted / "metadata.csv").open(encoding="utf-8")))
    table(planted, [{k: v for k, v in row.items() if k != "text"} for row in rows])
    found = audited(planted)
    assert found.captions.without == found.pictures == 41  # the loose one counts as well
    assert next(a for a in found.attributes if a.name == "garment").missing == 1
    assert found.parts == {"train": 38, "test": 2, "no split": 1}
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", planted)
    assert zipfile.is_zipfile(packed)
    other = audited(packed)
    assert other.attributes == found.attributes and other.groups == found.groups


def test_named_sets_have_their_splits_and_classes():
    found = audited("fashion-mnist")
    assert found.parts == {"train": 400, "test": 200} and found.pictures == 600
    (classes,) = (a for a in found.attributes if a.name == "class")
    assert {v.count for v in classes.values} == {60} and classes.evenness == pytest.approx(1)
    assert next(a for a in found.attributes if a.name == "shape").evenness == 0
    assert not next(c for c in found.concerns if c.name == "grey").count  # where all are grey, none is odd


def test_classes_are_an_attribute_once(tmp_path, rng):
    for i in range(24):
        save(tmp_path / ["ros_é", "tulips"][i % 3 == 0] / f"{i}.png", scene(rng))
    (classes, *_) = audited(tmp_path).attributes
    assert classes.name == "class" and [(v.value, v.count) for v in classes.values] == [("ros_é", 16), ("tulips", 8)]
    rows = [dict(file_name=p.relative_to(tmp_path).as_posix(), kind=p.parent.name) for p in sorted(tmp_path.rglob("*.png"))]
    table(tmp_path, rows, "what.csv")
    assert [a.name for a in audited(tmp_path).attributes] == ["kind", "size", "shape", "format"]


def test_values_are_shown_as_they_are_written(tmp_path, rng):
    for i in range(6):
        save(tmp_path / f"{i}.png", scene(rng))
    table(tmp_path, [{"file_name": f"{i}.png", "text": "", "[kind]": "[/b] [red]rose"} for i in range(6)])
    output = run("audit", tmp_path).output
    assert "[kind]" in output and "[/b] [red]rose" in output


def test_what_lies_beside_is_searched_for_leaks_only(tmp_path, rng):
    (tmp_path / "other").mkdir()
    chosen = sorted((FIXTURES / "clothing").glob("*.jpg"))[::4]
    for i, path in enumerate(chosen):
        if i % 2:
            shutil.copy(path, tmp_path / "other" / f"x{i}.jpg")
        else:
            Image.open(path).save(tmp_path / "other" / f"x{i}.jpg", quality=60)
    for i in range(5):
        save(tmp_path / "other" / f"y{i}.png", scene(rng))
    found = audited(FIXTURES / "clothing", "--against", tmp_path / "other")
    (leak,) = found.leaks
    assert (leak.pictures, leak.same) == (6, 3) and leak.other == str(tmp_path / "other")
    assert found.pictures == 24 and (found.copies, found.near_copies) == (0, 0) and len(found.groups) == 6
    assert audited(FIXTURES / "clothing", "--against", FIXTURES / "clothing").leaks[0].same == 24


def test_nothing_to_look_at_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.png").write_bytes(b"no picture")
    for name, word in (("empty", "pictures"), ("damaged", "a.png"), ("missing", "named set")):
        output = run("audit", tmp_path / name, code=2).output
        assert word in output and "Traceback" not in output
    assert "fashion-mnist" in run("audit", "fashion-mnst", code=2).output


# ---------------------------------------------------------------------------------------------------------------------
# Streaming


class Drawn:
    """Pictures that are drawn when they are read, and counts of how many are alive at once (a contracts.Source)."""

    name, fingerprint, classes = "drawn", "0" * 16, ()

    def __init__(self, count):
        self.count, self.alive, self.most, self.read_so_far = count, weakref.WeakSet(), 0, 0

    def __len__(self):
        return self.count

    def captions_of(self, index):
        return ()

    def read(self, index):
        class Pixels(np.ndarray):
            __hash__ = object.__hash__

        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8).view(Pixels)
        self.alive.add(pixels)
        self.most, self.read_so_far = max(self.most, len(self.alive)), self.read_so_far + 1
        return Sample(pixels=pixels, name=f"{index}")


def test_pictures_are_not_kept():
    source = Drawn(400)
    assert audit([Part("all", source)]).pictures == 400
    gc.collect()
    assert source.read_so_far == 400 and source.most <= 80 and not source.alive


def test_a_stop_is_heard_at_once():
    source = Drawn(2000)

    def stop(done, total):
        assert total == 2000
        if done >= 160:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit([Part("all", source)], stop)
    assert source.read_so_far <= 300


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def test_quality_is_what_other_libraries_measure(rng):
    for _ in range(20):
        size = tuple(int(side) for side in rng.integers(3, SIDE, 2))
        pixels = scene(rng, size)
        found = look(pixels, "PNG", 123)
        grey = np.asarray(Image.fromarray(pixels).convert("L")) / 255
        kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
        sharp = scipy.ndimage.convolve(grey, kernel)[1:-1, 1:-1].var()
        assert found.sharpness == pytest.approx(sharp, rel=1e-3, abs=1e-9) and found.size == size
        assert found.brightness == pytest.approx(grey.mean(), rel=1e-5) and found.contrast == pytest.approx(
            grey.std(), rel=1e-4
        )
        colours = Counter(map(tuple, (pixels // 16).reshape(-1, 3).tolist()))
        assert found.flat == pytest.approx(max(colours.values()) / (size[0] * size[1])) and not found.grey
    assert look(np.zeros((1, 1, 1), np.uint8)).sharpness == 0 and look(np.zeros((2, 5, 3), np.uint8)).grey


def test_large_and_small_pictures_compare(rng):
    small = scene(rng, (SIDE, 192))
    large = np.asarray(Image.fromarray(small).resize((SIDE * 4, 192 * 4), Image.Resampling.NEAREST))
    assert look(large).sharpness == pytest.approx(look(small).sharpness, rel=1e-3)


def test_evenness_and_the_choice_of_the_cross_table(tmp_path, rng):
    n = 60
    columns = {
        "colour": rng.choice(["red", "blue", "green", "black"], n, p=[0.6, 0.2, 0.1, 0.1]),
        "garment": rng.choice(["hat", "coat", "sock"], n),
        "wool": rng.choice(["yes", "no"], n, p=[0.9, 0.1]),
    }
    columns["warm"] = np.where(columns["garment"] == "coat", "warm", "cool")  # told by the garment already
    rows = []
    for i in range(n):
        save(tmp_path / f"{i}.png", rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        rows.append({"file_name": f"{i}.png", "text": "", **{key: str(value[i]) for key, value in columns.items()}})
    table(tmp_path, rows)
    found = audited(tmp_path)
    for attribute in found.attributes:
        if attribute.name in columns:
            counts = np.unique(columns[attribute.name], return_counts=True)[1]
            assert attribute.evenness == pytest.approx(scipy.stats.entropy(counts) / np.log(len(counts)))
            assert attribute.largest == pytest.approx(counts.max() / n) and attribute.smallest == pytest.approx(
                counts.min() / n
            )
    cross = found.cross
    assert {cross.rows, cross.columns} == {"colour", "garment"}
    wanted = scipy.stats.contingency.crosstab(columns[cross.rows], columns[cross.columns])
    names = [list(map(str, part)) for part in wanted.elements]
    for row, counts in zip(cross.row_values, cross.counts, strict=True):
        for column, count in zip(cross.column_values, counts, strict=True):
            assert count == wanted.count[names[0].index(row), names[1].index(column)]
    assert cross.combinations == wanted.count.size and cross.present == (wanted.count > 0).sum()
    assert cross.rare == ((wanted.count > 0) & (wanted.count < 10)).sum()


def test_quantities_sum_up(rng):
    for log in (False, True):
        values = rng.lognormal(0, 2, 500).tolist()
        found = quantity("x", values, log)
        assert sum(found.counts) == 500 and len(found.edges) == len(found.counts) + 1
        assert found.median == pytest.approx(np.median(values)) and found.least == min(values) and found.most == max(values)
        steps = np.diff(np.log(found.edges) if log else found.edges)
        assert steps == pytest.approx(steps[0])
    assert quantity("x", [3, 3, 3]).counts == (3,) and sum(quantity("x", [0, 1, 2], log=True).counts) == 3


def test_a_source_with_nothing_readable_is_refused():
    with pytest.raises(InputError, match="pictures"):
        audit([Part("beside", Drawn(3), beside=True)])
    assert [p.name for p in open_parts("fashion-mnist", beside=True)] == ["fashion-mnist train", "fashion-mnist test"]
