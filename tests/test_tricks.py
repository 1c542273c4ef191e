"""What makes a photograph look like a painting without being one, sets that are a class each, and the judge that learns from
both not to be taken in; edges of pairs; the comparison of translators beside cheap tricks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import paintings
from giverny.assembly import load_recipe, open_judge, train
from giverny.assembly.reading import open_data
from giverny.base.errors import InputError
from giverny.base.runtime import derive_seed
from giverny.checkpoints.native import read_card
from giverny.data.attributes import attributes_of
from giverny.data.crops import CROP, held_out, photographs_of
from giverny.data.folders import open_source
from giverny.data.head import Head
from giverny.data.joined import Joined
from giverny.data.loader import Loader
from giverny.data.toy import ToyShapes
from giverny.data.tricks import FORMS, blurred, formless, matched, median, noisy, posterised, reformed
from giverny.judges.classifier import JUDGE
from giverny.judges.classifier.examples import choose_examples
from giverny.judges.classifier.hard import HardRecipe, hardened
from giverny.judges.classifier.recipe import ClassifierRecipe, DataRecipe
from giverny.metrics import kernel
from giverny.metrics.pairs import edge_correlation, edges
from giverny.pipelines.pairs import compare_pairs
from giverny.training.parallel import World
from test_judges import fresh

pytestmark = pytest.mark.xdist_group("contract")


def painted(chance: np.random.Generator, side: int = 32) -> np.ndarray:
    """Strokes: rough pictures in warm colours."""
    return (chance.integers(0, 120, (side, side, 3)) + np.array([120, 60, 0])).astype(np.uint8)


def photographed(chance: np.random.Generator, side: int = 32) -> np.ndarray:
    """Slopes: smooth pictures in cold colours."""
    place = np.linspace(0, chance.uniform(40, 130), side)
    grey = place[:, None] * chance.uniform(0, 1) + place * chance.uniform(0, 1)
    return np.clip(grey[..., None] + np.array([0, 40, 100]), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two named sets as their owner has unpacked them: 30 paintings, and 60 crops of 15 photographs."""
    home, chance = tmp_path_factory.mktemp("sets"), np.random.default_rng(4)
    for name in (paintings.PAINTINGS, paintings.PHOTOGRAPHS):
        (home / name).mkdir()
    for number in range(30):
        Image.fromarray(painted(chance)).save(home / paintings.PAINTINGS / f"monet_{number:03}.png")
    for number in range(60):
        Image.fromarray(photographed(chance)).save(home / paintings.PHOTOGRAPHS / f"photo_{number // 4:03}_{number % 4}.png")
    return home


def two_sets(home: Path) -> Joined:
    return Joined(
        {"painting": open_source(home / paintings.PAINTINGS), "photograph": open_source(home / paintings.PHOTOGRAPHS)}
    )


def recipe_of(home: Path, **changes: Any) -> ClassifierRecipe:
    data = JUDGE.tiny().model_dump(mode="json", exclude_none=True)
    data["data"] |= {"source": str(home / paintings.PAINTINGS), "shows": "painting", "group": CROP, "size": 32,
                     "beside": {"photograph": str(home / paintings.PHOTOGRAPHS)}}  # fmt: skip
    recipe = load_recipe(data, [f"{key}={value}" for key, value in changes.items()])
    assert isinstance(recipe, ClassifierRecipe)
    return recipe


