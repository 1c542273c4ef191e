"""Model folders whose weights lie in several files."""

import secrets

import pytest
import torch
from torch import nn

from giverny.base.errors import InputError
from giverny.checkpoints.native import Card, read_card, read_weights, split, write_model


def card():
    return Card(family="none", name="drawn", size=(8, 8), recipe={})


def networks():
    torch.manual_seed(secrets.randbelow(2**31))
    return {"first": nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 7)), "second": nn.Conv2d(3, 20, 3)}


def test_weights_in_several_files_are_the_same_weights(tmp_path):
    made = networks()
    written = write_model(tmp_path, card(), made, {"words.txt": "a"}, torch.float32, most=2500)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files == sorted(set(written.files) - {"words.txt"})
    assert files[0] == f"weights-00001-of-{len(files):05d}.safetensors"
    sizes = [sum(t.nbytes for t in part.values()) for part in split(dict(made["first"].state_dict()), 2500).values()]
    assert max(sizes) == 40 * 30 * 4, "a tensor is never cut up"
    weights = read_weights(tmp_path, read_card(tmp_path))
    for name, network in made.items():
        assert weights[name].keys() == network.state_dict().keys()
        assert all(torch.equal(weights[name][k], v) for k, v in network.state_dict().items())


def test_files_of_a_former_model_do_not_stay(tmp_path):
    write_model(tmp_path, card(), networks(), {}, torch.float32, most=2500)
    (tmp_path / "notes.safetensors").write_bytes(b"a user's own")
    again = write_model(tmp_path, card(), networks(), {}, torch.float32)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["notes.safetensors", "weights.safetensors"]
    assert list(again.files) == ["weights.safetensors"]
    write_model(tmp_path, card(), networks(), {}, torch.float32, most=2500)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_missing_or_exchanged_part_is_told(tmp_path):
    write_model(tmp_path, card(), networks(), {}, torch.float32, most=2500)
    found = read_card(tmp_path)
    first, second = (tmp_path / name for name in list(found.files)[:2])
    held = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=second.name):
        read_weights(tmp_path, found)
    second.unlink()
    with pytest.raises(InputError, match=f"{second.name} beside the card"):
        read_weights(tmp_path, found)
    second.write_bytes(held)
    assert read_weights(tmp_path, found).keys() == {"first", "second"}


def test_what_half_precision_does_not_reach_is_kept_and_what_is_no_number_refused(tmp_path):
    made = {"net": nn.BatchNorm2d(3)}
    made["net"].running_var[1] = 1e6  # of an activation in the thousands
    made["net"].running_mean[:] = 1 / 3
    write_model(tmp_path / "large", card(), made, {}, torch.float16)
    found = read_weights(tmp_path / "large", read_card(tmp_path / "large"))["net"]
    assert torch.equal(found["running_var"], made["net"].running_var) and torch.equal(
        found["running_mean"], torch.full([3], 1 / 3).half().float()
    )
    made["net"].running_var[1] = float("nan")
    with pytest.raises(InputError, match=r"net\.running_var first"):
        write_model(tmp_path / "none", card(), made, {}, torch.float16)
    assert not (tmp_path / "none").exists()
