"""Files of others, read without running anything: pickles, shards, variants, averages, what may be left out; hashes."""

import collections
import json
import os
import pickle
import random
import secrets
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from giverny.base.errors import InputError
from giverny.base.tensors import read_pickle, read_safetensors
from giverny.checkpoints.hashes import data_hash, model_hash, noted, old_hash, sha256_of
from giverny.checkpoints.model_files import digest_of, read_published
from giverny.checkpoints.published import IGNORABLE, kind_in_ldm
from published_twins import networks, single_file, vae_only, write_twin

pytestmark = pytest.mark.xdist_group("oracles")
KIND = "two_levels"


@pytest.fixture(scope="module")
def theirs():
    return networks(KIND, secrets.randbelow(2**31))[:3]


@pytest.fixture
def flat(theirs):
    return single_file(KIND, *theirs)


def parts_equal(found, theirs):
    unet, vae, text = theirs
    for part, state in (("denoiser", unet.state_dict()), ("autoencoder", vae.state_dict()), ("text", text.state_dict())):
        wanted = {n.removeprefix("text_model."): v for n, v in state.items()}
        assert found.parts[part].keys() == wanted.keys()
        assert all(torch.equal(found.parts[part][n], v) for n, v in wanted.items())


# ---------------------------------------------------------------------------------------------------------------------
# Single files


