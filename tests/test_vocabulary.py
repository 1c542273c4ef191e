"""CLIP's words from every kind of place, against transformers' tokenizer and, where the real list is on the machine, against
the ids that OpenAI's files give."""

import json
import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giverny.base.errors import InputError
from giverny.data.vocabularies import CLIP_WORDS, PLACE, clip_words
from giverny.text.tokenizer import Tokenizer
from giverny.text.vocabulary import byte_letters, read_words
from published_twins import write_words

pytestmark = pytest.mark.xdist_group("oracles")
VECTORS = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "masterpiece, best quality, 1girl": [12066, 267, 949, 3027, 267, 272, 1611],
    "An astronaut's  horse—2023!": [550, 18376, 568, 4558, 2005, 273, 271, 273, 274, 256],
    "naïve café 日本": [1097, 35689, 563, 15304, 39121, 19277, 361],
    "": [],
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders with a tiny vocabulary: padded with the end, and with number 0 as Stable Diffusion 2 does."""
    place = tmp_path_factory.mktemp("words")
    write_words(place / "one")
    write_words(place / "two", "!")
    return place


@pytest.fixture(scope="module")
def theirs(places):
    from transformers import CLIPTokenizer

    return {name: CLIPTokenizer.from_pretrained(places / name) for name in ("one", "two")}


def test_bytes_have_letters():
    letters = byte_letters()
    assert len(set(letters)) == 256 and letters[0] == "!" and letters[-1] == "Ń"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["red", "Cat", "dog's", "  ", ",", "42", "é", "日本", "—", "\n", "don't", "ca"]), max_size=90))
def test_ids_equal_transformers(places, theirs, words):
    text = " ".join(words)
    for name in ("one", "two"):
        ours = read_words(places / name)
        expected = theirs[name]([text], padding="max_length", truncation=True, max_length=77).input_ids
        assert ours([text]).ids.tolist() == expected


def test_padding_goes_through_a_file(places, tmp_path):
    for name, pad in (("one", 519), ("two", 0)):
        made = read_words(places / name)
        assert made.pad == pad
        (tmp_path / "tokenizer.json").write_text(made.to_json())
        again = Tokenizer.read(tmp_path / "tokenizer.json")
        assert again.pad == pad and again(["a red cat"]).ids.equal(made(["a red cat"]).ids)
        assert read_words(tmp_path, pad=7).pad == 7 and again.symbols() == made.symbols()
        mask = made(["red"]).mask[0]
        assert int(mask.sum()) == 3, "padding is no part of the text, whatever it is"


def test_broken_places_are_said(places, tmp_path):
    with pytest.raises(InputError, match="without them"):
        read_words(tmp_path)
    (tmp_path / "vocab.json").write_text("[")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(InputError, match="pair of symbols"):
        read_words(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nxx yy\n")
    with pytest.raises(InputError, match="readable file of words"):
        read_words(tmp_path)
    (tmp_path / "vocab.json").write_text((places / "one/vocab.json").read_text())
    with pytest.raises(InputError, match="merges of symbols"):
        read_words(tmp_path)
    (tmp_path / "short.txt").write_text("title\na b\n")
    with pytest.raises(InputError, match=r"48894 merges; .*2 lines"):
        read_words(tmp_path / "short.txt")
    (tmp_path / "bad.gz").write_bytes(b"no")
    with pytest.raises(InputError, match="whole list"):
        read_words(tmp_path / "bad.gz")
    vocabulary = json.loads((places / "one/vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({s: i for s, i in vocabulary.items() if "start" not in s}))
    (tmp_path / "merges.txt").write_text((places / "one/merges.txt").read_text())
    assert read_words(places / "one").vocabulary == len(vocabulary)


def test_where_words_are_looked_for(places, tmp_path, monkeypatch):
    monkeypatch.setattr("giverny.data.vocabularies.PACKAGES", ())
    monkeypatch.setenv("GIVERNY_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"CLIP's vocabulary.*none on this machine.*GIVERNY_CLIP_WORDS"):
        clip_words(fetch=False)
    (tmp_path / CLIP_WORDS.name).mkdir()
    (tmp_path / CLIP_WORDS.name / CLIP_WORDS.files[0].name).write_bytes(b"here")
    assert clip_words(fetch=False).read_bytes() == b"here"
    monkeypatch.setenv(PLACE, str(places / "one"))
    assert clip_words() == places / "one" and clip_words(places / "two") == places / "two"
    with pytest.raises(InputError, match="not there"):
        clip_words(tmp_path / "nowhere")


def test_the_real_vocabulary():
    """Needs the list of merges, which open_clip ships; the vectors are those of OpenAI's own files."""
    try:
        words = read_words(clip_words(fetch=False))
    except InputError:
        pytest.skip("CLIP's list of merges is not on this machine")
    assert (words.vocabulary, words.start, words.end, words.pad) == (49408, 49406, 49407, 49407)
    for text, expected in VECTORS.items():
        found = words([text])
        assert found.ids[0, 1 : int(found.mask.sum()) - 1].tolist() == expected
    symbols, merges = words.symbols()
    assert len(merges) == 48894 and symbols["!"] == 0 and symbols[",</w>"] == 267
    order = np.random.default_rng(secrets.randbelow(2**31)).permutation(len(symbols))
    assert {symbols[s] for s in np.array(list(symbols))[order]} == set(range(49408))