@pytest.fixture(scope="module")
def judged(sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A judge after a moment of learning, hard negatives among what it learns from, and its run."""
    run = tmp_path_factory.mktemp("judge")
    more = {"loop.steps": 60, "loop.batch": 24, "loop.learning_rate": 5e-3, "loop.average": 0.9, "hard.of": "photograph",
            "hard.formless": 0.15}  # fmt: skip
    for _ in train(recipe_of(sets, **more), run, device="cpu"):
        pass
    return SimpleNamespace(run=run, judge=open_judge(run, "cpu"))


# -- tricks ----------------------------------------------------------------------------------------------------------------


def looped(pixels: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The definition, value by value."""
    found = np.zeros_like(pixels)
    for channel in range(pixels.shape[2]):
        ours, theirs = pixels[..., channel], like[..., channel]
        there = sorted(set(theirs.ravel().tolist()))
        shares = [float((theirs <= value).mean()) for value in there]
        for value in set(ours.ravel().tolist()):
            share, place = float((ours <= value).mean()), 0
            while place < len(there) - 1 and shares[place] < share - 1e-12:
                place += 1
            goal = float(there[place])
            if place and shares[place] > share + 1e-12:
                part = (share - shares[place - 1]) / (shares[place] - shares[place - 1])
                goal = there[place - 1] + part * (there[place] - there[place - 1])
            found[ours == value, channel] = int(np.rint(goal))
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(2, 256))
def test_a_matched_picture_has_the_other_ones_histogram_by_the_definition(seed, channels, side, tones):
    chance = np.random.default_rng(seed)
    ours = chance.integers(0, tones, (side, 7, channels)).astype(np.uint8)
    theirs = chance.integers(0, 256, (5, side, channels)).astype(np.uint8)
    got = matched(ours, theirs)
    assert got.dtype == np.uint8 and got.shape == ours.shape
    assert np.abs(got.astype(int) - looped(ours, theirs)).max() <= 1  # a half is rounded either way
    for channel in range(channels):  # order is kept: what was as bright or brighter still is
        order = np.argsort(ours[..., channel], axis=None, kind="stable")
        assert (np.diff(got[..., channel].ravel()[order].astype(int)) >= 0).all()


