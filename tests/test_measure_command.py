"""giverny measure, as a person or a program uses it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from giverny.cli import cli


def run(*words, code=0):
    result = CliRunner().invoke(cli, ["measure", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def folders(tmp_path):
    """Forty pictures of noise, twenty more, and a contact sheet beside these."""
    chance = np.random.default_rng()
    for name, count in (("real", 40), ("painted", 20)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = chance.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:05d}.png")
    Image.fromarray(np.zeros((9, 99, 3), np.uint8)).save(tmp_path / "painted" / "sheet-00000.png")
    return tmp_path / "painted", tmp_path / "real"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scores_of(text):
    events = [json.loads(line) for line in text.splitlines()]
    return {e["name"]: e for e in events if e["event"] == "score"}


def test_a_folder_against_a_folder(folders, tmp_path):
    painted, real = folders
    words = (painted, "--against", real, "--features", "pixels", "--sheet", tmp_path / "near.png", "-o", tmp_path / "all.json")
    text = run(*words)
    assert "KID" in text and "left out 1 contact sheet" in text and (tmp_path / "near.png").is_file()
    found = scores_of(run(painted, "--against", real, "--features", "pixels", "--json"))
    kept = {s["name"]: s for s in json.loads((tmp_path / "all.json").read_text())["scores"]}
    assert found["KID"]["value"] == kept["KID"]["value"] and found["KID"]["conditions"]["n"] == 20
    assert found["KID"]["conditions"]["resizer"] == "antialiased" and found["FID"]["conditions"]["note"]
    assert set(found) == {"KID", "FID", "precision", "recall", "coverage", "density", "diversity", "nearest / real"}


def test_a_set_without_captions_is_asked_for_with_the_empty_prompt(tiny_runs, folders):
    _, real = folders
    model, way = tiny_runs["diffusion"], ("--features", "pixels", "--measures", "kid", "-n", 6, "--set", "steps=2")
    words = (model, "--against", real, *way)
    assert "real has no captions: the model is asked with the empty prompt." in run(*words)
    found = scores_of(run(*words, "--json"))
    assert set(found) == {"KID"} and found["KID"]["conditions"]["n"] == 6
    assert "CLIP cosine" in scores_of(run(*words, "--words", model, "--json"))  # who asks for it gets it


def test_a_model_with_its_words_by_category(tiny_runs, tmp_path):
    prompts = tmp_path / "prompts.tsv"
    prompts.write_text("Prompt\tCategory\na red circle\tcircles\na blue circle\tcircles\na red square\tsquares\n")
    words = (
        tiny_runs["diffusion"],
        "--against",
        "toy",
        "--features",
        "pixels",
        "--prompts",
        prompts,
        "-n",
        6,
        "--set",
        "steps=2",
    )
    text = run(*words, "--measures", "kid")
    assert "By category" in text and "circles" in text and "R-precision" in text
    found = scores_of(run(*words, "--measures", "kid", "--json"))
    assert found["KID"]["conditions"]["knobs"]["steps"] == 2 and found["CLIP cosine"]["conditions"]["its_own"] is True
    run(*words, "--measures", "kid", "--words", "none", "--card")
    card = json.loads((tiny_runs["diffusion"] / "model" / "card.json").read_text())
    assert "KID" in [s["name"] for s in card["scores"]]


def test_pairs_of_pictures_of_one_name(folders):
    painted, real = folders
    found = scores_of(run(painted, "--against", real, "--pairs", "--json"))
    assert set(found) == {"PSNR", "SSIM", "edge correlation", "change", "untouched"} and found["PSNR"]["conditions"]["n"] == 20
    assert found["PSNR"]["conditions"]["pictures_without_a_partner"] == 20 and 5 < found["PSNR"]["value"] < 12
    same = scores_of(run(real, "--against", real, "--pairs", "--json"))
    assert same["SSIM"]["value"] == pytest.approx(1) and "PSNR" not in same, "equal pictures have no finite PSNR"


def test_bad_input_is_one_sentence(folders, tmp_path, tiny_runs):
    painted, real = folders
    (tmp_path / "one").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "one" / "a.png")
    broken = tmp_path / "broken"
    broken.mkdir()
    for i in range(3):
        (broken / f"{i}.png").write_bytes(b"no picture")
    for words, said in (
        ((tmp_path / "nowhere", "--against", real), "model's name"),
        ((painted, "--against", tmp_path / "nowhere"), "folder"),
        ((tmp_path / "one", "--against", real, "--features", "pixels"), "two painted pictures or more"),
        ((broken, "--against", real, "--features", "pixels"), "broken"),
        ((painted, "--against", real, "--features", "nosuch"), "nosuch"),
        ((painted, "--against", real, "--features", "pixels", "--measures", "kdi"), "kid"),
        ((painted, "--against", real, "--features", "pixels", "--resizer", "best"), "resizer"),
        ((painted, "--against", real, "--features", "pixels", "--card"), "card"),
        ((painted, "--against", real, "--features", tiny_runs["diffusion"]), "judge"),
    ):
        text = run(*words, code=2)
        assert said in text and "Traceback" not in text, (words, text)


def test_pictures_begun_from_given_ones_are_compared_with_them_too(tiny_runs, folders):
    words = [
        tiny_runs["translator"],
        "--against",
        "toy",
        "--features",
        "pixels",
        "--measures",
        "kid,checkerboard",
        "--from",
        "toy",
    ]
    found = scores_of(run(*words, "-n", 8, "--json"))
    assert {"KID", "checkerboard / real", "PSNR", "SSIM", "edge correlation", "change", "untouched"} <= set(found)
    told = found["KID"]["conditions"]
    assert told["given"] == "toy-shapes" and told["strength"] == 1 and told["n"] == 8 and told["size"] == [16, 16]
    none = scores_of(run(*words, "-n", 8, "--json", "--strength", 0))
    assert none["change"]["value"] == 0 and none["untouched"]["value"] == 1
    assert "which holds pictures" in run(folders[0], "--against", "toy", "--from", "toy", code=2)
