"""Two measures of pictures made from others: how many look untouched, and whether a checkerboard lies over them. Each is shown
pictures that were made to have it, and the same ones without."""

import json
import math
import secrets

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.nn import functional as F

from giverny.base.errors import InputError
from giverny.cli import cli
from giverny.metrics.checkerboard import CornerEye, checkerboard, corner_energy
from giverny.metrics.gather import Gathered
from giverny.metrics.pairs import STEPS, UNTOUCHED, change, histogram
from giverny.metrics.scores import Sides


def natural(count, side=64, seed=0):
    """Pictures (B, 3, side, side) in [0, 1] whose spectrum falls as that of photographs, 1 / f in amplitude."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)
    rows, columns = torch.fft.fftfreq(side, dtype=torch.float64), torch.fft.fftfreq(side, dtype=torch.float64)
    fall = 1 / torch.hypot(rows[:, None], columns).clamp(min=1 / side)
    x = torch.fft.ifft2(torch.fft.fft2(noise) * fall).real
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low)


def board(side, period=(2, 2)):
    down, right = torch.arange(side) % period[0] * 1.0, torch.arange(side) % period[1] * 1.0
    return (
        (down[:, None] + right) % 2
        if period == (2, 2)
        else torch.ones(side, side) * (down[:, None] if period[1] == 1 else right)
    )


@pytest.mark.parametrize("period", [(2, 2), (2, 1), (1, 2)], ids=["squares", "rows", "columns"])
def test_a_faint_pattern_of_every_other_pixel_multiplies_the_corner_energy(period):
    seed = secrets.randbelow(2**31)
    clean = natural(12, seed=seed)
    patterned = clean + 0.06 * (board(64, period) - 0.5)
    before, after = corner_energy(clean), corner_energy(patterned)
    assert (after > 5 * before).all(), seed
    assert before.mean() < 0.005


def test_what_a_transposed_convolution_leaves_is_seen_and_what_resizing_leaves_is_not():
    """Kernel 3 at stride 2, the usual culprit: with even weights, pixels are covered once, twice or four times."""
    clean = natural(12, 32, seed=3)
    strided = nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1, output_padding=1, groups=3, bias=False).double()
    strided.weight.data.fill_(4 / 9)
    with torch.no_grad():
        uneven = strided(clean)
    smooth = F.interpolate(clean, scale_factor=2, mode="bicubic", antialias=True)
    assert corner_energy(uneven).mean() > 50 * corner_energy(smooth).mean()


def test_a_pure_checkerboard_is_all_of_the_energy_and_a_slow_wave_none():
    assert float(corner_energy(board(64)[None, None])) == pytest.approx(1, abs=1e-3)
    wave = torch.sin(torch.arange(64) * 2 * torch.pi / 8).expand(1, 1, 64, 64)
    assert float(corner_energy(wave)) < 1e-8
    assert float(corner_energy(torch.full((1, 3, 20, 33), 0.4))) == 0
    white = float(corner_energy(torch.rand(1, 3, 137, 152)))  # has its corners' part of the plane, at odd sizes too
    assert white == pytest.approx(3 / 256, rel=0.5)
    with pytest.raises(InputError, match="16 x 16"):
        corner_energy(torch.zeros(1, 3, 15, 40))


def seen(pictures):
    eye, found = CornerEye(), Gathered(1)
    pixels = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    found.add(eye(pixels), list(range(len(pixels))), list(range(len(pixels))))
    return found


def test_the_score_is_1_for_pictures_of_the_reference_and_far_above_under_a_pattern():
    real = seen(natural(80, seed=1))
    (same,) = checkerboard(Sides(seen(natural(80, seed=2)), real, {}))
    (made,) = checkerboard(Sides(seen(natural(80, seed=2) + 0.03 * (board(64) - 0.5)), real, {}))
    assert same.interval[0] < 1 < same.interval[1] and same.value == pytest.approx(1, abs=0.3)
    assert same.conditions["floor"] == pytest.approx(1, abs=0.3)
    assert made.value > 5 and made.interval[0] > 3
    with pytest.raises(InputError, match="one colour"):
        checkerboard(Sides(real, seen(torch.zeros(4, 3, 16, 16)), {}))


def test_changes_are_counted_where_they_lie():
    ours = torch.zeros(4, 3, 8, 8) - 1
    theirs = ours + torch.tensor([0.0, 0.02, 0.2, 2.0])[:, None, None, None]
    found = change(ours, theirs)
    assert torch.allclose(found, torch.tensor([0, 0.01, 0.1, 1.0], dtype=torch.float64), atol=1e-7)
    assert torch.allclose(change((ours + 1) / 2, (theirs + 1) / 2, 1.0), found, atol=1e-7)
    rows = histogram(np.array([0.0, 0.0099, 0.01, 0.1, 1.0]))
    counted = {low: count for low, _, count in rows}
    assert (counted[0.0], counted[0.01], counted[0.1], counted[0.3]) == (2, 1, 1, 1) and sum(counted.values()) == 5
    assert UNTOUCHED in STEPS


def run(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines if line.get("event") == "score"}


def test_the_command_tells_untouched_photographs_and_patterns(tmp_path):
    """Of ten photographs, four come back with the noise of a file format alone, six changed; these have a pattern."""
    photographs = (natural(10, 32, seed=5) * 255).round()
    for i, picture in enumerate(photographs):
        noise = np.random.default_rng(i).normal(0, 2, picture.shape)
        made = picture + torch.from_numpy(noise) if i < 4 else 0.6 * picture + 60 + 12 * board(32)
        for folder, x in (("photographs", picture), ("made", made)):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = x.clamp(0, 255).round().to(torch.uint8).movedim(0, -1).numpy()
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    found = run("measure", tmp_path / "made", "--against", tmp_path / "photographs", "--pairs", "--json")
    told = found["untouched"]
    assert told["value"] == 0.4 and told["conditions"]["up_to"] == UNTOUCHED and told["interval"][0] < 0.4 < told["interval"][1]
    assert sum(count for low, _, count in told["conditions"]["histogram"] if low < UNTOUCHED) == 4
    assert sorted(told["conditions"]["named"]) == ["0", "1", "2", "3"]
    said = CliRunner().invoke(cli, ["measure", str(tmp_path / "made"), "--against", str(tmp_path / "photographs"), "--pairs"])
    assert "How far pictures changed" in said.output and "Untouched to the eye" in said.output
    bars = {line.split()[0]: line.count("█") for line in said.output.splitlines() if "█" in line}
    most = max(count for _, _, count in told["conditions"]["histogram"])
    assert bars == {f"{low:g}": math.ceil(40 * n / most) for low, _, n in told["conditions"]["histogram"] if n}
    assert found["change"]["value"] > UNTOUCHED
    words = ("--features", "pixels", "--measures", "kid,checkerboard", "--json")
    made = run("measure", tmp_path / "made", "--against", tmp_path / "photographs", *words)
    assert made["checkerboard / real"]["value"] > 3 and made["KID"]["conditions"]["features"] == "pixels-16"
    assert made["checkerboard / real"]["conditions"]["features"] == "corner energy"
    same = run("measure", tmp_path / "photographs", "--against", tmp_path / "photographs", *words)
    assert same["checkerboard / real"]["value"] == pytest.approx(1)