def test_checkpoints_of_training_programs(flat, theirs, tmp_path):
    """state_dict, counters, a callback of Lightning, numpy's numbers, buffers, EMA counters, broken position_ids: all left out,
    and listed."""
    import sys
    import types

    import numpy as np

    names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
    sys.modules.update({name: types.ModuleType(name) for name in names})
    module = sys.modules[names[-1]]
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    try:
        beside = {
            "epoch": 3, "global_step": 470000, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
            "callbacks": {module.ModelCheckpoint: {"best_model_score": np.float64(0.5)}}, "extra": module.ModelCheckpoint(),
        }  # fmt: skip
        extra = {
            "betas": torch.ones(3), "alphas_cumprod": torch.ones(3), "sqrt_one_minus_alphas_cumprod": torch.ones(3),
            "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77).float() + 0.3,
            "first_stage_model.loss.logvar": torch.ones(1),
        }  # fmt: skip
        torch.save({"state_dict": collections.OrderedDict(flat | extra), **beside}, tmp_path / "model.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    found = read_published(tmp_path / "model.ckpt")
    parts_equal(found, theirs)
    assert set(found.ignored) == {*beside, *extra}


def test_old_files_without_text_model_and_legacy_pickles(flat, theirs, tmp_path):
    old = {n.replace("transformer.text_model.", "transformer."): v for n, v in flat.items()}
    torch.save(old, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.ckpt")
    parts_equal(read_published(tmp_path / "old.ckpt"), theirs)


def test_averaged_weights(flat, theirs, tmp_path):
    copies = {
        "model_ema." + n.removeprefix("model.").replace(".", ""): v + 1
        for n, v in flat.items()
        if n.startswith("model.diffusion_model.")
    }
    save_file(flat | copies, tmp_path / "both.safetensors")
    plain, ema = read_published(tmp_path / "both.safetensors"), read_published(tmp_path / "both.safetensors", ema=True)
    parts_equal(plain, theirs)
    assert len(plain.ignored) == len(copies)
    assert all(torch.equal(v + 1, ema.parts["denoiser"][n]) for n, v in plain.parts["denoiser"].items())
    save_file(flat | dict(list(copies.items())[1:]), tmp_path / "part.safetensors")
    with pytest.raises(InputError, match="lacks 1"):
        read_published(tmp_path / "part.safetensors", ema=True)


def test_autoencoders_alone_in_both_layouts_and_spellings(theirs, tmp_path):
    vae = theirs[1]
    old = {}
    for name, value in vae.state_dict().items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(new, before)
        old[name] = value.clone()
    ldm = vae_only(vae)
    for tensors in (
        ldm,
        ldm | {"loss.discriminator.main.0.weight": torch.ones(2), "model_ema.decay": torch.ones(())},
        {"first_stage_model." + n: v for n, v in ldm.items()},
        vae.state_dict(),
        old,
    ):
        save_file({n: v.clone() for n, v in tensors.items()}, tmp_path / "vae.safetensors")
        found = read_published(tmp_path / "vae.safetensors")
        assert found.kind == "autoencoder" and len(found.ignored) == len(tensors) - len(ldm)
        mine = found.parts["autoencoder"]
        assert mine.keys() == vae.state_dict().keys() and all(torch.equal(mine[n], v) for n, v in vae.state_dict().items())


def test_kinds_are_told_in_order():
    attn2 = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    sdxl, refiner = (f"conditioner.embedders.{i}.model.ln_final.weight" for i in (1, 0))
    for names, kind in (
        ({sdxl: (1280,), refiner: (1280,), attn2: (320, 1024)}, "sdxl"),
        ({refiner: (1280,), attn2: (320, 1024)}, "refiner"),
        ({attn2: (320, 1024)}, "sd2"),
        ({attn2: (320, 768)}, "sd1"),
        ({"encoder.conv_in.weight": (128, 3, 3, 3)}, "autoencoder"),
    ):
        assert kind_in_ldm(names) == kind
    for name in ("model.diffusion_model.out.2.bias", "encoder.conv_in.weight", "alphas", "cond_stage_model.x"):
        assert bool(IGNORABLE.fullmatch(name)) == (name == "alphas")


def test_turbo_in_the_layout_of_sgm(tmp_path):
    theirs = networks("sd2", 3)[:3]
    flat = single_file("sd2", *theirs)
    wide = {n: torch.ones(1024) if n.endswith("ln_final.weight") else v for n, v in flat.items()}
    renamed = {n.replace("cond_stage_model.model.", "conditioner.embedders.0.model."): v for n, v in wide.items()}
    save_file(renamed, tmp_path / "turbo.safetensors")
    found = read_published(tmp_path / "turbo.safetensors")
    assert found.kind == "sd2" and "encoder.layers.0.self_attn.q_proj.weight" in found.parts["text"]


def test_the_last_layer_of_openclip_is_left_out(tmp_path):
    flat = single_file("sd2", *networks("sd2", 4)[:3])
    prefix = "cond_stage_model.model."
    more = {n.replace("resblocks.1.", "resblocks.23."): v.clone() for n, v in flat.items() if "resblocks.1." in n}
    more |= {prefix + "text_projection": torch.ones(2, 2), prefix + "logit_scale": torch.ones(())}
    save_file(flat | more, tmp_path / "sd2.safetensors")
    assert set(read_published(tmp_path / "sd2.safetensors").ignored) == set(more)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_no_checkpoint_runs_code(flat, tmp_path):
    bomb = Bomb(tmp_path / "went off")
    torch.save({"state_dict": flat, "callbacks": bomb}, tmp_path / "zip.ckpt")
    torch.save({"state_dict": flat, "callbacks": bomb}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"x": bomb}, protocol=2))
    for name in ("zip.ckpt", "old.ckpt", "plain.ckpt"):
        with pytest.raises(InputError, match=r"tensors alone; given .*asks to run \w+\.system") as told:
            read_published(tmp_path / name)
        assert "\n" not in str(told.value)
    assert not (tmp_path / "went off").exists()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_damaged_files_are_an_input_error_or_read(seed, changes):
    import tempfile
    from pathlib import Path

    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        for name, write in (("a.safetensors", save_file), ("a.ckpt", torch.save)):
            path = Path(place) / name
            write({"encoder.conv_in.weight": torch.ones(4, 3, 3, 3), "x": torch.ones(2)}, path)
            data = bytearray(path.read_bytes())
            for _ in range(changes):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(bytes(data[: chance.randrange(len(data) + 1)] if seed % 2 else data))
            try:
                read_safetensors(path) if name.endswith("safetensors") else read_pickle(path)
            except InputError as error:
                assert "\n" not in str(error)


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_shards_variants_and_pickled_folders(tmp_path):
    theirs = write_twin(tmp_path / "a", KIND, secrets.randbelow(2**31), max_shard_size="200KB")
    assert len(list((tmp_path / "a/unet").glob("*-of-*.safetensors"))) > 2
    parts_equal(read_published(tmp_path / "a"), theirs)
    index = tmp_path / "a/unet/diffusion_pytorch_model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(
        json.dumps({"weight_map": whole["weight_map"] | {"more.weight": next(iter(whole["weight_map"].values()))}})
    )
    with pytest.raises(InputError, match=r"every tensor of the index; .*lacks 1 \(more.weight\)"):
        read_published(tmp_path / "a")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}}))
    with pytest.raises(InputError, match="names files beside it"):
        read_published(tmp_path / "a")
    index.write_text(json.dumps(whole))
    shard = next(iter((tmp_path / "a/unet").glob("*-00002-of-*.safetensors")))
    shard.rename(shard.with_suffix(".gone"))
    with pytest.raises(InputError, match=r"a file of tensors; given .*00002-of-.*not there"):
        read_published(tmp_path / "a")

    theirs = write_twin(tmp_path / "b", KIND, secrets.randbelow(2**31), variant="fp16")
    parts_equal(read_published(tmp_path / "b"), theirs)  # the only one there is
    parts_equal(read_published(tmp_path / "b", variant="fp16"), theirs)
    with pytest.raises(InputError, match=r"the variant 'bf16'; .*variants fp16"):
        read_published(tmp_path / "b", variant="bf16")
    half = tmp_path / "b/unet/diffusion_pytorch_model.fp16.safetensors"
    save_file({n: v + 1 for n, v in load_file(half).items()}, half.with_name("diffusion_pytorch_model.ema.safetensors"))
    with pytest.raises(InputError, match=r"one variant; .*variants ema, fp16\. Choose one"):
        read_published(tmp_path / "b")
    torch.save(load_file(half), half.with_name("diffusion_pytorch_model.bin"))
    for each in half.parent.glob("*.safetensors"):
        each.unlink()
    for part in ("vae", "text_encoder"):
        for each in (tmp_path / "b" / part).glob("*.fp16.safetensors"):
            each.rename(each.with_name(each.name.replace(".fp16", "")))
    parts_equal(read_published(tmp_path / "b"), theirs)