def test_matching_agrees_with_scikit_image():
    exposure = pytest.importorskip("skimage.exposure")
    chance = np.random.default_rng(fresh())
    ours, theirs = (np.sort(chance.integers(0, 256, (40, 30, 3)) // k, 0).astype(np.uint8) for k in (1, 2))
    found = exposure.match_histograms(ours.astype(np.float64), theirs.astype(np.float64), channel_axis=-1)
    assert np.abs(matched(ours, theirs) - found).max() <= 0.5 + 1e-9


def test_matching_looks_at_values_and_not_at_places():
    chance = np.random.default_rng(fresh())
    ours = chance.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert np.array_equal(matched(ours, ours), ours)
    shuffled = chance.permutation(ours.reshape(-1, 3)).reshape(32, 8, 3)
    assert np.array_equal(matched(ours, shuffled), ours), "places do not count"
    steps = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    falling = 255 - steps // 2  # two of each value from 128 on: what is darker becomes darker, as far as they go
    assert np.abs(matched(steps, falling).ravel() - (127.5 + np.arange(256) / 2)).max() <= 1
    for wrong in ((ours[..., :1], ours), (ours / 255, ours), (ours, ours[0])):
        with pytest.raises(InputError):
            matched(*wrong)


def test_forms_do_what_they_say():
    chance = np.random.default_rng(fresh())
    picture = chance.integers(0, 256, (24, 20, 3)).astype(np.uint8)
    for tones in (2, 3, 7, 256):
        levels = np.unique(posterised(np.arange(256, dtype=np.uint8), tones))
        assert len(levels) == tones and levels[0] == 0 and levels[-1] == 255
    assert np.array_equal(posterised(picture, 256), picture)
    inner = median(picture, 3)[1:-1, 1:-1]
    windows = np.lib.stride_tricks.sliding_window_view(picture, (3, 3), (0, 1)).reshape(22, 18, 3, 9)
    assert np.array_equal(inner, np.median(windows, axis=3))
    assert blurred(picture, 2).std() < 0.5 * picture.std()
    grey = np.full((24, 21, 3), 128, np.uint8)
    for grain in (1, 2):
        noise = noisy(grey, 20, grain, chance) - 128.0
        assert abs(noise.mean()) < 4 and abs(noise.std() - 20) < 3
        cells = noise[: 24 // grain * grain, : 21 // grain * grain].reshape(24 // grain, grain, 21 // grain, grain, 3)
        assert np.ptp(cells, (1, 3)).max() == 0 and np.ptp(noise[:, ::grain, 0]) > 0
    draws = [int(draw) for draw in chance.integers(0, 2**64, 200, dtype=np.uint64)]
    made = [reformed(picture, draw) for draw in draws]
    assert all(np.array_equal(reformed(picture, draw), one) for draw, one in zip(draws[:20], made, strict=False))
    assert {draw % len(FORMS) for draw in draws} == set(range(len(FORMS)))
    assert all(one.shape == picture.shape and one.dtype == np.uint8 and (one != picture).any() for one in made)


def test_without_its_forms_a_picture_keeps_colours_and_the_strength_of_its_waves():
    chance = np.random.default_rng(fresh())
    picture = 118 + np.rint(10 * chance.random((20, 15, 3)) + np.linspace(0, 9, 20)[:, None, None]).astype(np.uint8)
    lost = formless(picture, chance)
    assert lost.dtype == np.uint8 and lost.shape == picture.shape
    ours, theirs = (np.abs(np.fft.fft2(x.astype(float), axes=(0, 1))) for x in (picture, lost))
    assert np.abs(ours - theirs).max() < 60, "whole values: 300 rounded pixels, each by half at most"
    centred = [(x - x.mean((0, 1))).reshape(-1, 3) for x in (picture.astype(float), lost.astype(float))]
    assert np.allclose(centred[0].T @ centred[0], centred[1].T @ centred[1], rtol=0.1, atol=300), (
        "colours go together as before"
    )
    assert abs(np.corrcoef(centred[0][:, 0], centred[1][:, 0])[0, 1]) < 0.5
    assert (formless(picture, chance) != lost).any()


# -- sets that are a class each --------------------------------------------------------------------------------------------


def test_joined_sets_are_a_class_each(sets):
    joined = two_sets(sets)
    assert len(joined) == 90 and joined.classes == ("painting", "photograph")
    told = [attributes_of(joined, i)["class"] for i in range(90)]
    assert told == ["painting"] * 30 + ["photograph"] * 60
    for index in (0, 29, 30, 89):
        kind = joined.sets[told[index]]
        sample = joined.read(index)
        assert joined.classes[sample.label] == told[index] and sample.name == joined.entries[index].name
        assert np.array_equal(sample.pixels, kind.read(index if index < 30 else index - 30).pixels)
    few = joined.head(3)
    assert [attributes_of(few, i)["class"] for i in range(6)] == ["painting"] * 3 + ["photograph"] * 3
    toys = Joined({"a": ToyShapes(3, 28), "b": ToyShapes(2, 28, 1)})
    assert [attributes_of(toys, i)["class"] for i in range(5)] == ["a", "a", "a", "b", "b"] and not hasattr(toys, "entries")
    assert toys.fingerprint != Joined({"b": ToyShapes(3, 28), "a": ToyShapes(2, 28, 1)}).fingerprint
    with pytest.raises(InputError, match="empty"):
        Joined({"a": Head(ToyShapes(3, 28), 0)})


def test_crops_of_one_photograph_are_held_out_together(sets):
    joined, data = two_sets(sets), DataRecipe(source="-", group=CROP, validation=16)
    examples, photographs = choose_examples(joined, data, "all"), photographs_of(joined)
    held, kept = ({photographs[i] for i in rows} for rows in (examples.held, examples.kept))
    assert not held & kept and len(examples.held) + len(examples.kept) == 90 and 0 < len(examples.held) <= 16
    sets_of = {label: joined.sets[label] for label in joined.classes}
    for label, start in (("painting", 0), ("photograph", 30)):
        seed = derive_seed(sets_of[label].fingerprint)
        theirs = held_out(sets_of[label], 8, seed)[0]  # as a translator does
        assert set(theirs + start) == {row for row in examples.held.tolist() if start <= row < start + len(sets_of[label])}
    assert examples.attributes == {"class": ("painting", "photograph")}
    ours, others = examples.showing("class", "photograph")
    assert (ours >= 30).all() and (others < 30).all() and len(ours) + len(others) == len(examples.kept)
    with pytest.raises(InputError, match="value of class"):
        examples.showing("class", "photo")
    lone = Joined({"a": ToyShapes(5, 28), "b": ToyShapes(5, 28, 1)})  # of each one is held out, and some half has neither
    none = [half for half in ("even", "odd") if not set(choose_examples(lone, DataRecipe(source="-", validation=2), "all").held)
            & set(range(half == "odd", 10, 2))]  # fmt: skip
    assert none
    for half in none:
        with pytest.raises(InputError, match="hold out"):
            choose_examples(lone, DataRecipe(source="-", validation=2), half)
    with pytest.raises(InputError, match="one group"):
        choose_examples(joined, DataRecipe(source="-", group="o"), "all")


def test_recipes_of_joined_sets(sets):
    recipe = recipe_of(sets)
    joined = open_data(recipe.data)
    assert isinstance(joined, Joined) and joined.classes == ("painting", "photograph")
    assert len(joined) == 24 + 48, "of sets with a test part, the other one"
    hard = {"hard.of": "photograph"}
    for wrong in (
        {"data.shows": '""'}, {"data.shows": "photograph"}, {"data.beside": "{}"}, {"hard.share": 0.5},
        hard | {"data.channels": 1}, hard | {"data.attributes": '["x"]'}, hard | {"hard.share": 0},
    ):  # fmt: skip
        with pytest.raises(InputError):
            recipe_of(sets, **wrong)


# -- hard negatives --------------------------------------------------------------------------------------------------------


def test_hard_negatives_are_a_function_of_seed_and_step(sets):
    joined, seed = two_sets(sets), fresh()
    examples = choose_examples(joined, DataRecipe(source="-", group=CROP), "all")
    showing = examples.showing("class", "photograph")
    loader = Loader(joined, size=(32, 32), channels=3, batch=48, seed=seed, subset=examples.kept, workers=0)

    def made(step, share=0.5, own=seed, formless=0.0):
        plain = loader.batch_at(step)
        return plain, hardened(plain, HardRecipe(of="photograph", share=share, formless=formless), showing, loader, step, own)

    changed, photographs = [], []
    for step in range(6):
        plain, hard = made(step)
        assert torch.equal(hard["pixels"], made(step)[1]["pixels"]) and torch.equal(hard["indices"], plain["indices"])
        assert not torch.equal(hard["pixels"], made(step, own=seed + 1)[1]["pixels"])
        assert hard["pixels"].abs().max() <= 1
        changed.append((hard["pixels"] != plain["pixels"]).flatten(1).any(1).numpy())
        photographs.append(np.isin(plain["indices"].numpy(), showing[0]))
    hit, ours = np.concatenate(changed), np.concatenate(photographs)
    assert abs(hit[ours].mean() - 0.75) < 0.15, "colours in a half, forms in a half: one or both in three quarters"
    assert ours.any() and not ours.all() and not hit[~ours].any(), "a painting stays as it is"
    assert (made(0, share=1.0)[1]["pixels"] != plain["pixels"]).any()
    assert not any(made(step)[1]["formless"].any() for step in range(6))
    drawn = [made(step, formless=0.4) for step in range(6)]
    lost = np.concatenate([hard["formless"].numpy() for _, hard in drawn])
    changed = np.concatenate([(hard["pixels"] != plain["pixels"]).flatten(1).any(1).numpy() for plain, hard in drawn])
    assert abs(lost[ours].mean() - 0.4) < 0.17 and abs(lost[~ours].mean() - 0.4) < 0.17, "of all classes"
    assert np.array_equal(changed, hit | lost), "and the others as before"


def test_what_has_lost_its_forms_is_taught_as_no_painting(sets, tmp_path):
    recipe = recipe_of(sets, **{"loop.batch": 48, "hard.of": "photograph", "hard.formless": 0.5})
    workshop = JUDGE.workshop(recipe, two_sets(sets), tmp_path, World(), torch.device("cpu"))
    (job,) = workshop.jobs()
    _, batches, held = job.start()
    values, plain = next(batches(0))["values"][:, 0], workshop.examples.values[:, 0]
    rows, photographs = workshop._loader(48, recipe.loop.seed, workshop.examples.kept, (0, 1)).rows_at(0)[1], 1
    assert (values.numpy()[plain[rows] == photographs] == photographs).all(), "photographs stay what they are"
    assert 0.2 < values.numpy()[plain[rows] != photographs].mean() < 0.8, "and so many paintings become what they are not"
    assert held["values"].sum() == plain[workshop.examples.held].sum(), "what is held out is as it is"


def test_a_judge_learns_from_two_sets_not_to_be_taken_in(sets, judged):
    judge, chance = judged.judge, np.random.default_rng(fresh())
    assert judge.attributes == {"class": ("painting", "photograph")}
    card = read_card(judged.run / "model")
    assert card.data["sets"]["photograph"] == {"name": paintings.PHOTOGRAPHS, "pictures": 48} and card.data["pictures"] == 72
    assert card.recipe["trained"]["hard"] == {"of": "photograph", "share": 0.5, "formless": 0.15}
    rough, smooth = (np.stack([make(chance) for _ in range(20)]) for make in (painted, photographed))
    recoloured = np.stack([matched(a, b) for a, b in zip(smooth, rough, strict=True)])
    share = [float((judge.look(p).probabilities["class"].argmax(1) == 0).mean()) for p in (rough, smooth, recoloured)]
    assert share[0] > 0.9 and share[1] < 0.1 and share[2] < 0.2, share


# -- edges -----------------------------------------------------------------------------------------------------------------


def test_edges_are_sobels_place_by_place():
    seed = fresh()
    x = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grey = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None].double()).sum(1).numpy()
    wanted = np.zeros((2, 7, 5))
    for i in range(7):
        for j in range(5):
            p = grey[:, i : i + 3, j : j + 3]
            right = p[:, 0, 2] + 2 * p[:, 1, 2] + p[:, 2, 2] - p[:, 0, 0] - 2 * p[:, 1, 0] - p[:, 2, 0]
            down = p[:, 2, 0] + 2 * p[:, 2, 1] + p[:, 2, 2] - p[:, 0, 0] - 2 * p[:, 0, 1] - p[:, 0, 2]
            wanted[:, i, j] = np.hypot(right, down)
    assert np.allclose(edges(x).numpy(), wanted, atol=1e-7)  # the weights of luminance are float32 in one, not in the other
    y = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    ours, theirs = edges(x).flatten(1).numpy(), edges(y).flatten(1).numpy()
    assert np.allclose(edge_correlation(x, y), [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])


def test_edges_stay_where_colours_and_contrast_change():
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(fresh()))
    for same in (x, 1 - x, 0.2 * x + 0.5):
        assert torch.allclose(edge_correlation(x, same), torch.ones(3, dtype=torch.float64), atol=1e-5)
    assert torch.equal(edge_correlation(x, torch.full_like(x, 0.3)), torch.zeros(3, dtype=torch.float64))
    assert (edge_correlation(x, x.roll(5, 3)) < 0.5).all()
    with pytest.raises(InputError):
        edge_correlation(x, x[..., 1:])
    with pytest.raises(InputError):
        edges(x[:, :2])


