"""`giverny submit`: what is counted and refused, going on where it was, the archive, and whether an archive keeps the rules."""

import io
import json
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from giverny.base.errors import InputError
from giverny.base.picture import read_provenance
from giverny.cli.submit import watched
from giverny.cli.voice import Voice
from giverny.data.trees import FolderTree, open_tree
from giverny.gans.generators import ResnetRecipe
from giverny.pipelines import submit
from giverny.pipelines.submit_archive import MONET, Checked, Rules, check, refuse_count
from test_cli import events, run
from test_translator import BAD, painter_of, smooth
from tiny_painters import tiny_painter

pytestmark = pytest.mark.xdist_group("contract")
SMALL = Rules(least=3, most=6, size=16)


def jpeg(pixels, form="JPEG", **how):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **how)
    return out.getvalue()


@pytest.fixture(scope="module")
def painter():
    return painter_of(ResnetRecipe(channels=4, blocks=1))


@pytest.fixture
def photos(tmp_path):
    """Five photographs, of two sizes, two of one name in different capitals; one is further down."""
    place = tmp_path / "photos"
    (place / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.jpg", "c d é.png", "more/A.webp", "more/e.png")):
        Image.fromarray(smooth(16 if i else 40, 16 if i else 30, i)).save(place / name)
    (place / "note.txt").write_text("no picture")
    return place


def pieces_in(*places):
    found, bad = submit.photos_in(places)
    assert not bad
    return submit.pieces_of(found)


def packed(painter, pieces, out, rules=SMALL, **how):
    """({what happened: how often}, how the archive keeps the rules) of a whole run."""
    told = list(submit.submit(painter, pieces, out, rules, **how))
    counts = {}
    for one in told[:-1]:
        counts[one.happened] = counts.get(one.happened, 0) + (one.happened != "moving")
    assert isinstance(told[-1], Checked)
    return counts, told[-1]


def pixels_of(archive):
    tree = open_tree(archive)
    return {name: np.asarray(Image.open(io.BytesIO(tree.read_bytes(name)))) for name in tree.names()}


# -- what is painted ----------------------------------------------------------------------------------------------------


def test_an_archive_holds_a_jpeg_of_each_photograph(painter, photos, tmp_path):
    out = tmp_path / "images.zip"
    counts, found = packed(painter, pieces_in(photos), out)
    assert counts["painted"] == 5 and found == Checked(5, (), ()) and check(out, SMALL) == found
    with zipfile.ZipFile(out) as archive:
        infos = archive.infolist()
        assert [i.filename for i in infos] == ["a.jpg", "b.jpg", "c_d_é.jpg", "A-2.jpg", "e.jpg"]
        assert {i.compress_type for i in infos} == {zipfile.ZIP_STORED}
        for info in infos:
            image = Image.open(io.BytesIO(archive.read(info)))
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (16, 16))
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # every pixel has its own colour
        archive.extractall(tmp_path / "unpacked")
    told = read_provenance(tmp_path / "unpacked" / "A-2.jpg")
    assert told.request.start.picture.name == "more/A.webp" and told.painter == "translator"  # nothing of folders above
    assert not (tmp_path / "images.parts").exists()


def test_pictures_are_those_that_the_painter_makes_of_the_square_in_the_middle(painter, photos, tmp_path):
    out = tmp_path / "images.zip"
    packed(painter, pieces_in(photos), out, quality=100)
    square = Image.fromarray(smooth(40, 30, 0)).resize((16, 16), Image.Resampling.LANCZOS, (5, 0, 35, 30))
    (tmp_path / "own").mkdir()
    for name in "xyz":
        square.save(tmp_path / "own" / f"{name}.png")
    packed(painter, pieces_in(tmp_path / "own"), tmp_path / "own.zip", quality=100)
    ours, theirs = pixels_of(tmp_path / "own.zip")["x.jpg"], pixels_of(out)["a.jpg"]
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_quality_is_a_setting(painter, photos, tmp_path):
    sizes = {}
    for quality in (60, 95):
        packed(painter, pieces_in(photos), tmp_path / f"{quality}.zip", quality=quality)
        tables = Image.open(io.BytesIO(open_tree(tmp_path / f"{quality}.zip").read_bytes("a.jpg"))).quantization
        sizes[quality] = sum(map(sum, tables.values()))
    assert sizes[60] > 3 * sizes[95]


