"""What may be said of numbers from few seeds: against scipy, against the definitions, and by simulation on fresh draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from giverny.base.errors import InputError
from giverny.compare.statistics import (
    ALPHA,
    UNKNOWN,
    Paired,
    Scored,
    Verdict,
    Worse,
    holm,
    judge,
    paired,
    t_quantile,
    t_tails,
)

FREEDOM = (1, 2, 3, 4, 5, 6, 9, 10, 29, 100, 1001)
values = st.floats(-1e6, 1e6).map(lambda x: x if abs(x) > 1e-100 else 0.0)  # squares of smaller ones vanish in scipy
chances = st.floats(0, 1)

# -- Student's t --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", FREEDOM)
def test_tails_agree_with_scipy_far_out_as_well(freedom: int) -> None:
    t = np.concatenate([np.geomspace(0.1, 1e12, 200), np.linspace(0.1, 40, 200)])  # nearer to 0 scipy is off by 1e-9
    expected = 2 * stats.t.sf(t, freedom)
    seen = expected > 1e-290
    assert seen.sum() > 200
    found = np.array([t_tails(float(x), freedom) for x in t])
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-12 if freedom < 1000 else 1e-11)
    assert (found[~seen] <= 1e-289).all() and t_tails(0.0, freedom) == 1 and t_tails(math.inf, freedom) == 0
    assert [t_tails(-float(x), freedom) for x in t] == list(found)


def test_tails_of_one_and_two_degrees_are_the_closed_forms() -> None:
    for t in (1e-9, 0.001, 0.3, 1.0, 2.5, 40.0):
        assert t_tails(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-12)
        assert t_tails(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-12)


@pytest.mark.parametrize("freedom", FREEDOM)
def test_quantiles_agree_with_scipy_and_turn_tails_round(freedom: int) -> None:
    for tails in (0.999, 0.5, 0.05, 0.05 / 3, 0.01, 5e-5, 1e-9):
        found = t_quantile(tails, freedom)
        assert found == pytest.approx(stats.t.isf(tails / 2, freedom), rel=1e-9 if tails < 0.9 else 1e-8)
        assert t_tails(found, freedom) == pytest.approx(tails, rel=1e-12)


# -- one comparison -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(values, values), min_size=2, max_size=12), st.sampled_from([0.9, 0.95, 0.99, 1 - 0.05 / 7]))
@settings(max_examples=100, deadline=None)
def test_the_paired_test_agrees_with_scipy(pairs: list[tuple[float, float]], level: float) -> None:
    first, second = zip(*pairs, strict=True)
    try:
        found = paired(first, second)
    except InputError:
        differences = np.subtract(first, second)
        assert np.ptp(differences) <= 1e-9 * np.abs([first, second]).max()
        return
    expected = stats.ttest_rel(first, second)
    scale = max(map(abs, (*first, *second)))
    assert found.difference == pytest.approx(float(np.mean(np.subtract(first, second))), abs=1e-12 * scale)
    if found.error > 1e-6 * scale:  # below that it is the rounding of numpy's own sums that is compared
        assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-15)
        ends = expected.confidence_interval(level)
        assert found.interval(level) == pytest.approx((ends.low, ends.high), rel=1e-7, abs=1e-9 * scale)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([1.0], [2.0], "two seeds or more; given one"),
        ([], [], "given 0 and 0"),
        ([1.0, 2.0], [1.0], "given 2 and 1"),
        ([1.0, 2.0], [1.0, 2.0], "given 0 in each"),
        ([0.3, 1.1, 2.3], [0.2, 1.0, 2.2], "given 0.1 in each"),  # these differences vary in the last bit
    ],
)
def test_what_cannot_be_tested_is_refused(first: list[float], second: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        paired(first, second)


def shares(draws: int, count: int, noise: str, effect: float = 0.0) -> tuple[float, float]:
    """(how often p is at most 0.05, how often the interval holds the truth) over fresh draws of `count` seeds."""
    chance = np.random.default_rng()
    found = holds = 0
    for _ in range(draws):
        shared = chance.normal(size=count)  # what two cells of one seed have in common
        sides = [shared + getattr(chance, noise)(size=count) for _ in range(2)]
        test = paired(sides[0] + effect, sides[1])
        low, high = test.interval()
        found += test.p <= ALPHA
        holds += low <= effect <= high
    return found / draws, holds / draws


def five_deviations(share: float, draws: int) -> float:
    """Further from its expectation a share lies in one of two million runs of a test."""
    return 5 * math.sqrt(share * (1 - share) / draws)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_where_there_is_nothing_it_finds_something_in_one_of_twenty(count: int) -> None:
    found, holds = shares(3000, count, "normal")
    assert abs(found - ALPHA) < five_deviations(ALPHA, 3000)
    assert abs(holds - 0.95) < five_deviations(0.95, 3000)


@pytest.mark.parametrize("noise", ["standard_cauchy", "laplace"])
def test_long_tails_make_it_timid_not_rash(noise: str) -> None:
    assert shares(2000, 4, noise)[0] < ALPHA + five_deviations(ALPHA, 2000)


def test_two_heaps_make_it_rash_as_the_head_of_the_file_says() -> None:
    chance = np.random.default_rng()
    heaps = chance.choice([-1.0, 1.0], size=(2000, 3)) + chance.normal(size=(2000, 3)) * 0.01
    found = np.mean([paired(row, [0.0] * 3).p <= ALPHA for row in heaps.tolist()])
    assert abs(found - 0.25) < five_deviations(0.25, 2000)


def test_an_interval_holds_the_truth_and_a_large_effect_is_found() -> None:
    found, holds = shares(2000, 3, "normal", effect=20.0)
    assert found > 0.95 and abs(holds - 0.95) < five_deviations(0.95, 2000)


# -- many comparisons ---------------------------------------------------------------------------------------------------


def test_holms_correction_by_hand() -> None:
    assert [p for p, _ in holm([0.01, 0.04, 0.03, 0.005])] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # 0.005 < 0.05 / 4 and 0.01 < 0.05 / 3 pass; 0.03 > 0.05 / 2 fails, and so decides for 0.04 as well
    assert [level for _, level in holm([0.01, 0.04, 0.03, 0.005])] == pytest.approx([1 - 0.05 / 3, 0.975, 0.975, 0.9875])
    assert holm([]) == [] and holm([0.03]) == [(0.03, 0.95)]


@given(st.lists(chances | st.floats(0, 0.05), max_size=9))
@settings(deadline=None)
def test_holm_rejects_what_its_definition_rejects(ps: list[float]) -> None:
    order = sorted(range(len(ps)), key=ps.__getitem__)
    rejected = set()
    for place, index in enumerate(order):
        if ps[index] * (len(ps) - place) > ALPHA:
            break
        rejected.add(index)
    found = holm(ps)
    assert {i for i, (p, _) in enumerate(found) if p <= ALPHA} == rejected
    assert all(p <= corrected <= min(1, len(ps) * p) or p == corrected for p, (corrected, _) in zip(ps, found, strict=True))
    assert all(0.95 - 1e-12 <= level <= 1 - ALPHA / len(ps) + 1e-12 for _, level in found)


def family(chance: np.random.Generator, cells: int, seeds: int, effects: Sequence[float]) -> dict[str, dict[int, float | str]]:
    shared = chance.normal(size=seeds)
    return {
        f"cell={i}": {seed: float(shared[seed] + chance.normal() + effects[i]) for seed in range(seeds)} for i in range(cells)
    }


def judged(outcomes: Any, controls: Sequence[str] = (), better: Any = "higher") -> tuple[str, list[Verdict], list[Verdict]]:
    base, *others = [name for name in outcomes if name not in controls]
    score = Scored("score", outcomes, better)
    return judge(score, [(base, other) for other in others], base, dict.fromkeys(controls, Worse(base, score)))


@pytest.mark.parametrize("seeds", [3, 6])
def test_of_four_comparisons_of_nothing_any_is_found_in_at_most_one_of_twenty(seeds: int) -> None:
    chance = np.random.default_rng()
    draws, wrong, uncorrected = 1500, 0, 0
    for _ in range(draws):
        _, _, verdicts = judged(family(chance, 5, seeds, [0] * 5))
        wrong += any(v.said == "better" for v in verdicts)
        uncorrected += min(v.p or 1 for v in verdicts) <= ALPHA * 4
    assert wrong / draws < ALPHA + five_deviations(ALPHA, draws)
    assert uncorrected / draws > 0.07  # the correction has something to do


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 8), st.sampled_from(["higher", "lower"]))
@settings(max_examples=80, deadline=None)
def test_a_sentence_says_better_where_the_interval_leaves_out_0_and_only_there(
    seed: int, cells: int, seeds: int, better: str
) -> None:
    chance = np.random.default_rng(seed)
    outcomes = family(chance, cells, seeds, chance.normal(size=cells) * 4)
    for verdict in judged(outcomes, better=better)[2]:
        assert verdict.interval is not None and verdict.difference is not None
        low, high = verdict.interval
        assert (low > 0 or high < 0) == (verdict.said == "better") and low < verdict.difference < high
        if verdict.said == "better":
            wins = verdict.first if (verdict.difference > 0) == (better == "higher") else verdict.second
            assert verdict.sentence.startswith(f"{wins} better than ")
        else:
            assert verdict.sentence.startswith(f"no difference shown between {verdict.first} and {verdict.second}: ")


# -- sentences ----------------------------------------------------------------------------------------------------------

A = {0: 1.0, 1: 1.2, 2: 1.1}
B = {0: 2.0, 1: 2.1, 2: 2.2}  # differences -1, -0.9, -1.1: mean -1, standard error 0.1 / sqrt(3), t quantile 4.303
C = {0: 1.1, 1: 1.0, 2: 1.2}


def test_the_sentence_names_the_better_one_and_the_size_of_it() -> None:
    wanted = "w=a better than w=b by 1 (95 % interval 0.7516 to 1.248)"
    for better, winner in (("lower", wanted), ("higher", wanted.replace("w=a better than w=b", "w=b better than w=a"))):
        _, _, [verdict] = judged({"w=a": A, "w=b": B}, better=better)
        assert verdict.sentence == winner and verdict.difference == pytest.approx(-1)
        assert verdict.p == pytest.approx(float(stats.ttest_rel(list(A.values()), list(B.values())).pvalue))
    _, _, verdicts = judged({"w=a": A, "w=b": B, "w=c": C})
    assert verdicts[0].sentence == "w=b better than w=a by 1 (97.5 % interval 0.6417 to 1.358)"
    assert verdicts[1].sentence == "no difference shown between w=a and w=c: 0 (95 % interval -0.4303 to 0.4303)"


def test_one_seed_a_failed_seed_and_equal_cells_cannot_be_told() -> None:
    _, _, [one] = judged({"a": {0: 1.0}, "b": {0: 2.0}})
    assert one.sentence == "cannot be told: one seed" and one.said == "unknown" and one.p is None
    _, _, [failed] = judged({"a": A, "b": {**B, 1: "wanted numbers; given NaN\nsecond line"}})
    assert failed.sentence == "cannot be told: b has no value at seed 1 (wanted numbers; given NaN)"
    _, _, [two] = judged({"a": A, "b": {0: "x", 1: 2.0, 2: "y"}})
    assert two.sentence == "cannot be told: b has no value at seed 0 (x), and 1 more"
    _, _, [same] = judged({"a": A, "b": dict(A)})
    assert same.sentence == "cannot be told: a and b differ by 0 in each seed, so nothing says how much of it is chance"


def test_a_pair_that_could_not_be_tested_counts_in_the_correction() -> None:
    _, _, verdicts = judged({"a": A, "b": B, "c": {**C, 0: "burnt"}})
    assert verdicts[0].level == pytest.approx(0.975) and verdicts[1].said == "unknown"


@pytest.mark.parametrize(
    ("control", "why"),
    [
        (C, "no difference shown between a and control tenth"),
        ({seed: 9 + value for seed, value in B.items()}, "control tenth better than a by"),
        ({**B, 2: "burnt"}, "control tenth has no value at seed 2 (burnt)"),
    ],
    ids=["not told apart", "found better", "failed"],
)
def test_an_instrument_that_does_not_find_the_control_worse_judges_nothing(control: dict[int, float | str], why: str) -> None:
    worth, controls, [verdict] = judged({"a": A, "b": B, "control tenth": control}, ["control tenth"])
    assert worth.startswith(f"score cannot judge here: it does not find control tenth worse than a ({why}")
    assert verdict.sentence == UNKNOWN + worth and verdict.said == "unknown" and verdict.difference is None
    assert len(controls) == 1


def test_controls_that_are_found_leave_the_judgement_free() -> None:
    bad = {seed: value - 5 + 0.1 * seed for seed, value in A.items()}
    worse = {seed: value - 9 - 0.1 * seed for seed, value in A.items()}
    outcomes = {"a": A, "b": B, "control x": bad, "control y": worse}
    worth, controls, [verdict] = judged(outcomes, ["control x", "control y"])
    assert worth == "score finds control x, control y worse than a"
    assert [c.level for c in controls] == [0.95, 0.95] and verdict.said == "better" and verdict.level == 0.95
    assert judged(outcomes, ["control x", "control y"], "lower")[2][0].said == "unknown"  # there these two would be better
    assert "not known: there is no control" in judged({"a": A, "b": B})[0]


def test_intervals_widen_with_their_level() -> None:
    test = Paired(seeds=4, difference=1.0, error=0.25, p=0.03)
    widths = [np.ptp(test.interval(level)) for level in (0.5, 0.9, 0.95, 0.99, 0.999)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_a_control_may_have_a_score_of_its_own() -> None:
    """KID need not see that the cycle is gone, where SSIM does; and where that does not either, nothing is decided."""
    kid = {"base": A, "other": {0: 0.5, 1: 0.6, 2: 0.4}, "no cycle": {0: 0.8, 1: 0.9, 2: 1.0}}
    score = Scored("KID", kid, "lower")
    for structure, able in (({0: 0.2, 1: 0.25, 2: 0.1}, True), ({0: 0.7, 1: 0.6, 2: 0.9}, False)):
        other = Scored("SSIM", {"base": {0: 0.8, 1: 0.7, 2: 0.75}, "no cycle": structure}, "higher")
        worth, tested, verdicts = judge(score, [("base", "other")], "base", {"no cycle": Worse("base", other)})
        assert (verdicts[0].said == "better") == able and (tested[0].winner == "base") == able
        assert verdicts[0].winner == ("other" if able else None)
        assert ("SSIM finds no cycle worse" in worth) == able and ("KID cannot judge here: SSIM does not" in worth) != able


def test_a_control_of_another_cell_tells_of_comparisons_with_that_cell_alone() -> None:
    """A judge of paintings may see what is wrong with a translator, and not what is with a network that paints from noise."""
    outcomes = {"base": A, "x": B, "noise": {0: 5.0, 1: 5.1, 2: 5.2}, "y": {0: 6.0, 1: 6.2, 2: 6.1}}
    pairs = [("base", "x"), ("base", "noise"), ("noise", "y")]
    for worse, able in (([9.0, 9.1, 9.3], True), ([5.1, 5.0, 5.2], False)):
        told = outcomes | {"bad": {0: 9.0, 1: 9.4, 2: 9.1}, "bad noise": dict(enumerate(worse))}
        score = Scored("KID", told, "lower")
        controls = {"bad": Worse("base", score), "bad noise": Worse("noise", score)}
        worth, tested, verdicts = judge(score, pairs, "base", controls)
        assert [v.first for v in tested] == ["base", "noise"] and "KID finds bad worse than base" in worth
        assert verdicts[0].said == "better" and [v.said != "unknown" for v in verdicts[1:]] == [able, able]
        if able:
            assert "KID finds bad noise worse than noise" in worth and verdicts[2].winner == "noise"
        else:
            assert worth.startswith("KID cannot judge noise here: it does not find bad noise worse than noise (")
            assert all("cannot judge noise" in v.sentence for v in verdicts[1:])
    for beside, able in (({"y": "noise"}, False), ({"y": "base"}, True), ({}, True), ({"y": "z", "z": "y"}, True)):
        told = judge(score, [("x", "y")], "base", controls, beside)[2][0]
        assert (told.said != "unknown") == able, "a cell goes by the controls of the one it stands beside"
    none = {"bad noise": Worse("noise", Scored("KID", outcomes | {"bad noise": {0: 9.0, 1: 9.1, 2: 9.3}}, "lower"))}
    assert "worse than base is not known: it has no control" in judge(score, [("base", "x")], "base", none)[0]
    alone = judge(score, [("base", "x")], "base", {"bad noise": Worse("noise", score)})
    assert alone[2][0].said == "better", "a cell without controls of its own goes by the base's, of which there is none"


def test_cells_of_fewer_seeds_are_compared_over_those_that_both_have() -> None:
    few = {"base": {0: 1.0, 1: 1.2, 2: 1.1, 3: 9.0}, "other": {0: 0.5, 1: 0.6, 2: 0.8}, "one": {0: 0.1}}
    score = Scored("KID", few, "lower")
    _, _, (other, one) = judge(score, [("base", "other"), ("base", "one")], "base", {})
    assert other.difference == pytest.approx(np.mean([0.5, 0.6, 0.3])) and one.said == "unknown" and "one seed" in one.sentence
