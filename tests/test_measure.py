"""Measuring: the same number whatever the order and the batches; intervals that hold; clear words for bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from giverny.base.errors import InputError
from giverny.data.arrays import ArraySource
from giverny.data.toy import ToyShapes
from giverny.metrics import kernel
from giverny.metrics.frechet import frechet
from giverny.metrics.gather import Gathered, gathered, key_of, pack, unpack
from giverny.metrics.intervals import GROUPS, group_of, jackknife, of_mean, of_share
from giverny.metrics.moments import Moments
from giverny.metrics.pairs import apart_within, mean_apart, nearest, psnr, structural
from giverny.metrics.scores import KINDS, Sides, kid_floors, measure
from giverny.perception.instruments import Instrument, small_pixels
from giverny.pipelines.measure import Answering, Shown, asked_for, from_source, pass_by, reference_of
from giverny.pipelines.measure import measure as measure_pictures


@pytest.fixture
def seed():
    return int(np.random.default_rng().integers(1 << 31))


@pytest.fixture
def chance(seed):
    return np.random.default_rng(seed)


def features(chance, count, width, shift=0.0):
    return torch.from_numpy(chance.normal(size=(count, width)).astype(np.float32)) + shift


def pictures(chance, count, side=20):
    return chance.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Gathering


def test_a_sample_is_the_same_in_any_order_and_batch_and_in_parts(chance):
    rows, keys = features(chance, 90, 6), chance.integers(0, 1 << 60, 90)
    whole = Gathered(6, keep=25)
    whole.add(rows, keys)
    order, parts = chance.permutation(90), [Gathered(6, keep=25) for _ in range(3)]
    for part, chosen in zip(parts, np.array_split(order, 3), strict=True):
        for few in np.array_split(chosen, int(chance.integers(1, 7))):
            part.add(rows[few], keys[few], few)
    for part in parts[1:]:
        parts[0].join(part)
    assert parts[0].count == 90 and len(parts[0].rows) == 25
    assert torch.equal(parts[0].rows, whole.rows) and (parts[0].keys == whole.keys).all()
    assert (parts[0].tags == np.argsort(keys)[:25]).all()
    torch.testing.assert_close(parts[0].moments.covariance, torch.cov(rows.double().T), rtol=1e-12, atol=1e-12)


def test_a_sample_comes_back_from_its_tensors(chance):
    whole = Gathered(4, keep=7)
    whole.add(features(chance, 30, 4), chance.integers(0, 1 << 60, 30))
    again = unpack(pack(whole))
    assert torch.equal(again.rows, whole.rows) and again.count == 30 and again.alike == whole.alike == 0
    assert torch.equal(again.moments.covariance, whole.moments.covariance)


def test_equal_pictures_have_equal_keys_and_are_told_of(chance):
    some = pictures(chance, 5)
    assert key_of(some[0]) == key_of(some[0].copy()) != key_of(some[1])
    assert key_of(np.zeros((2, 3, 3), np.uint8)) != key_of(np.zeros((3, 2, 3), np.uint8))
    twice = gathered(features(chance, 6, 3), [1, 2, 2, 3, 3, 3])
    score = measure(Sides(twice, gathered(features(chance, 9, 3)), {}), ["kid"])[0]
    assert "3 of 6 pictures are copies" in score.conditions["alike_painted"] and "alike_reference" not in score.conditions


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_are_refused(chance, bad):
    rows = features(chance, 5, 3)
    rows[2, 1] = bad
    with pytest.raises(InputError, match="1 of 5 rows"):
        Gathered(3).add(rows, range(5))


# ---------------------------------------------------------------------------------------------------------------------
# Scores and intervals


def test_kid_without_each_group_is_that_of_the_others(chance):
    ours, theirs = features(chance, 47, 5), features(chance, 31, 5, 0.1)
    groups = group_of(47)
    value, without = kernel.Target(theirs).without_each(ours, groups)
    assert value == pytest.approx(kernel.mmd(ours, theirs), rel=1e-10)
    expected = [kernel.mmd(ours[groups != g], theirs) for g in range(GROUPS)]
    assert without == pytest.approx(expected, rel=1e-9, abs=1e-13)


def test_kid_floors_are_those_of_the_drawn_against_the_rest(chance):
    rows = features(chance, 41, 6)
    draws = [chance.permutation(41)[:15] for _ in range(3)]
    expected = [kernel.mmd(rows[d], rows[np.setdiff1d(np.arange(41), d)]) for d in draws]
    assert kid_floors(rows, draws) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_jackknife_of_means_is_the_usual_interval(chance):
    values = torch.from_numpy(chance.normal(3, 2, 400))
    groups = group_of(400)
    low, high = jackknife(float(values.mean()), [float(values[groups != g].mean()) for g in range(GROUPS)])
    means = torch.stack([values[groups == g].mean() for g in range(GROUPS)])
    half = 2.262157 * float(means.std()) / GROUPS**0.5  # Student's interval of ten group means
    assert (low, high) == pytest.approx((float(values.mean()) - half, float(values.mean()) + half))


@pytest.mark.parametrize("kind", ["kid", "fid", "diversity"])
def test_intervals_hold_what_they_say(kind):
    """Over many draws of one painter, 95 % intervals hold the mean score about so often."""
    chance = np.random.default_rng(5)
    real = gathered(features(chance, 300, 3, 0.4))
    found = [measure(Sides(gathered(features(chance, 120, 3)), real, {}), [kind])[0] for _ in range(150)]
    truth = np.mean([score.value for score in found])
    held = np.mean([low <= truth <= high for low, high in (score.interval for score in found)])
    assert 0.87 < held <= 1, held


def test_shares_and_means_have_intervals():
    assert of_share(0, 69)[0] == 0 and of_share(69, 69)[1] == 1 and 0.25 < of_share(0, 10)[1] < 0.31  # Wilson's: 0 to 0.2775
    assert of_share(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert of_mean(torch.tensor([1.0])) == (float("-inf"), float("inf"))
    low, high = of_mean(torch.tensor([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 1.959964 / 3**0.5, 2 + 1.959964 / 3**0.5))


def test_a_floor_lies_below_what_differs_and_every_score_says_its_conditions(chance):
    real, other = gathered(features(chance, 400, 8)), gathered(features(chance, 200, 8, 1.2))
    same = gathered(features(chance, 200, 8))
    for kind, what in KINDS.items():
        for score in measure(Sides(other, real, {"features": "given"}), [kind]):
            assert score.conditions["n"] == 200 and score.conditions["n_reference"] == 400, score.name
            assert score.conditions["features"] == "given" and np.isfinite(score.value), what.what
    for kind in ("kid", "fid"):
        far, near = (measure(Sides(side, real, {}), [kind])[0] for side in (other, same))
        floor = far.conditions.get("floor_high", far.conditions["floor"])
        assert near.value < 2 * floor < far.value and near.interval[1] < far.interval[0]
    assert measure(Sides(same, real, {}), ["manifold"])[0].value > measure(Sides(other, real, {}), ["manifold"])[0].value + 0.1


def test_fewer_pictures_than_features_are_measured_with_a_note(chance):
    sides = Sides(gathered(features(chance, 30, 64)), gathered(features(chance, 40, 64)), {})
    assert "fewer pictures than features (64)" in measure(sides, ["fid"])[0].conditions["note"]


def test_identical_pictures_are_measured_and_told_of(chance):
    flat = gathered(torch.ones(30, 4), [7] * 30)
    for score in measure(Sides(flat, gathered(features(chance, 60, 4)), {}), ["kid", "fid", "diversity", "nearest"]):
        assert np.isfinite(score.value) and "29 of 30" in score.conditions["alike_painted"]
    with pytest.raises(InputError, match="differ"):
        measure(Sides(gathered(features(chance, 30, 4)), flat, {}), ["diversity"])


def test_one_picture_is_refused_in_a_sentence(chance):
    with pytest.raises(InputError, match="two painted pictures or more"):
        Sides(gathered(features(chance, 1, 4)), gathered(features(chance, 9, 4)), {})


def test_copies_are_found_by_their_nearness(chance):
    real = features(chance, 80, 5)
    far = measure(Sides(gathered(features(chance, 40, 5)), gathered(real), {}), ["nearest"])[0]
    copied = measure(Sides(gathered(real[:40]), gathered(real), {}), ["nearest"])[0]
    assert copied.value < 0.6 < 0.8 < far.value < 1.25
    assert copied.conditions["copies"] > 10 and far.conditions["copies"] == 0


@pytest.mark.xdist_group("oracles")
def test_psnr_and_ssim_equal_torchmetrics(chance):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    ours = torch.from_numpy(chance.random((3, 3, 24, 31)))
    theirs = (ours + 0.1 * torch.from_numpy(chance.normal(size=ours.shape))).clamp(0, 1)
    expected = peak_signal_noise_ratio(theirs, ours, data_range=1.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(theirs, ours, 1.0), expected.double(), rtol=1e-6, atol=1e-6)
    found = structural_similarity_index_measure(theirs, ours, data_range=1.0, reduction="none")
    torch.testing.assert_close(structural(theirs, ours, 1.0), found, rtol=1e-5, atol=1e-6)
    assert torch.isinf(psnr(ours, ours, 1.0)).all()


def test_distances_among_rows_are_textbook(chance):
    rows, others = features(chance, 12, 4), features(chance, 9, 4)
    apart = (rows[:, None].double() - rows[None].double()).norm(dim=2)
    assert mean_apart(rows) == pytest.approx(float(apart.sum() / (12 * 11)))
    distance, which = nearest(rows, others)
    all_apart = (rows[:, None].double() - others[None].double()).norm(dim=2)
    torch.testing.assert_close(distance, all_apart.min(1).values)
    assert (which == all_apart.argmin(1)).all()
    value, groups = apart_within(rows, ["a"] * 6 + ["b"] * 5 + ["c"])
    assert groups == 2 and value == pytest.approx((mean_apart(rows[:6]) + mean_apart(rows[6:11])) / 2)


# ---------------------------------------------------------------------------------------------------------------------
# The story


def small(chance):
    """A network of chance over 12 x 12 pixels, with batches that show when they are not of one size."""
    weight = torch.from_numpy(chance.normal(size=(9, 3 * 12 * 12)).astype(np.float32)) / 20
    sizes = set()

    def look(x):
        sizes.add(len(x))
        return torch.tanh((x / 255).flatten(1) @ weight.T)

    return Instrument("chance", 9, 12, "antialiased", look, "drawn"), sizes


def test_order_and_batches_leave_no_trace_in_any_score(chance, tmp_path):
    instrument, sizes = small(chance)
    real = ArraySource("real", pictures(chance, 120))
    shown = [Shown(p, number=i) for i, p in enumerate([*pictures(chance, 50, 16), *pictures(chance, 23, 20)])]
    kinds = list(KINDS)
    one = measure_pictures(shown, real, instrument, kinds, cache=tmp_path)
    mixed = [shown[i] for i in chance.permutation(len(shown))]
    two = measure_pictures(iter(mixed), real, instrument, kinds, cache=tmp_path)
    assert sizes == {32} and len(list(tmp_path.glob("*.safetensors"))) == 1
    for a, b in zip(one.scores, two.scores, strict=True):
        assert f"{a.value:.6g}" == f"{b.value:.6g}" and a.name == b.name
        assert str(a.interval)[:12] == str(b.interval)[:12]
    assert one.nearest == two.nearest and one.nearest[0][2] <= one.nearest[-1][2]


def test_a_reference_cut_short_on_disk_is_looked_at_again(chance, tmp_path):
    instrument, source = small_pixels(4), ToyShapes(count=20, size=16)
    first = reference_of(source, instrument, tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(reference_of(source, instrument, tmp_path).rows, first.rows)


def test_a_painter_is_measured_with_words_and_its_conditions(chance, trained_tiny):
    painter, space = trained_tiny
    from giverny.pipelines.measure import Painted, prompts_of

    source = ToyShapes(count=64, size=16)
    painted = Painted(painter, prompts_of(source, 12, seed=3), seed=5, knobs={"steps": 2})
    found = measure_pictures(painted, source, small_pixels(4), ["kid", "diversity"], space=(space, {"clip": "tiny"}))
    by_name = {score.name: score for score in found.scores}
    assert {"KID", "diversity", "CLIP cosine", "CLIPScore", "CLIP percent", "R-precision"} == set(by_name)
    assert by_name["KID"].conditions["seeds"] == [5, 16] and by_name["KID"].conditions["knobs"]["steps"] == 2
    assert by_name["CLIP percent"].value == pytest.approx(max(0, 100 * by_name["CLIP cosine"].value))
    assert found.categories[0]["pictures"] == 12


class Captioned(ToyShapes):
    """Toy shapes of which only the first `told` have captions."""

    def __init__(self, told):
        super().__init__(count=30, size=16)
        self.told = told

    def captions_of(self, index):
        return super().captions_of(index) if index < self.told else ()


def test_what_is_asked_is_captions_of_all_pictures_or_the_empty_prompt():
    from giverny.pipelines.measure import prompts_of

    asked = prompts_of(Captioned(30), 40, seed=2)
    assert len(asked) == 40 and all(prompt for prompt, _ in asked)
    assert prompts_of(Captioned(0), 40, seed=2) == [("", "")] * 40
    for told, count in ((15, 30), (1, 2), (29, 2)):  # few are drawn, of which all or none may have one
        for seed in range(20):
            try:
                asked = prompts_of(Captioned(told), count, seed)
                assert count < 30 and all(prompt for prompt, _ in asked)
            except InputError as error:
                assert "a caption for every picture" in str(error)


def test_prompts_name_values_as_whole_words():
    known = {"colour": ("red", "blue", "navy blue"), "garment": ("shirt", "t-shirt", "dress")}
    assert asked_for("a Navy Blue t-shirt", known) == {"colour": "navy blue", "garment": "t-shirt"}
    assert asked_for("a red dress, very red", known) == {"colour": "red", "garment": "dress"}
    assert asked_for("red and blue dress", known) == {"garment": "dress"}
    assert asked_for("undressed", known) == {}


def test_pictures_without_prompts_cannot_be_asked_about_words(chance):
    answering = Answering(None, {})
    pass_by([Shown(p) for p in pictures(chance, 3)], [answering])
    with pytest.raises(InputError, match="pictures with prompts"):
        answering.scores()


def test_what_a_source_holds_comes_in_order_and_no_more_than_asked():
    source = ToyShapes(count=150, size=16)
    assert [s.number for s in from_source(source, 70)] == list(range(70))
    found = list(from_source(source))
    assert len(found) == 150 and (found[101].pixels == source.read(101).pixels).all()


MEMORY = """
import sys, numpy as np, resource
from giverny.data.arrays import ArraySource
from giverny.perception.instruments import small_pixels
from giverny.pipelines.measure import Gathering, Shown, pass_by
chance, tile = np.random.default_rng(0), None
def pictures(n):
    for i in range(n):
        yield Shown(chance.integers(0, 256, (64, 64, 3), dtype=np.uint8), number=i)
gathering = Gathering(small_pixels(8), keep=2000)
pass_by(pictures(int(sys.argv[1])), [gathering])
print(gathering.found.count, len(gathering.found.rows), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_fifty_thousand_pictures_take_no_more_memory_than_five_thousand():
    peaks = []
    for count in (5_000, 50_000):
        done = subprocess.run([sys.executable, "-c", MEMORY, str(count)], capture_output=True, text=True, check=True)
        seen, kept, peak = map(int, done.stdout.split())
        assert (seen, kept) == (count, 2000)
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 20_000, peaks  # kilobytes


def test_moments_of_many_rows_agree_with_the_textbook(chance):
    a, b = features(chance, 300, 7), features(chance, 200, 7, 0.3)
    value = frechet(Moments.of(a), Moments.of(b)).value
    import scipy.linalg

    sides = [(x.double().numpy().mean(0), np.cov(x.double().numpy(), rowvar=False)) for x in (a, b)]
    (m1, s1), (m2, s2) = sides
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(scipy.linalg.sqrtm(s1 @ s2)))
    assert value == pytest.approx(expected, rel=1e-8)
    assert json.dumps(value)