def test_archives_folders_in_them_and_named_sets_are_read(photos, tmp_path, monkeypatch):
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for i in range(4):
            made.writestr(f"{'photo_jpg' if i else 'monet_jpg'}/{i}.jpg", jpeg(smooth(16, 16, i)))
        made.writestr("photo_jpg/cut.jpg", jpeg(smooth(16, 16, 5))[:200])
        made.writestr("__MACOSX/._0.jpg", b"")
    found, bad = submit.photos_in([archive])
    assert len(found) == 4 and [place for place, _ in bad] == [str(archive / "photo_jpg" / "cut.jpg")]
    found, _ = submit.photos_in([archive / "photo_jpg"])
    assert [photo.name for photo in found] == [f"photo_jpg/{i}.jpg" for i in (1, 2, 3)]
    assert found[0].read().content == jpeg(smooth(16, 16, 1))
    with pytest.raises(InputError, match="photo_jpg"):
        submit.photos_in([archive / "photo_jpeg"])
    (tmp_path / "data" / "landscape-photos").mkdir(parents=True)
    archive.rename(tmp_path / "data" / "landscape-photos" / "photos_256.zip")
    monkeypatch.setenv("GIVERNY_DATA", str(tmp_path / "data"))
    assert len(submit.photos_in([Path("landscape-photos")])[0]) == 4


def test_what_is_named_twice_counts_once(photos):
    found, _ = submit.photos_in([photos, photos / "a.png", photos / "more", photos / ".." / "photos" / "b.jpg"])
    assert len(found) == 5
    with pytest.raises(InputError, match="not there"):
        submit.photos_in([photos / "no.png"])