def test_pairs_tell_of_edges(sets):
    source = open_source(sets / paintings.PAINTINGS)
    found = {score.name: score for score in compare_pairs(source, source)}
    assert found["edge correlation"].value == pytest.approx(1) and found["edge correlation"].conditions["n"] == 30


# -- the comparison --------------------------------------------------------------------------------------------------------


def test_intervals_leave_out_whole_photographs():
    chance = np.random.default_rng(fresh())
    real, rows, groups = chance.normal(0, 1, (30, 4)), chance.normal(0.5, 1, (12, 4)), np.repeat(np.arange(4), 3)
    target = kernel.Target(torch.from_numpy(real))
    found = paintings.kid_of([torch.from_numpy(rows), torch.from_numpy(rows + 1)], groups, target)
    for g in range(4):
        parts = [kernel.mmd(torch.from_numpy(r[groups != g]), torch.from_numpy(real)) for r in (rows, rows + 1)]
        assert found.without[g] == pytest.approx(np.mean(parts))
    mean = paintings.mean_of(rows[:, 0], np.arange(12))  # of means the jackknife's error is the usual one
    half = (mean.interval[1] - mean.interval[0]) / 2
    assert half == pytest.approx(2.200985 * rows[:, 0].std(ddof=1) / 12**0.5, rel=1e-5)
    same = found - found
    assert same.value == 0 and same.interval == (0, 0)