# ---------------------------------------------------------------------------------------------------------------------
# Hashes


def test_hashes_are_those_of_other_programs(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(i % 251 for i in range(2 * 1024 * 1024)))
    assert model_hash(sha256_of(path, notes=tmp_path / "notes.json")) == "1e075c8d47" and old_hash(path) == "15ffd73b"
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    assert len(header) == 54
    data = torch.tensor([1.0, 2.0]).numpy().tobytes()
    lora = tmp_path / "lora.safetensors"
    lora.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert data_hash(lora) == "b9c80b5adeca" and model_hash(sha256_of(lora, notes=tmp_path / "n.json")) == "ec7c158d66"
    noted_header = header[:-1] + b',"__metadata__":{"a":"b"}}'
    lora.write_bytes(len(noted_header).to_bytes(8, "little") + noted_header + data)
    assert data_hash(lora) == "b9c80b5adeca", "what a header says besides does not count"
    lora.write_bytes(b"\xff" * 8)
    with pytest.raises(InputError, match="whole safetensors"):
        data_hash(lora)


def test_hashes_are_remembered_until_a_file_changes(tmp_path):
    path, notes = tmp_path / "a.bin", tmp_path / "notes.json"
    path.write_bytes(b"one")
    first = noted(path, notes)
    mark = json.loads(notes.read_text())
    notes.write_text(json.dumps({name: [*entry[:2], "kept"] for name, entry in mark.items()}))
    assert noted(path, notes) == "kept"
    path.write_bytes(b"three")
    assert noted(path, notes) not in ("kept", first)
    notes.write_text("[")
    path.write_bytes(b"one")
    assert noted(path, notes) == first


def test_a_folders_hash_is_over_what_is_read(tmp_path):
    for place in ("unet", "vae", "tokenizer"):
        (tmp_path / "m" / place).mkdir(parents=True)
        (tmp_path / "m" / place / "a.json").write_text(place)
    (tmp_path / "m/model_index.json").write_text("{}")
    first = digest_of(tmp_path / "m")
    (tmp_path / "m/README.md").write_text("words")
    (tmp_path / "m/safety_checker").mkdir()
    (tmp_path / "m/safety_checker/a.bin").write_text("not looked at")
    assert digest_of(tmp_path / "m") == first
    (tmp_path / "m/vae/a.json").write_text("another")
    assert digest_of(tmp_path / "m") != first
