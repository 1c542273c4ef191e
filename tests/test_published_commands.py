"""giverny models add, info and convert on published models, and painting by the name they are given."""

import json
import secrets
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from giverny.assembly import open_painter
from giverny.base.errors import InputError
from giverny.base.files import sha256_file
from giverny.checkpoints.native import read_card
from giverny.cli import cli
from published_twins import networks, vae_only, write_twin

pytestmark = pytest.mark.xdist_group("oracles")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a twin, `model`, and its single file, `one.safetensors`."""
    place = tmp_path_factory.mktemp("published")
    write_twin(place / "model", "two_levels", secrets.randbelow(2**31))
    run("models", "convert", place / "model", place / "one.safetensors")
    return place


def run(*args, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def told(*args):
    return json.loads(run(*args, "--json").stdout.splitlines()[-1])


def test_a_file_gets_a_name_and_paints(place, tmp_path, monkeypatch):
    monkeypatch.setenv("GIVERNY_MODELS", str(tmp_path / "models"))
    file = tmp_path / "mine.safetensors"
    shutil.copy(place / "one.safetensors", file)
    run("models", "add", file, "--name", "twin", "--words", place / "model/tokenizer")
    folder = tmp_path / "models/twin"
    assert {p.name for p in folder.iterdir()} == {"card.json", "tokenizer.json"}, "weights are not copied"
    card = read_card(folder)
    assert card.links["model"].sha256 == sha256_file(file) and card.size == (16, 16) and card.knobs["guidance"] == 7
    run("paint", "a red cat", "-m", "twin", "--steps", 1, "--seed", 1, "-o", tmp_path / "out")
    assert (tmp_path / "out/00000.png").is_file()
    assert "twin" in run("models").output
    info = told("models", "info", "twin")
    assert info["hashes"]["model"] == card.links["model"].sha256[:10] and info["prediction"] == "epsilon"
    assert info["parameters"] == card.parameters
    assert "a name that is free" in run("models", "add", file, "--name", "twin", code=2).output

    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match="as it was when twin was added; given other content"):
        open_painter("twin")
    file.unlink()
    with pytest.raises(InputError, match=r"twin is read from; given .*not there"):
        open_painter("twin")


def test_a_copy_stands_alone(place, tmp_path, monkeypatch):
    monkeypatch.setenv("GIVERNY_MODELS", str(tmp_path / "models"))
    source, vae = tmp_path / "model", tmp_path / "vae"
    shutil.copytree(place / "model", source)
    networks("two_levels", 5)[1].save_pretrained(vae)
    run("models", "add", source, "--name", "copied", "--copy", "--vae", vae)
    kept = open_painter("copied")
    shutil.rmtree(source)
    shutil.rmtree(vae)
    again = open_painter("copied")
    assert again.fingerprint == kept.fingerprint
    other = load_file(tmp_path / "models/copied/source/autoencoder/vae/diffusion_pytorch_model.safetensors")
    mine = again.parts.autoencoder.state_dict()
    assert all(torch.equal(mine[n], v) for n, v in other.items())
    run("models", "add", tmp_path / "models/copied", "--name", "second", "--to", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "models/copied")
    assert open_painter(tmp_path / "elsewhere/second").fingerprint == kept.fingerprint


def test_info_says_what_a_file_is(place, tmp_path):
    for path in (place / "model", place / "one.safetensors"):
        info = told("models", "info", path)
        assert info["kind"] == "Stable Diffusion 1" and info["paints"] and info["size"] == [16, 16]
        assert set(info["parameters"]) == {"denoiser", "autoencoder", "text"} and info["ignored"] == []
    assert set(info["hashes"]) == {"sha256", "model", "old", "data"}
    assert info["hashes"]["sha256"] == sha256_file(place / "one.safetensors")
    save_file(vae_only(networks("sd1", 2)[1]), tmp_path / "vae.safetensors", {"modelspec.license": "MIT"})
    info = told("models", "info", tmp_path / "vae.safetensors")
    assert info["kind"] == "autoencoder" and not info["paints"] and info["licence"] == "MIT"
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{stem}.lora_down.weight": torch.ones(3, 16), f"{stem}.lora_up.weight": torch.ones(16, 3)}
    save_file(pair, tmp_path / "lora.safetensors", {"ss_base_model_version": "sd_v1"})
    info = told("models", "info", tmp_path / "lora.safetensors")
    assert "LoRA" in info["kind"] and info["ranks"] == [3] and info["base"] == "sd_v1" and len(info["hashes"]["data"]) == 12
    torch.save({"string_to_param": {"*": torch.ones(2, 16)}, "name": "x"}, tmp_path / "style.pt")
    info = told("models", "info", tmp_path / "style.pt")
    assert info["word"] == "style" and info["vectors"] == {"text": [2, 16]}
    assert "wanted" in run("models", "info", tmp_path / "nothing", code=2).output


def test_convert_there_and_back(place, tmp_path):
    words = ("--words", place / "model/tokenizer")
    output = run("models", "convert", place / "one.safetensors", tmp_path / "out", *words).output
    assert "tensors" in output
    run("models", "convert", tmp_path / "out", tmp_path / "again.safetensors")
    first, second = load_file(place / "one.safetensors"), load_file(tmp_path / "again.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[n], v) for n, v in second.items())
    assert "a place where nothing is" in run("models", "convert", place / "model", tmp_path / "out", code=2).output
    torch.save({"state_dict": first, "epoch": 3}, tmp_path / "old.ckpt")
    made = told("models", "convert", tmp_path / "old.ckpt", tmp_path / "new.safetensors", "--config", place / "model")
    assert made["ignored"] == ["epoch"] and made["tensors"] == len(first)
