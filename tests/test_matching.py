"""Which model here a picture means: the hashes that other programs write, of published files known by name."""

import hashlib
import json
import secrets
import shutil

import pytest
from click.testing import CliRunner
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file

from giverny.assembly.matching import match_model
from giverny.assembly.published import add_published, hashes_of
from giverny.base.infotext import Parameters
from giverny.cli import cli
from giverny.painters.diffusion.published import Reading
from published_twins import write_twin

pytestmark = pytest.mark.xdist_group("oracles")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two single files of more than 1 MiB, so that the window of the old hash has something in it, and their words."""
    place = tmp_path_factory.mktemp("files")
    write_twin(place / "model", "sd1", secrets.randbelow(2**31))
    for name in ("one", "two"):
        result = CliRunner().invoke(cli, ["models", "convert", str(place / "model"), str(place / f"{name}.safetensors")])
        assert result.exit_code == 0, result.output
        shutil.rmtree(place / "model")
        write_twin(place / "model", "sd1", secrets.randbelow(2**31))
    return place


def said(digits, name=""):
    return Parameters(settings={"Model hash": digits, "Model": name})


@pytest.fixture
def named(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reading = Reading(words=files / "model" / "tokenizer", configs=files / "model")
    made = {"first": files / "one.safetensors", "second": files / "two.safetensors"}
    known = {name: add_published(file, name, reading, place=tmp_path / "models") for name, file in made.items()}
    return known, made


def test_every_hash_of_a_file_finds_its_name(named):
    known, made = named
    for name, file in made.items():
        raw = file.read_bytes()
        assert len(raw) > 0x110000
        header = int.from_bytes(raw[:8], "little")
        whole, old, data = (hashlib.sha256(b).hexdigest() for b in (raw, raw[0x100000:0x110000], raw[8 + header :]))
        for digits in (whole[:10], whole[:10].upper(), whole, old[:8], data[:12], data):
            assert match_model(said(digits), known) == (name, "hash"), digits
        assert hashes_of(file) == {"sha256": whole, "model": whole[:10], "old": old[:8], "data": data[:12]}
        # ten digits are of a whole file always, eight never: nothing else is looked at
        assert match_model(said(data[:10]), known) is None and match_model(said(whole[:8]), known) is None
        assert match_model(said(old[:8][:-1]), known) is None
    assert match_model(said("0" * 12, "SECOND.ckpt"), known) == ("second", "name")


def test_notes_in_a_header_change_one_hash_and_not_the_other(named, tmp_path):
    known, made = named
    again = tmp_path / "again.safetensors"
    save_file(load_file(made["first"]), again, {"modelspec.title": "renamed"})
    theirs = hashes_of(again)
    assert match_model(said(theirs["data"]), known) == ("first", "hash") and match_model(said(theirs["model"]), known) is None


def test_the_tensors_of_a_file_are_hashed_once(named):
    known, made = named
    digits = hashes_of(made["first"])["data"]
    notes = user_cache_path("giverny", appauthor=False) / "hashes.json"
    told = json.loads(notes.read_text())
    (entry,) = [name for name in told if name.endswith("(data)")]
    told[entry][2] = "f" * 64
    notes.write_text(json.dumps(told))
    assert match_model(said("f" * 12), known) == ("first", "hash"), "what was noted is believed while the file stays as it is"
    made["first"].touch()
    assert match_model(said("f" * 12), known) is None and match_model(said(digits), known) == ("first", "hash")


def test_a_file_that_went_away_is_no_error(named, tmp_path):
    known, made = named
    file = shutil.copy(made["first"], tmp_path / "mine.safetensors")
    hashes = hashes_of(tmp_path / "mine.safetensors")
    file.unlink()
    for folder in known.values():
        card = json.loads((folder / "card.json").read_text())
        card["links"]["model"]["path"] = str(file)
        (folder / "card.json").write_text(json.dumps(card))
    assert match_model(said(hashes["old"]), known) is None and match_model(said(hashes["data"]), known) is None
    assert match_model(said(hashes["model"]), known) == ("first", "hash")
