"""Autoencoders compared: what is measured of one, and the whole comparison in two steps on a few pictures."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import autoencoders as compared
from giverny.assembly import family, load_recipe
from giverny.autoencoders.kl import KLRecipe
from giverny.autoencoders.vq import VQRecipe
from giverny.base.errors import InputError
from giverny.base.ssim import ssim
from giverny.data.toy import ToyShapes
from giverny.pipelines.train import read_note, stage_folder
from giverny.training.log import read_log
from tiny_wardrobe import write_wardrobe

CPU = torch.device("cpu")
SMALL = [f"--set={key}={value}" for key, value in {
    "data.size": "[16, 16]", "text.image.size": 16, "autoencoder.network.channels": "[8, 8]", "autoencoder.network.groups": 4,
    "autoencoder.network.latent_channels": 12, "autoencoder.loop.batch": 8, "denoiser.network.in_channels": 12,
    "denoiser.network.out_channels": 12, "autoencoder.loop.precision": "float32",
}.items()]  # fmt: skip
SIZES = dict(channels=(8, 8), groups=4, blocks=1, patch=2, middle_attention=False)


def test_every_variant_is_a_recipe_that_differs_as_it_says():
    recipes = {n: load_recipe("wardrobe", more) for n, more in {**compared.VARIANTS, **compared.FURTHER}.items()}
    nets = {name: recipe.autoencoder.network for name, recipe in recipes.items()}
    assert {name: net.family for name, net in nets.items()} == {name: name[:2] for name in nets}
    for name, net in nets.items():
        assert net.straight == (name not in ("kl", "vq", "vq 16x16"))
        assert (net.channels, net.blocks) == (nets["kl"].channels, nets["kl"].blocks)
        assert 64 // net.factor == (16 if "16x16" in name else 8)
        assert not name.startswith("vq") or net.learning == "average"
    assert [name for name, recipe in recipes.items() if recipe.autoencoder.critic is not None] == ["kl critic"]
    assert [name for name, recipe in recipes.items() if recipe.autoencoder.objective.perceptual] == ["kl perceptual"]


@pytest.mark.parametrize("recipe", [KLRecipe(**SIZES), VQRecipe(**SIZES, codes=6, latent_channels=3)], ids=["kl", "vq"])
def test_what_is_measured_equals_plain_loops(recipe):
    torch.manual_seed(int(np.random.default_rng().integers(2**31)))
    network = recipe.build().eval().double()  # batches of other sizes round differently, and norms may enlarge that
    pixels = torch.rand(70, 3, 12, 8, dtype=torch.float64) * 1.9 - 1  # more than are looked at together
    pixels[:, :, :4] = 1.0  # white at the top: one row of places in three
    pixels[3, :, 4:8, :4] = 0.97  # nearly white counts as white
    pixels[5, 1, 0, 0] = 0.9  # one value makes it something
    values, again = compared.judge(network, pixels, CPU)
    with torch.no_grad():
        beliefs = [network.encode(p[None]) for p in pixels]
        expected = torch.cat([network.decode(b.mean).clamp(-1, 1) for b in beliefs])
    assert torch.allclose(again, expected, atol=1e-8)
    errors = [((a - b) / 2).square().sum().item() for a, b in zip(expected, pixels, strict=True)]
    assert values["psnr"] == pytest.approx(10 * math.log10(pixels.numel() / sum(errors)), abs=1e-3)
    likeness = [ssim(a[None], b[None]).item() for a, b in zip(expected, pixels, strict=True)]
    assert values["ssim"] == pytest.approx(sum(likeness) / 70, abs=1e-4)
    if recipe.family == "kl":
        assert set(values) == {"psnr", "ssim"}
        return
    codes = [b.indices[0] for b in beliefs]  # (3, 2) places of 4 x 4 pixels each
    busy = [(i, y, x) for i in range(70) for y in range(3) for x in range(2)
            if pixels[i, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].min() < 250 / 127.5 - 1]  # fmt: skip
    assert len(busy) == 70 * 4 and (3, 1, 0) not in busy and (5, 0, 0) in busy

    def perplexity(places):
        counts = np.bincount([int(codes[i][y, x]) for i, y, x in places], minlength=6) / len(places)
        return math.exp(-sum(c * math.log(c) for c in counts if c)) / 6

    every = [(i, y, x) for i in range(70) for y in range(3) for x in range(2)]
    assert values["perplexity_share"] == pytest.approx(perplexity(every), rel=1e-3)
    assert values["perplexity_share_of_things"] == pytest.approx(perplexity(busy), rel=1e-3)
    assert values["codes_used"] == len({int(codes[i][y, x]) for i, y, x in every}) / 6


def test_the_comparison_in_two_steps_and_again(tmp_path, capsys):
    data = write_wardrobe(tmp_path)
    names = ["kl straight", "vq 16x16", "kl critic"]
    call = ["--data", str(data), "--steps", "2", *SMALL, "--out", str(tmp_path / "runs"), "--only", *names, "--device", "cpu",
            "--json", str(tmp_path / "all.json"), "--sheet", str(tmp_path / "all.png")]  # fmt: skip
    compared.main(call)
    first = json.loads((tmp_path / "all.json").read_text("utf-8"))
    rows = {row["name"]: row for row in first["rows"]}
    assert list(rows) == names and first["pictures"] == 24
    assert rows["kl straight"]["latent"] == "2x2x12" and rows["kl straight"]["kept"] == "48 floats"
    assert rows["vq 16x16"]["latent"] == "4x4x4" and rows["vq 16x16"]["kept"] == "160 bits"
    assert 0 < rows["vq 16x16"]["perplexity_share"] <= rows["vq 16x16"]["codes_used"] <= 1
    assert rows["kl critic"]["parameters"] == rows["kl straight"]["parameters"], "a critic is not part of it"
    for name, row in rows.items():
        folder = stage_folder(tmp_path / "runs" / "2-steps" / name.replace(" ", "-"), "autoencoder")
        times = [r["time/step"] for r in read_log(folder / "metrics.jsonl")]
        assert row["steps"] == read_note(folder)["steps"] == 2 and row["seconds_per_step"] == pytest.approx(np.median(times))
        assert math.isfinite(row["psnr"]) and row["ssim"] <= 1
    with Image.open(tmp_path / "all.png") as sheet:
        assert sheet.width > 12 * 16 and sheet.height > 4 * 16
    capsys.readouterr()
    compared.main(call)
    assert json.loads((tmp_path / "all.json").read_text("utf-8")) == first, "nothing is trained twice"
    assert capsys.readouterr().out.count("reused") == 3
    with pytest.raises(InputError, match="did you mean 'vq'"):
        compared.main([*call, "--only", "vqq"])


@pytest.mark.xdist_group("contract")
def test_the_perceptual_term_looks_with_the_clip_of_another_run(tiny_runs, tmp_path):
    tiny = family("diffusion").tiny()
    stage = tiny.autoencoder
    objective = stage.objective.model_copy(update={"perceptual": 1.0})
    loop = stage.loop.model_copy(update={"steps": 2})
    recipe = tiny.model_copy(update={"autoencoder": stage.model_copy(update={"objective": objective, "loop": loop})})
    source = ToyShapes(count=256, size=16)  # as the tiny runs were trained on
    compared.train(recipe, source, tmp_path / "run", None, tiny_runs["diffusion"], CPU)
    assert not stage_folder(tmp_path / "run", "text").exists(), "it was not trained again"
    logged = read_log(stage_folder(tmp_path / "run", "autoencoder") / "metrics.jsonl")
    assert all(record["train/perceptual"] > 0 for record in logged)
    for clip in (None, tmp_path):
        with pytest.raises(InputError, match=r"finished CLIP of this recipe.*--clip"):
            compared.train(recipe, source, tmp_path / "other", None, clip, CPU)