def test_a_verdict_wants_more_than_the_interval():
    def left(value, spread=0.0):
        return paintings.Left(value, value + spread * np.array([-1, 1, -1, 1.0]))

    far = {"untouched": left(2), "matched": left(1.5)}
    assert "m beats untouched and matched on KID" in paintings.verdict("m", left(1, 0.01), far)
    assert "m beats untouched, but not matched," in paintings.verdict("m", left(1, 0.1), far | {"matched": left(1.1)})
    assert "m beats neither untouched nor matched" in paintings.verdict("m", left(1, 5), far)
    assert "m beats neither" in paintings.verdict("m", left(3, 0.01), far)


def test_translators_are_held_against_cheap_tricks(sets, judged, tiny_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GIVERNY_DATA", str(sets))
    monkeypatch.setattr(paintings, "at_hand", lambda name: False)
    out, model, judge = tmp_path / "scores.json", str(tiny_runs["translator"]), str(judged.run)
    paintings.main(
        [model, "--size", "32", "--draws", "2", "--judge", judge, "--second", judge, "--device", "cpu", "-o", str(out)]
    )
    said = json.loads(out.read_text("utf-8"))
    assert len(said["verdicts"]) == 4 and all(f"{model} beats" in one for one in said["verdicts"]), "two eyes, two parts"
    assert said["verdicts"][0] in capsys.readouterr().out
    value = {
        (s["row"], s["name"], s["conditions"].get("reference"), s["conditions"].get("features")): s for s in said["scores"]
    }
    untouched = {name: s["value"] for (row, name, _, _), s in value.items() if row == "untouched"}
    assert untouched["SSIM"] == pytest.approx(1) and untouched["edge correlation"] == pytest.approx(1)
    assert untouched["change"] == 0 and untouched["untouched"] == 1 and untouched["painting"] < 0.2
    assert value["test paintings", "painting", None, None]["value"] > 0.8
    assert value[model, "seconds", None, None]["value"] > 0
    pixels = {row: s for (row, name, part, eye), s in value.items() if (name, part, eye) == ("KID", "train", "pixels-16")}
    low, high = pixels["test paintings"]["interval"]
    assert low < high < pixels["untouched"]["value"] and pixels["matched"]["value"] < pixels["untouched"]["value"]
    assert pixels["untouched"]["conditions"]["interval_by"] == "leaving out each of 3 photographs"
    assert ("test paintings", "KID", "test", "pixels-16") not in value, "not beside themselves"
