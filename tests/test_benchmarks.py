"""The formulas that a model's scores come from: against another library, against plain loops, against known values."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import likeness
from judges import look, open_judges

RNG = np.random.default_rng(3)


def looped_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(float(i) * float(j) for i, j in zip(a, b, strict=True)) / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kid_is_the_definition_pair_by_pair() -> None:
    x, y = RNG.normal(0.3, 1, (20, 6)), RNG.normal(0, 1.2, (31, 6))
    assert likeness.Reference(y).distance(x)[0] == pytest.approx(looped_kid(x, y), rel=1e-11)


def test_kid_agrees_with_torchmetrics_whose_sides_are_equally_many() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = RNG.normal(0.3, 1, (1100, 16)), RNG.normal(0, 1.2, (1100, 16))  # more than one part of the reference
    theirs = kid.poly_mmd(torch.from_numpy(y), torch.from_numpy(x)).item()
    assert likeness.Reference(y).distance(x)[0] == pytest.approx(theirs, rel=1e-9)


def test_kid_of_balanced_sets_weighs_every_pair_of_classes_alike() -> None:
    x, y = RNG.normal(0.3, 1, (12, 5)), RNG.normal(0, 1.2, (21, 5))  # 3 classes of 4, and of 7

    def within(z: np.ndarray) -> float:
        classes = np.split(z, 3)
        pairs = [[likeness.kernel(a, b) for b in classes] for a in classes]
        same = [sum(k[i, j] for i in range(len(k)) for j in range(len(k)) if i != j) for k in (pairs[c][c] for c in range(3))]
        size = len(classes[0])
        apart = sum(float(pairs[a][b].mean()) for a in range(3) for b in range(3) if a != b)
        return (apart + sum(same) / (size * (size - 1))) / 9

    wanted = within(x) + within(y) - 2 * likeness.kernel(x, y).mean()
    assert likeness.Reference(y, classes=3).distance(x)[0] == pytest.approx(wanted, rel=1e-11)


def test_classes_far_apart_do_not_bias_the_kid_of_balanced_sets() -> None:
    centres = RNG.normal(0, 2, (10, 8))

    def drawn(each: int) -> np.ndarray:
        return np.repeat(centres, each, axis=0) + RNG.normal(0, 0.3, (10 * each, 8))

    real, sets = drawn(100), [drawn(20) for _ in range(40)]
    error = 40**-0.5
    for classes, unbiased in ((10, True), (1, False)):
        reference = likeness.Reference(real, classes)
        values = np.array([reference.distance(x)[0] for x in sets])
        assert (abs(values.mean()) < 4 * values.std() * error + 2e-3 * values.std()) == unbiased


def test_kid_of_equal_distributions_is_zero_on_average_and_its_error_is_as_stated() -> None:
    reference = likeness.Reference(RNG.normal(0, 1, (1500, 4)))
    drawn = [reference.distance(RNG.normal(0.4, 1, (200, 4)), halves=40) for _ in range(40)]
    same = [reference.distance(RNG.normal(0, 1, (200, 4)))[0] for _ in range(40)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 40**0.5 + 1e-3
    values, errors = np.array(drawn).T
    assert values.min() > max(0.0, float(np.mean(same)))
    assert 0.7 < errors.mean() / values.std() < 1.4


def test_wilson_gives_the_published_intervals() -> None:
    assert likeness.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I
    assert likeness.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert likeness.wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert likeness.wilson(29, 29) == pytest.approx((0.8830, 1), abs=5e-5)


def test_spread_counts_differences_within_a_class_and_none_between_classes() -> None:
    labels = np.repeat([0, 1], 400)
    values = RNG.normal(0, 0.1, (800, 50)) + 5.0 * labels[:, None]
    assert likeness.spread(values, labels) == pytest.approx(0.1, rel=0.02)
    assert likeness.feature_spread(values, labels) == pytest.approx(0.1 * 50**0.5, rel=0.02)
    assert likeness.pair_distance(values, labels) == pytest.approx(0.1 * 100**0.5, rel=0.02)
    collapsed = np.repeat(values[::400], 400, axis=0)
    assert max(likeness.spread(collapsed, labels), likeness.pair_distance(collapsed, labels)) < 1e-5


def test_the_nearest_picture_is_found_across_parts_and_a_copy_is_at_no_distance() -> None:
    train = RNG.random((10_500, 9)).astype(np.float32)
    asked = np.stack([train[10_400], train[3] + np.float32(0.3)])
    far = np.sqrt(((train[:, None] - asked[None]) ** 2).sum(2)).min(0)
    assert likeness.nearest_distance(asked, train) == pytest.approx(far, abs=2e-3)
    assert far[0] == 0


def test_blur_lowers_sharpness() -> None:
    sharp = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    soft = np.stack([np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(1))) for p in sharp])
    assert likeness.sharpness(soft / 255) < 0.6 * likeness.sharpness(sharp / 255)
    assert likeness.sharpness(np.tile(np.arange(28) / 27, (1, 28, 1))) == pytest.approx(1 / 27)


def test_balanced_sets_come_class_by_class_without_repetition() -> None:
    labels = RNG.integers(0, 10, 3000)
    chosen = likeness.balanced(labels, 200, seed=4)
    assert (labels[chosen] == np.repeat(np.arange(10), 20)).all() and len(set(chosen)) == 200
    assert (chosen == likeness.balanced(labels, 200, seed=4)).all()
    assert (chosen != likeness.balanced(labels, 200, seed=5)).any()


def test_judges_learn_from_every_second_picture_only_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judges.EPOCHS", (1, 1))
    monkeypatch.setattr("judges.BATCH", 16)
    monkeypatch.setattr("judges.bfloat16_pays", lambda *_: False)  # a measurement, which may fall out either way
    pixels, labels = RNG.integers(0, 256, (256, 28, 28), dtype=np.uint8), RNG.integers(0, 10, 256)
    even, odd = labels.copy(), labels.copy()
    even[::2], odd[1::2] = labels[::2][::-1], labels[1::2][::-1]
    trained = [open_judges(tmp_path / name, pixels, told, "toy") for name, told in zip("abc", (labels, even, odd), strict=True)]
    kept = open_judges(tmp_path / "a", pixels[:0], labels[:0], "toy")
    for ours, other_even, other_odd, again in zip(*trained, kept, strict=True):
        seen = look(ours, pixels[:20])[1]
        assert seen.dtype == np.float64 and len(seen) == 20
        assert np.allclose(look(other_odd, pixels[:20])[1], seen) and (look(again, pixels[:20])[1] == seen).all()
        assert not np.allclose(look(other_even, pixels[:20])[1], seen)
