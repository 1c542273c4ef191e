"""Scores of sets of features: against torchmetrics on equal features, against textbook forms, against known answers."""

import numpy as np
import pytest
import torch

from giverny.base.errors import InputError
from giverny.metrics.frechet import Target, frechet, root
from giverny.metrics.kernel import mmd, mmd_of_subsets
from giverny.metrics.manifold import manifold, reaches
from giverny.metrics.memorization import memorization_distance, mifid, nearest_cosine
from giverny.metrics.moments import Moments
from giverny.metrics.words import COSINE, HESSEL, PERCENT, clip_scores, r_precision


def draw(seed, count, width, shift=0.0, spread=1.0):
    """Features (count, width) with correlated columns, as networks have them."""
    chance = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / width**0.5
    return torch.randn(count, width, generator=chance, dtype=torch.float64) @ mixing * spread + shift


class Given(torch.nn.Module):
    """The features torchmetrics is to see, in place of a network's: pictures are their own features."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, pictures):
        return pictures.flatten(1)


def as_pictures(features):  # torchmetrics wants (B, C, H, W)
    return features[:, :, None, None]


@pytest.fixture
def seed():
    return int(np.random.default_rng().integers(1 << 31))


@pytest.fixture
def sides(seed):
    width = int(np.random.default_rng(seed).integers(5, 40))
    return draw(seed, 160, width), draw(seed + 1, 130, width, shift=0.2, spread=1.2)


@pytest.mark.xdist_group("oracles")
def test_frechet_distance_equals_torchmetrics(sides, seed):
    from torchmetrics.image.fid import FrechetInceptionDistance

    painted, real = sides
    theirs = FrechetInceptionDistance(feature=Given(painted.shape[1]), normalize=True, input_img_size=(painted.shape[1], 1, 1))
    theirs.set_dtype(torch.float64)
    theirs.update(as_pictures(real), real=True)
    theirs.update(as_pictures(painted), real=False)
    assert frechet(Moments.of(real), Moments.of(painted)).value == pytest.approx(float(theirs.compute()), rel=1e-4), seed


def test_frechet_distance_of_known_normals():
    a, b = draw(1, 500, 7), draw(2, 500, 7)
    assert frechet(Moments.of(a), Moments.of(a)).value == pytest.approx(0, abs=1e-9)
    moved = frechet(Moments.of(a), Moments.of(a + 2.0))
    assert (moved.between, moved.spread) == (pytest.approx(28.0), pytest.approx(0, abs=1e-8))
    wider = frechet(Moments.of(a), Moments.of((a - a.mean(0)) * 3 + a.mean(0)))
    assert wider.spread == pytest.approx(4 * float(torch.cov(a.T).trace()))  # (3 - 1)^2 tr S where covariances commute
    assert frechet(Moments.of(a), Moments.of(b)).value == pytest.approx(frechet(Moments.of(b), Moments.of(a)).value)


def test_frechet_distance_of_fewer_pictures_than_features_is_a_number():
    a, b = draw(3, 12, 64), draw(4, 9, 64)
    value = Target(Moments.of(a)).distance(Moments.of(b)).value
    textbook = torch.linalg.svdvals(centred(a) @ centred(b).T).sum()  # nuclear norm: tr (S1 S2)^(1/2) of any rank
    expected = (a.mean(0) - b.mean(0)).square().sum() + centred(a).square().sum() + centred(b).square().sum() - 2 * textbook
    assert value == pytest.approx(float(expected), rel=1e-5)
    square = root(torch.cov(a.T))
    torch.testing.assert_close(square @ square, torch.cov(a.T), atol=1e-9, rtol=1e-6)


def centred(features):
    return (features - features.mean(0)) / (len(features) - 1) ** 0.5


def test_moments_do_not_know_order_or_batches(seed):
    rows = draw(seed, 301, 11).float()
    whole = Moments.of(rows)
    parts = [Moments.of(part) for part in rows[torch.randperm(301)].split(17)]
    for other in (Moments.joined(parts), Moments.joined(parts[::-1])):
        assert other.count == 301
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(other.covariance, whole.covariance, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(whole.covariance, torch.cov(rows.double().T), rtol=1e-9, atol=1e-12)


def test_features_that_are_none_are_refused():
    rows = draw(0, 5, 3)
    rows[2, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 5 rows"):
        Moments.of(rows)
    with pytest.raises(InputError, match="2 pictures or more"):
        frechet(Moments.of(draw(0, 1, 3)), Moments.of(draw(0, 5, 3)))
    with pytest.raises(InputError, match="features"):
        Moments(3).add(draw(0, 5, 4))
    with pytest.raises(InputError, match="two pictures"):
        mmd(draw(0, 1, 3), draw(0, 5, 3))
    with pytest.raises(InputError, match="subsets of 2 to 5"):
        mmd_of_subsets(draw(0, 5, 3), draw(0, 8, 3), size=6)
    with pytest.raises(InputError, match="more than k = 3"):
        manifold(draw(0, 3, 3), draw(0, 8, 3))


@pytest.mark.xdist_group("oracles")
def test_kernel_distance_equals_torchmetrics(sides, seed):
    from torchmetrics.image.kid import KernelInceptionDistance

    painted, real = sides
    painted = painted[: len(real)]
    theirs = KernelInceptionDistance(feature=Given(painted.shape[1]), subsets=1, subset_size=len(real), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(as_pictures(real), real=True)
    theirs.update(as_pictures(painted), real=False)
    assert mmd(painted, real) == pytest.approx(float(theirs.compute()[0]), rel=1e-4, abs=1e-9), seed


def test_kernel_distance_is_unbiased_and_its_subsets_agree():
    """0 on average where nothing differs, and that with few pictures too; a textbook form in numpy beside it."""
    few = [mmd(draw(2 * i, 8, 5), draw(2 * i + 1, 8, 5)) for i in range(400)]
    assert abs(np.mean(few)) < 3 * np.std(few) / 20
    a, b = draw(5, 60, 6).numpy(), draw(6, 50, 6, shift=0.5).numpy()
    k = {name: (x @ y.T / 6 + 1) ** 3 for name, (x, y) in {"aa": (a, a), "bb": (b, b), "ab": (a, b)}.items()}
    apart = [(m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in (k["aa"], k["bb"])]
    assert mmd(torch.tensor(a), torch.tensor(b)) == pytest.approx(sum(apart) - 2 * k["ab"].mean())
    draws = mmd_of_subsets(torch.tensor(a), torch.tensor(b), count=300, size=25)
    assert len(draws) == 300
    assert float(draws.mean()) == pytest.approx(mmd(torch.tensor(a), torch.tensor(b)), abs=3 * float(draws.std()) / 17)
    assert torch.equal(draws, mmd_of_subsets(torch.tensor(a), torch.tensor(b), count=300, size=25))


def test_manifold_scores_equal_their_definitions(seed):
    painted, real = draw(seed, 70, 4, spread=0.8), draw(seed + 1, 90, 4)
    found, k = manifold(painted, real, k=3), 3
    apart = {name: np.linalg.norm(x[:, None] - y[None], axis=2) for name, (x, y) in
             {"pp": (painted, painted), "rr": (real, real), "pr": (painted, real)}.items()}  # fmt: skip
    ball = {name: np.sort(apart[name], axis=1)[:, k] for name in ("pp", "rr")}
    assert found.precision == pytest.approx(np.mean((apart["pr"] <= ball["rr"]).any(1)))
    assert found.recall == pytest.approx(np.mean((apart["pr"] <= ball["pp"][:, None]).any(0)))
    assert found.density == pytest.approx((apart["pr"] <= ball["rr"]).sum() / (k * 70))
    assert found.coverage == pytest.approx(np.mean(apart["pr"].min(0) <= ball["rr"]))
    np.testing.assert_allclose(reaches(real, 3), ball["rr"], rtol=1e-6)


def test_manifold_scores_tell_which_side_is_poor():
    real = draw(1, 400, 3)
    one_mode = real[:1] + 0.01 * draw(2, 400, 3)
    narrow = manifold(one_mode, real)
    assert narrow.precision > 0.95 and narrow.recall < 0.1 and narrow.coverage < 0.1
    wild = manifold(draw(2, 400, 3, spread=12), real)
    assert wild.precision < 0.2 and wild.recall > 0.6
    same = manifold(draw(3, 400, 3), real)
    assert min(same.precision, same.recall, same.coverage) > 0.75 and 0.8 < same.density < 1.2 and 0.75 < same.f1 < 1


@pytest.mark.xdist_group("oracles")
def test_mifid_equals_torchmetrics_in_its_direction(seed):
    from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

    chance = np.random.default_rng(seed)
    width = int(chance.integers(8, 30))
    painted, real = draw(seed, 90, width), draw(seed + 1, 60, width, shift=0.3)
    for near in (False, True):
        if near:
            painted = real.repeat(2, 1)[:90] + 0.02 * painted
        theirs = MemorizationInformedFrechetInceptionDistance(feature=Given(width), normalize=True)
        theirs.set_dtype(torch.float64)
        theirs.update(as_pictures(real), real=True)
        theirs.update(as_pictures(painted), real=False)
        fid = frechet(Moments.of(real), Moments.of(painted)).value
        distance = memorization_distance(painted, real, "real to painted")
        assert (distance < 0.1) == near
        assert mifid(fid, distance) == pytest.approx(float(theirs.compute()), rel=1e-4), seed


def test_memorization_counts_painted_pictures_and_fires_below_its_threshold():
    real = draw(1, 30, 16)
    copies = torch.cat([real[:1].repeat(40, 1), draw(2, 10, 16)])  # forty copies of one picture
    assert memorization_distance(copies, real) < 0.2 < memorization_distance(copies, real, "real to painted")
    assert float(nearest_cosine(real, real).max()) == pytest.approx(0, abs=1e-12)
    assert float(nearest_cosine(-real, real).max()) == pytest.approx(0, abs=1e-12)  # |cos|: as the competition has it
    silent = torch.cat([real, torch.zeros(3, 16)])
    assert len(nearest_cosine(silent, real)) == 30
    assert mifid(50.0, 0.1) == pytest.approx(50.0) and mifid(50.0, 0.0999) == pytest.approx(50 / 0.0999)
    assert mifid(50.0, 0.0) > 1e15
    with pytest.raises(InputError, match="not all zero"):
        nearest_cosine(torch.zeros(2, 4), real[:, :4])
    with pytest.raises(InputError, match="direction"):
        memorization_distance(real, real, "both")


def test_three_definitions_of_one_score():
    texts = torch.eye(4, dtype=torch.float64)
    pictures = torch.stack([texts[0] * 3, -texts[1], texts[2] + texts[3], texts[3]])  # cosines 1, -1, 1/sqrt 2, 1
    found, half = clip_scores(pictures, texts), 0.5**0.5
    assert found[HESSEL] == pytest.approx(2.5 * (2 + half) / 4)
    assert found[COSINE] == pytest.approx((1 + half) / 4)
    assert found[PERCENT] == pytest.approx(100 * (1 + half) / 4)
    assert clip_scores(-texts, texts)[PERCENT] == 0 and clip_scores(-texts, texts)[COSINE] == -1
    with pytest.raises(InputError, match="a text for each"):
        clip_scores(pictures, texts[:3])


def test_r_precision_draws_among_different_captions():
    captions = [f"caption {i % 12}" for i in range(60)]
    texts = torch.nn.functional.one_hot(torch.arange(60) % 12, 12).double()
    assert r_precision(texts, texts, captions, among=12).all()
    shifted = r_precision(texts.roll(1, 0), texts, captions, among=12)
    assert not shifted.any()
    blind = draw(3, 6000, 24)
    bank = draw(4, 12, 24)[torch.arange(6000) % 12]
    chance = float(r_precision(blind, bank, [f"{i % 12}" for i in range(6000)], among=5).double().mean())
    assert chance == pytest.approx(0.2, abs=0.03)
    with pytest.raises(InputError, match="2 to 12 to tell apart"):
        r_precision(texts, texts, captions, among=13)


@pytest.mark.xdist_group("oracles")
def test_bleu_equals_torchmetrics(seed):
    from torchmetrics.functional.text import sacre_bleu_score

    from giverny.metrics.bleu import bleu

    chance = np.random.default_rng(seed)
    words = ["a", "red", "blue", "dress", "with", "long", "sleeves", "and", "shoes", "on", "white", "ground"]
    captions = [" ".join(chance.choice(words, int(chance.integers(4, 12)))) for _ in range(20)]
    references = [[" ".join(chance.choice(words, int(chance.integers(4, 12)))) for _ in range(2)] + [c[:-3]] for c in captions]
    for order in (1, 4):
        value, signature = bleu(captions, references, order)
        theirs = sacre_bleu_score(captions, references, n_gram=order, lowercase=True)
        assert value == pytest.approx(100 * float(theirs), abs=1e-3)
        assert "tok:13a" in signature
    assert bleu(["a red dress with sleeves"], [["a red dress with sleeves"]])[0] == pytest.approx(100)
    with pytest.raises(InputError, match="one reference or more"):
        bleu(["a"], [[]])