@given(st.lists(st.text(st.characters(exclude_categories=(), exclude_characters="/"), max_size=8), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_names_in_the_archive_are_flat_and_unique_whatever_files_are_called(stems):
    names = [piece.name for piece in submit.pieces_of(submit.Photo(FolderTree(Path()), f"x{s}.png") for s in stems)]
    assert len({name.lower() for name in names}) == len(stems)
    assert not any(set('/\\:*?"<>|\0\n') & set(name) for name in names) and all(n.endswith(".jpg") for n in names)
    for name in names:
        name.encode()  # what a file system has that is no text is gone


# -- going on -----------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_and_comes_to_the_same(painter, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(20):  # more than are asked for at once
        Image.fromarray(smooth(16, 16, i)).save(tmp_path / "photos" / f"{i}.png")
    pieces, out, rules = pieces_in(tmp_path / "photos"), tmp_path / "images.zip", Rules(least=20, most=20, size=16)
    kept = {}
    with closing(submit.submit(painter, pieces, out, rules)) as told:
        while len(kept) < submit.GROUP + 1:
            one = next(told)
            if one.happened == "painted":
                kept[one.piece.name] = one.part.read_bytes()
    assert len(list((tmp_path / "images.parts").iterdir())) == len(kept) and not out.exists()
    counts, _ = packed(painter, pieces, out, rules)
    assert counts["there"] == len(kept) and counts["painted"] == 20 - len(kept)
    assert all(open_tree(out).read_bytes(name) == content for name, content in kept.items())
    packed(painter, pieces, tmp_path / "other.zip", rules)
    one, other = pixels_of(out), pixels_of(tmp_path / "other.zip")
    assert len(one) == 20 and one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_only_what_was_made_in_the_same_way_is_kept(painter, photos, tmp_path):
    out = tmp_path / "images.zip"
    (photos / "bad.png").write_bytes(b"no picture")  # keeps the parts
    pieces = [*pieces_in(photos / "a.png", photos / "b.jpg", photos / "more"), *pieces_in(photos / "bad.png")]

    def made(painter=painter, **how):
        out.unlink(missing_ok=True)
        return packed(painter, pieces, out, **how)[0]

    assert made()["painted"] == 4 and made() == {"there": 4, "failed": 1}
    other = painter_of(ResnetRecipe(channels=4, blocks=1), seed=1)
    other.fingerprint = "another"
    for how in ({"strength": 0.5}, {"quality": 80}, {"knobs": {"denoise": 1}}, {"painter": other}):
        assert made(**how)["painted"] == 4 and made(**how)["there"] == 4
    Image.fromarray(smooth(16, 16, 99)).save(photos / "b.jpg")
    assert made()["painted"] == 1  # another photograph
    for part in (tmp_path / "images.parts").iterdir():
        part.write_bytes(part.read_bytes()[:-300])
    assert made()["painted"] == 4  # damaged parts are not believed


def test_photographs_that_fail_are_named_and_the_others_kept(painter, photos, tmp_path):
    out = tmp_path / "images.zip"
    for name, content in BAD.items():
        (photos / f"{name}.jpg").write_bytes(content)
    (photos / "broken.jpg").write_bytes(b"no picture")
    found, bad = submit.photos_in([photos])
    assert {Path(place).name for place, _ in bad} == {"recognised.jpg", "broken.jpg"}
    wide = Rules(least=5, most=10, size=16)
    told = list(submit.submit(painter, submit.pieces_of(found), out, wide))
    failed = {one.piece.photo.name: one.reason for one in told[:-1] if one.happened == "failed"}
    assert set(failed) == {"animation.jpg", "CMYK.jpg"}  # one of 1 x 1 pixels is enlarged like any other
    assert "CMYK" in failed["CMYK.jpg"] and "animation" in failed["animation.jpg"]
    assert check(out, wide).pictures == len(found) - len(failed) and (tmp_path / "images.parts").is_dir()
    for name in failed:
        (photos / name).unlink()
    out.unlink()
    counts, _ = packed(painter, pieces_in(*(photo.place for photo in found if photo.name not in failed)), out, wide)
    assert set(counts) == {"there"} and not (tmp_path / "images.parts").exists()


def test_too_many_that_fail_end_it_and_nothing_is_lost(painter, photos, tmp_path):
    out = tmp_path / "images.zip"
    pieces = pieces_in(photos)
    (photos / "more" / "x.png").write_bytes(b"no picture")
    pieces += pieces_in(photos / "more" / "x.png")
    with pytest.raises(InputError, match=r"1 of 6 that cannot be painted .*x\.png.*images\.parts"):
        list(submit.submit(painter, pieces, out, Rules(least=6, most=6, size=16)))
    assert not out.exists() and len(list((tmp_path / "images.parts").iterdir())) == 5
    assert packed(painter, pieces[:5], out)[0]["there"] == 5


def test_only_parts_are_taken_away(painter, photos, tmp_path):
    (tmp_path / "images.parts").mkdir()
    for name in ("holiday.jpg", ".0123456789abcdef.jpg.12345678.part", "0123456789abcdef.jpg"):
        (tmp_path / "images.parts" / name).write_text("mine?")
    packed(painter, pieces_in(photos), tmp_path / "kept.zip", keep=True)
    assert len(list((tmp_path / "kept.parts").iterdir())) == 5
    packed(painter, pieces_in(photos), tmp_path / "images.zip")
    assert [file.name for file in (tmp_path / "images.parts").iterdir()] == ["holiday.jpg"]


# -- models that paint from noise ---------------------------------------------------------------------------------------


def test_a_diffusion_model_is_submitted_from_noise_or_over_photographs(photos, tmp_path):
    diffusion = tiny_painter(pixels=True)
    counts, found = packed(diffusion, submit.drawn(4), tmp_path / "noise.zip", knobs={"steps": 2})
    assert counts["painted"] == 4 and found.copies == ()
    assert list(pixels_of(tmp_path / "noise.zip")) == [f"{i:05d}.jpg" for i in range(4)]
    with zipfile.ZipFile(tmp_path / "noise.zip") as archive:
        archive.extractall(tmp_path)
    assert read_provenance(tmp_path / "00003.jpg").request.seed == 3
    counts, found = packed(diffusion, pieces_in(photos), tmp_path / "over.zip", strength=1.0, knobs={"steps": 2})
    assert counts["painted"] == 5 and found.copies == ()  # painted anew, each from noise of its own


def test_what_cannot_be_is_refused_before_anything_is_painted(painter, photos, tmp_path):
    out, pieces = tmp_path / "images.zip", pieces_in(photos)

    def refused(words, painter=painter, pieces=pieces, out=out, rules=SMALL, **how):
        with pytest.raises(InputError, match=words):
            next(submit.submit(painter, pieces, out, rules, **how))
        assert not submit.parts_of(out).exists()

    refused("7,000 to 10,000", rules=MONET)
    refused("3 to 4 pictures", rules=Rules(least=3, most=4, size=16))
    refused("translates them", pieces=submit.drawn(4))
    refused("denoise", knobs={"denoise": 99})
    refused("zip archive", out=tmp_path / "images.tar")
    out.write_bytes(b"hours of work")
    refused("there already")
    assert out.read_bytes() == b"hours of work"


def test_a_model_that_enlarges_is_asked_for_less(tmp_path):
    diffusion, half, out = tiny_painter(pixels=True), {"upscale": 2, "upscale_strength": 0, "steps": 2}, tmp_path / "i.zip"
    with pytest.raises(InputError, match="16 x 16 pixels; given 32 x 32"):
        list(submit.submit(diffusion, submit.drawn(3), out, SMALL, knobs=half))
    assert packed(diffusion, submit.drawn(3), out, knobs=half, size=(8, 8))[0]["painted"] == 3


# -- the rules ----------------------------------------------------------------------------------------------------------


def test_the_bounds_are_the_competition_s():
    assert Rules(least=7000, most=10000, size=256) == MONET
    refuse_count(7000)
    refuse_count(10000)
    for count in (0, 6999, 10001):
        with pytest.raises(InputError, match="7,000 to 10,000"):
            refuse_count(count)


@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_files_of_an_archive_are_counted(tmp_path, count):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for i in range(count):
            archive.writestr(f"{i}.jpg", jpeg(smooth(16, 16, i)))
    wrong = check(tmp_path / "i.zip", SMALL).wrong
    assert wrong == (() if count in (3, 6) else (f"{count} pictures, where 3 to 6 are asked for",))


def test_breaches_are_named(tmp_path):
    sound = jpeg(smooth(16, 16))
    files = {
        "good.jpg": sound,
        "again.jpg": jpeg(smooth(16, 16), comment=b"other bytes, the same pixels"),
        "folder/inner.jpg": jpeg(smooth(16, 16, 1)),
        "back\\slash.jpg": jpeg(smooth(16, 16, 2)),
        "small.jpg": jpeg(smooth(15, 16)),
        "grey.jpg": jpeg(smooth(16, 16)[..., 0]),
        "png.jpg": jpeg(smooth(16, 16), "PNG"),
        "cut.jpg": sound[: len(sound) // 2],
        "notes.txt": b"hello",
        ".DS_Store": b"\0",
    }
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.mkdir("empty")
    found = check(tmp_path / "i.zip", Rules(least=1, most=10, size=16))
    wrong = dict(sentence.split(": ", 1) for sentence in found.wrong)
    assert wrong == {
        "folder/inner.jpg": "in a folder", "back\\slash.jpg": "in a folder", "empty/": "a folder",
        "small.jpg": "15 x 16 pixels, not 16 x 16", "grey.jpg": "colours in L, not in RGB", "png.jpg": "no JPEG but PNG",
        "cut.jpg": wrong["cut.jpg"], "notes.txt": "no picture", ".DS_Store": "no picture",
    }  # fmt: skip
    assert wrong["cut.jpg"].startswith("damaged (") and found.copies == (("again.jpg", "good.jpg"),) and found.pictures == 10


def test_damage_inside_the_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.jpg", jpeg(smooth(16, 16, i)))
        with pytest.warns(UserWarning):
            archive.writestr("2.jpg", jpeg(smooth(16, 16, 4)))
    raw = bytearray((tmp_path / "i.zip").read_bytes())
    raw[200] ^= 255
    (tmp_path / "i.zip").write_bytes(raw)
    wrong = check(tmp_path / "i.zip", SMALL).wrong
    assert len(wrong) == 2 and wrong[0].startswith("0.jpg: damaged inside") and wrong[1] == "2.jpg: there twice"
    for content in (None, b"no archive"):
        if content:
            (tmp_path / "no.zip").write_bytes(content)
        with pytest.raises(InputError, match="zip archive"):
            check(tmp_path / "no.zip", SMALL)


# -- the command --------------------------------------------------------------------------------------------------------


def test_the_command_refuses_what_is_too_few_before_it_opens_a_model(photos, tmp_path):
    said = run("submit", photos, "--to", "no-such-model", "-o", tmp_path / "i.zip", code=2).output
    assert "5 photographs" in said and "wanted 7,000 to 10,000" in said and "gan-getting-started.zip" in said
    assert "7,000" in run("submit", "-n", 6999, "--to", "no-such-model", code=2).output
    assert "a model's name" in run("submit", "-n", 7000, "--to", "no-such-model", code=2).output
    assert list(tmp_path.iterdir()) == [photos]
    for words in ((), ("-n", 7000, photos), ("--check", "i.zip", photos)):
        assert "wants one of" in run("submit", *words, code=2).output
    (photos / "cut.jpg").write_bytes(jpeg(smooth(16, 16))[:100])
    told = events("submit", photos, code=2)
    assert told[0] == {"event": "photographs", "readable": 5, "unreadable": 1}
    assert [(e["event"], e.get("file", "").endswith("cut.jpg")) for e in told[1:]] == [("failed", True), ("error", False)]


def test_a_model_that_does_not_paint_from_noise_is_refused(tiny_runs, tmp_path):
    said = run("submit", "-n", 7000, "--to", tiny_runs["translator"], "-o", tmp_path / "i.zip", code=2).output
    assert "a model that paints from noise" in said and not list(tmp_path.iterdir())


def test_check_says_what_is_wrong(tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for i in range(12):
            archive.writestr(f"{i}.jpg", jpeg(smooth(256, 256, i) if i < 2 else smooth(16, 16)))
        archive.writestr("2b.jpg", jpeg(smooth(256, 256, 0)))
    said = run("submit", "--check", tmp_path / "i.zip", code=2).output
    assert "does not keep the rules" in said and "13 pictures, where 7,000 to 10,000 are asked for" in said
    assert "note: 2b.jpg is the same picture as 0.jpg" in said and "and 1 more" in said
    told = events("submit", "--check", tmp_path / "i.zip", code=2)[-1]
    assert told["event"] == "checked" and told["pictures"] == 13 and len(told["wrong"]) == 11
    assert "zip archive" in run("submit", "--check", tmp_path / "no.zip", code=2).output


def test_it_is_said_what_came_of_a_run(painter, photos, tmp_path, capsys):
    out = tmp_path / "images.zip"
    (photos / "bad.png").write_bytes(b"no picture")
    pieces = [*pieces_in(photos / "a.png", photos / "b.jpg", photos / "more"), *pieces_in(photos / "bad.png")]

    def stopped(painting):
        for told in painting:
            yield told
            if told.happened == "painted":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(stopped(submit.submit(painter, pieces, out, SMALL)), len(pieces), out, Voice(False))
    assert "1 of 5 pictures are done, in " in capsys.readouterr().out
    assert watched(submit.submit(painter, pieces, out, SMALL), len(pieces), out, Voice(False)) == 1
    said = capsys.readouterr().out
    assert "4 pictures in " in said and "1 of them there already" in said and "left out: " in said and "bad.png" in said
    assert "of another size, so cut to a square and brought to 256 x 256 pixels: 1\n" in said
    out.unlink()
    assert watched(submit.submit(painter, pieces, out, SMALL), len(pieces), out, Voice(True)) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told[-1] == {"event": "submitted", "file": str(out), "cut": 1, "painted": 0, "there": 4, "failed": 1}
