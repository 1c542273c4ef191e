"""Judges: small classifiers that are trained here to measure painted pictures with. Real trainings, on toy shapes."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from giverny.assembly import open_judge, train
from giverny.base.errors import InputError
from giverny.base.recipe import check, override, read_recipe, to_toml
from giverny.data.arrays import ArraySource
from giverny.data.attributes import attributes_of
from giverny.data.folders import open_source, open_table
from giverny.data.head import Head
from giverny.data.toy import COLOURS, SHAPES, ToyShapes
from giverny.judges.classifier import JUDGE
from giverny.judges.classifier.examples import choose_examples
from giverny.judges.classifier.recipe import ClassifierRecipe, DataRecipe
from giverny.perception.classifier import Classifier, ResidualRecipe, StridedRecipe
from giverny.perception.resizers import get_resizer
from giverny.pipelines.probe import probe
from giverny.pipelines.train import train_stages
from giverny.training.augment import mirrored, recoloured, shifted
from giverny.training.classify import UNKNOWN, Classify, ClassifyRecipe, value_weights
from giverny.training.parallel import World
from giverny.training.streams import StepStreams

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[1] / "recipes" / "judges"
NETWORKS = (
    ResidualRecipe(channels=(8, 12), blocks=(0, 1), down="pool"),
    ResidualRecipe(channels=(8, 12, 8), blocks=(1, 0, 1)),
    StridedRecipe(channels=(6, 8), kernels=(7, 5), strides=(4, 2), dense=10),
)


def fresh() -> int:
    """A seed that no run before has had."""
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")  # pytest shows it where a test fails
    return seed


def streams(seed: int, rows: int) -> StepStreams:
    return StepStreams(seed, 3, 0, rows)


def tiny(**changes: Any) -> ClassifierRecipe:
    """The family's own, with tables of it changed."""
    data = JUDGE.tiny().model_dump(mode="json", exclude_none=True)
    return check(ClassifierRecipe, override(data, [f"{k}={v}" for k, v in changes.items()]), "a test")


def trained(recipe: ClassifierRecipe, source: Any, run: Path, stop: int | None = None) -> Any:
    """The workshop after its training, which is resumed where there is one; None where it was stopped after `stop` steps."""
    workshop = JUDGE.workshop(recipe, source, run / "cache", World(), CPU)
    told = train_stages(workshop, run, resume=True)
    for event in told:
        if stop is not None and event.report is not None and event.report.step == stop:
            told.close()
            return None
    return workshop


def written(recipe: ClassifierRecipe, source: Any, run: Path) -> Any:
    """A judge trained into a run folder and opened from there, as the house does it; and the network before it was written."""
    for _ in train(recipe, run, source=source, device="cpu"):
        pass
    return open_judge(run, "cpu"), trained(recipe, source, run).network


def table_set(path: Path, count: int, seed: int = 0) -> Path:
    """Toy shapes as a zip with a table: shape, colour (unnamed in every seventh) and whether it was changed."""
    shapes, rows = ToyShapes(count, 28, seed), []
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            sample, kept = shapes.read(index), io.BytesIO()
            Image.fromarray(sample.pixels).save(kept, "PNG")
            archive.writestr(f"{index:04}.png", kept.getvalue())
            words = sample.captions[0].split()
            told = {"shape": words[-1], "colour": "" if index % 7 == 0 else words[-2], "changed": index % 5 == 0, "size": 3.5}
            rows.append({"file_name": f"{index:04}.png", "text": list(sample.captions), **told})
        archive.writestr("metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_source(table_set(tmp_path_factory.mktemp("table") / "shapes.zip", 240))


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, table: Any) -> Any:
    """A judge of shapes and colours after a moment of learning, and its run."""
    recipe = tiny(
        **{
            "data.attributes": '["shape", "colour"]',
            "data.only": '{changed="false"}',
            "data.validation": 40,
            "loop.steps": 120,
        },
        **{"loop.batch": 32, "loop.learning_rate": 5e-3, "loop.average": 0.9, "loop.save_every": 60, "objective.shift": 1},
    )
    run = tmp_path_factory.mktemp("judge")
    judge, network = written(recipe, table, run)
    return SimpleNamespace(run=run, judge=judge, network=network)


# -- networks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", NETWORKS)
def test_networks_take_any_size_and_give_words_for_each_attribute(recipe):
    chance = np.random.default_rng(fresh())
    for channels in (1, 3):
        size = int(chance.integers(28, 50))
        network = Classifier(recipe, channels, size, {"shape": 4, "type": 2}).eval()
        x = torch.rand(3, channels, size, size) * 2 - 1
        features, answers = network.features(x), network(x)
        assert features.shape == (3, network.width) and {k: v.shape for k, v in answers.items()} == {
            "shape": (3, 4),
            "type": (3, 2),
        }
        whole = features @ network.head.weight.T + network.head.bias
        assert torch.allclose(torch.cat(list(answers.values()), 1), whole, atol=1e-5)
        with pytest.raises(InputError, match="pictures"):
            network(x[..., 1:])
    for wrong in ((3, 27, {"a": 2}), (2, 28, {"a": 2}), (3, 28, {}), (3, 28, {"a": 0})):
        with pytest.raises(InputError):
            Classifier(recipe, *wrong)


def test_the_two_families_differ_in_what_a_place_means():
    """Averaged over places, a network cannot tell where a thing lies once it has gone round; a dense layer can."""
    torch.manual_seed(0)
    x = torch.zeros(2, 1, 32, 32)
    x[0, :, 8:12, 8:12], x[1, :, 16:20, 16:20] = 1.0, 1.0  # the same thing, 8 pixels further: a whole number of all steps
    average = Classifier(ResidualRecipe(channels=(8, 8), blocks=(0, 0)), 1, 32, {"a": 2}).eval()
    dense = Classifier(StridedRecipe(channels=(8, 8), kernels=(3, 3), strides=(2, 2), dense=64), 1, 32, {"a": 2}).eval()
    apart = [(n.features(x)[0] - n.features(x)[1]).abs().max() / n.features(x).abs().max() for n in (average, dense)]
    assert apart[0] < 1e-5 < 0.05 < apart[1]


# -- augmentation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ground", [None, -2.0])
def test_each_picture_is_shifted_by_its_own_draw(ground):
    seed = fresh()
    x = torch.rand(9, 3, 7, 5, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(shifted(x, 0, streams(seed, 9), ground), x)
    for most in (1, 4):
        moved, draws = shifted(x, most, streams(seed, 9), ground), streams(seed, 9).uniform("shift", (9, 2))
        wide = F.pad(x, (most,) * 4, "replicate") if ground is None else F.pad(x, (most,) * 4, value=ground)
        for one, around, draw in zip(moved, wide, draws.tolist(), strict=True):
            down, right = (int(d * (2 * most + 1)) for d in draw)
            assert torch.equal(one, around[:, down : down + 7, right : right + 5])


def test_about_half_are_mirrored_and_a_share_recoloured():
    seed, n = fresh(), 4000
    x = torch.rand(n, 3, 2, 4)
    turned = mirrored(x, streams(seed, n))
    flipped = (turned != x).flatten(1).any(1)
    assert torch.equal(turned[flipped], x[flipped].flip(3)) and abs(float(flipped.double().mean()) - 0.5) < 0.05
    changed, kept = recoloured(x, 0.6, streams(seed, n))
    assert torch.equal(changed[kept], x[kept]) and (changed != x).flatten(1).any(1)[~kept].all()
    assert torch.equal(changed.sort(1).values, x.sort(1).values)
    assert abs(float((~kept).double().mean()) - 0.6 * 5 / 6) < 0.05  # one order in six is the old one
    grey = x[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(recoloured(grey, 1.0, streams(seed, n))[0], grey)


# -- the objective ------------------------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """Logits from the picture's first value on, so that what the objective makes of them can be worked out by hand."""

    def forward(self, x):
        flat = x.flatten(1)
        return {"shape": flat[:, :4], "colour": flat[:, 4:10]}


def by_hand(logits, told, weight, smoothing):
    """Cross-entropy in numpy, a sum over the rows whose value is known, over the number of all rows."""
    logits = logits.double().numpy()
    chances = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    total = 0.0
    for row, value in zip(chances, told.tolist(), strict=True):
        if value != UNKNOWN:
            spread = smoothing / len(row) * (weight.numpy() * row).sum()
            total -= (1 - smoothing) * float(weight[value]) * row[value] + spread
    return total / len(told)


def test_the_loss_is_that_of_the_named_values_alone():
    seed = fresh()
    chance = torch.Generator().manual_seed(seed)
    x = torch.rand(12, 3, 4, 4, generator=chance) * 6 - 3
    values = torch.stack([torch.randint(0, 4, (12,), generator=chance), torch.randint(-1, 6, (12,), generator=chance)], 1)
    weights = {"shape": torch.rand(4, generator=chance), "colour": torch.rand(6, generator=chance)}
    for smoothing in (0.0, 0.2):
        objective = Classify(Fixed(), ClassifyRecipe(smoothing=smoothing), weights)
        got = objective.loss("classifier", {"pixels": x, "values": values}, {}, streams(seed, 12))
        for column, (name, logits) in enumerate(Fixed()(x).items()):
            wanted = by_hand(logits, values[:, column], weights[name], smoothing)
            assert float(got[f"loss_{name}"]) == pytest.approx(wanted, rel=1e-5)
        assert float(got["loss"]) == pytest.approx(float(got["loss_shape"] + got["loss_colour"]), rel=1e-6)
        unnamed = torch.full_like(values, UNKNOWN)
        assert float(objective.loss("classifier", {"pixels": x, "values": unnamed}, {}, streams(seed, 12))["loss"]) == 0
    found = objective.validate({"pixels": x, "values": values}, streams(seed, 12))
    answers, known = Fixed()(x)["colour"].argmax(1), values[:, 1] != UNKNOWN
    assert float(found["accuracy_colour"]) == pytest.approx(float((answers == values[:, 1])[known].double().mean()))
    assert "accuracy_colour" not in objective.validate({"pixels": x, "values": unnamed}, streams(seed, 12))


def test_changed_colours_teach_shapes_and_no_colours():
    seed = fresh()
    x = torch.rand(40, 3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 6 - 3
    values = torch.stack([torch.arange(40) % 4, torch.arange(40) % 6], 1)
    shown, kept = recoloured(x, 0.7, streams(seed, 40))
    assert 0 < int(kept.sum()) < 40
    got = Classify(Fixed(), ClassifyRecipe(recolour=0.7, of_colour=("colour",))).loss(
        "classifier", {"pixels": x, "values": values}, {}, streams(seed, 40)
    )
    logits = Fixed()(shown)
    even = torch.ones(6)
    assert float(got["loss_shape"]) == pytest.approx(by_hand(logits["shape"], values[:, 0], even[:4], 0.0), rel=1e-5)
    named = values[:, 1].where(kept, UNKNOWN)
    assert float(got["loss_colour"]) == pytest.approx(by_hand(logits["colour"], named, even, 0.0), rel=1e-5)


def test_parts_of_a_batch_add_up():
    seed = fresh()
    x, values = torch.rand(8, 3, 2, 2) * 4, torch.tensor([[0, -1], [1, 2], [3, -1], [2, -1], [0, 5], [1, -1], [1, 0], [2, 1]])
    objective = Classify(Fixed(), ClassifyRecipe(shift=1, mirror=True, recolour=0.5, of_colour=("colour",)))
    whole = objective.loss("classifier", {"pixels": x, "values": values}, {}, streams(seed, 8))["loss"]
    parts = [
        objective.loss("classifier", {"pixels": x[i : i + 4], "values": values[i : i + 4]}, {}, StepStreams(seed, 3, i, 8))[
            "loss"
        ]
        for i in (0, 4)
    ]
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-6)


def test_rare_values_weigh_more_and_one_on_average():
    counts = torch.tensor([1, 4, 100, 0])
    weights = value_weights(counts, 0.5)
    assert weights[0] / weights[1] == pytest.approx(2) and weights[1] / weights[2] == pytest.approx(5)
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1)
    assert torch.equal(value_weights(counts, 0.0), torch.ones(4)) and torch.isfinite(value_weights(counts * 0, 1.0)).all()


# -- what sources tell, and which pictures are learnt from ----------------------------------------------------------------


def test_sources_tell_attributes(table, tmp_path):
    assert table.attributes_of(1) == {"shape": table.captions_of(1)[0].split()[-1], "changed": "false", "size": "3.5"} | {
        "colour": table.captions_of(1)[0].split()[-2]
    }
    assert "colour" not in table.attributes_of(7) and table.attributes_of(5)["changed"] == "true"
    assert attributes_of(Head(table, 3), 2) == table.attributes_of(2)
    toy = ToyShapes(8, 16)
    assert [attributes_of(Head(toy, 8), i) for i in range(8)] == [{"class": SHAPES[toy.read(i).label]} for i in range(8)]
    array = ArraySource("a", np.zeros((3, 28, 28, 1), np.uint8), np.array([1, -1, 0]), ("x", "y"))
    assert [attributes_of(array, i) for i in range(3)] == [{"class": "y"}, {}, {"class": "x"}]
    for kind in ("one", "two"):
        (tmp_path / "folders" / kind).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "folders" / kind / "1.png")
    assert [attributes_of(open_source(tmp_path / "folders"), i) for i in (0, 1)] == [{"class": "one"}, {"class": "two"}]
    rows = "file,kind,tone\n1.png,shirt, red \n2.png,shoe,\n"
    (tmp_path / "goods").mkdir()
    (tmp_path / "goods" / "list.csv").write_text(rows)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "goods" / name)
    goods = open_table(tmp_path / "goods", "list.csv", "file", lambda row: ((row["kind"],), row["kind"]))
    wanted = [{"kind": "shirt", "tone": "red", "class": "shirt"}, {"kind": "shoe", "class": "shoe"}]
    assert [attributes_of(goods, i) for i in (0, 1)] == wanted


def test_which_pictures_are_learnt_from(table):
    data = DataRecipe(source="-", attributes=("shape", "colour"), only={"changed": "false"}, validation=30)
    every = choose_examples(table, data, "all")
    used = np.concatenate([every.kept, every.held])
    assert sorted(used) == [i for i in range(240) if i % 5] and len(every.held) == 30
    assert every.attributes == {"shape": tuple(sorted(SHAPES)), "colour": tuple(sorted(COLOURS))}
    for index in used.tolist():
        told = table.attributes_of(index)
        found = [names[v] if v >= 0 else None for names, v in zip(every.attributes.values(), every.values[index], strict=True)]
        assert found == [told["shape"], told.get("colour")]
    assert (every.values[::5] == UNKNOWN).all()
    wanted = [sum(table.attributes_of(i).get("colour") == c for i in every.kept.tolist()) for c in sorted(COLOURS)]
    assert every.counts("colour").tolist() == wanted
    halves = [choose_examples(table, data, half) for half in ("even", "odd")]
    for parity, half in enumerate(halves):
        assert {i % 2 for i in [*half.kept, *half.held]} == {parity}
    prints = [e.fingerprint for e in (every, *halves, choose_examples(table, data.model_copy(update={"only": {}}), "all"))]
    assert len(set(prints)) == 4 and every.fingerprint == choose_examples(table, data, "all").fingerprint
    named = ArraySource("n", np.zeros((40, 28, 28, 1), np.uint8), np.arange(40) % 3, ("z", "b", "a", "never"))
    assert choose_examples(named, DataRecipe(source="-"), "all").attributes == {"class": ("z", "b", "a")}
    merged = choose_examples(named, DataRecipe(source="-", called={"z": "a", "b": "bee"}), "all")
    assert merged.attributes == {"class": ("a", "bee")} and merged.values[:3, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": ("colours",)}, "did you mean 'colour'"),
        ({"only": {"recoloured": "false"}}, "recoloured"),
        ({"only": {"changed": "no"}}, "data.only"),
        ({"called": {"squares": "box"}}, "did you mean 'square'"),
        ({"attributes": ("size",)}, "two values or more of 'size'"),
    ],
)
def test_what_is_not_told_cannot_be_learnt(table, changes, message):
    with pytest.raises(InputError, match=message):
        choose_examples(table, DataRecipe(source="-", **({"attributes": ("shape",)} | changes)), "all")


def test_recipes_that_cannot_be_meant_are_refused():
    for change, message in (
        ({"objective.of_colour": '["tone"]'}, "of_colour"),
        ({"objective.recolour": 0.5, "data.channels": 1}, "in colour"),
        ({"loop.batch": 4, "loop.accumulate": 4}, "two pictures"),
        ({"data.resizer": "bicubic"}, "resizer"),
        ({"data.size": 20}, "28"),
        ({"network.kernels": "[4, 3]"}, "odd"),
        ({"network.family": "round"}, "residual"),
    ):
        with pytest.raises(InputError, match=message):
            tiny(**change)


# -- judges -------------------------------------------------------------------------------------------------------------


def test_a_moment_of_learning_beats_chance(learnt):
    told = learnt.judge.recipe.trained
    assert told["accuracy_shape"] > 0.25 + 0.2 and told["accuracy_colour"] > 1 / 6 + 0.3
    assert (
        told["pictures"] + told["held_out"] == 240 * 4 // 5 and told["half"] == "all" and told["only"] == {"changed": "false"}
    )
    new = ToyShapes(80, 28, seed=fresh() + 1)
    samples = [new.read(i) for i in range(len(new))]
    looked = learnt.judge.look(np.stack([s.pixels for s in samples]))
    for place, name in ((-1, "shape"), (-2, "colour")):
        words = [s.captions[0].split()[place] for s in samples]
        found = [learnt.judge.attributes[name][i] for i in looked.probabilities[name].argmax(1)]
        assert np.mean([a == b for a, b in zip(words, found, strict=True)]) > (0.4 if place == -1 else 0.45)
        assert np.allclose(looked.probabilities[name].sum(1), 1, atol=1e-5)


def test_a_picture_is_seen_alike_alone_and_among_others(learnt):
    pixels = np.random.default_rng(fresh()).integers(0, 256, (300, 28, 28, 3), np.uint8)  # more than are looked at together
    together = learnt.judge.look(pixels)
    assert together.features.dtype == np.float32 and together.features.shape == (300, learnt.judge.network.width)
    for i in (0, 17, 299):
        alone = learnt.judge.look(pixels[i : i + 1])
        assert np.array_equal(alone.features[0], together.features[i])  # to the bit: batches are of one size
        for name, chances in alone.probabilities.items():
            assert np.allclose(chances[0], together.probabilities[name][i], atol=1e-6)


def test_another_size_goes_through_the_named_resizer(learnt):
    pixels = np.random.default_rng(fresh()).integers(0, 256, (5, 41, 33, 3), np.uint8)
    x = get_resizer("antialiased")(pixels, 28) / 127.5 - 1
    with torch.no_grad():
        wanted = learnt.judge.network.features(x)
    assert np.allclose(learnt.judge.look(pixels).features, wanted.numpy(), atol=1e-5)
    assert learnt.judge.conditions()["resizer"] == "antialiased"
    assert np.array_equal(learnt.judge(pixels).numpy(), learnt.judge.look(pixels).features)


def test_grey_is_the_same_in_one_channel_and_in_three(learnt, tmp_path):
    grey = np.random.default_rng(fresh()).integers(0, 256, (4, 28, 28, 1), np.uint8)
    assert np.array_equal(learnt.judge.look(grey).features, learnt.judge.look(np.repeat(grey, 3, 3)).features)
    recipe = tiny(**{"data.channels": 1, "loop.steps": 2})
    judge, _ = written(recipe, ToyShapes(64, 28), tmp_path)
    one, three = judge.look(grey).features, judge.look(np.repeat(grey, 3, 3)).features
    with torch.no_grad():
        wanted = judge.network.features(torch.from_numpy(grey).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    assert np.allclose(one, wanted, atol=1e-4) and np.array_equal(one, three)


def test_opened_again_it_says_the_same(learnt):
    again = open_judge(learnt.run / "model", "cpu")
    pixels = np.random.default_rng(fresh()).integers(0, 256, (6, 28, 28, 3), np.uint8)
    assert np.array_equal(again.look(pixels).features, learnt.judge.look(pixels).features)
    assert (again.name, again.fingerprint) == (learnt.judge.name, learnt.judge.fingerprint) == ("tiny-judge", again.fingerprint)
    told = again.conditions()
    assert json.loads(json.dumps(told)) == told and told["trained_on"]["name"] == "shapes"
    assert told["architecture"] == "strided" and told["looked_at"] == "28 x 28" and told["weights"] == again.fingerprint
    rounded = copy.deepcopy(learnt.network).half().float()  # as weights lie in the folder
    with torch.no_grad():
        wanted = rounded.features(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    assert np.allclose(again.look(pixels).features, wanted.numpy(), atol=1e-5)


def test_what_is_no_picture_is_refused(learnt):
    for wrong in (np.zeros((2, 28, 28), np.uint8), np.zeros((2, 28, 28, 3), np.float32), np.zeros((0, 28, 28, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            learnt.judge.look(wrong)


def test_ten_steps_are_five_and_five(tmp_path, table):
    recipe = tiny(**{"data.attributes": '["shape", "colour"]', "objective.recolour": 0.5, "objective.of_colour": '["colour"]'})
    whole = trained(recipe, table, tmp_path / "whole").result().networks["classifier"].state_dict()
    assert trained(recipe, table, tmp_path / "parts", stop=5) is None
    parts = trained(recipe, table, tmp_path / "parts").result().networks["classifier"].state_dict()
    assert whole.keys() == parts.keys() and all(torch.equal(v, parts[k]) for k, v in whole.items())


def test_a_change_of_what_is_learnt_is_another_training(table):
    def identity(**changes: Any) -> str:
        (job,) = JUDGE.workshop(tiny(**({"data.attributes": '["shape"]'} | changes)), table, Path(), World(), CPU).jobs()
        return job.identity

    same = [identity(), identity(**{"loop.steps": 20}), identity(**{"data.resizer": "clean"}), identity(name="other")]
    assert len(set(same)) == 1
    others = [
        {"half": "odd"}, {"data.called": '{ring = "hoop"}'},
        {"data.attributes": '["colour"]'}, {"data.only": '{changed="true"}'}, {"network.dense": 20},
        {"objective.shift": 2}, {"loop.learning_rate": 1e-4}, {"data.validation": 20},
    ]  # fmt: skip
    assert len({identity(**change) for change in others} | set(same)) == 1 + len(others)


def test_a_dry_run_says_what_a_training_takes(table):
    recipe = tiny(**{"data.attributes": '["shape"]'})
    (row,) = probe(lambda cache: JUDGE.workshop(recipe, Head(table, 64), cache, World(), CPU), None, CPU)
    assert row["stage"] == "classifier" and row["steps"] == 10


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_that_ship_are_whole(path, tmp_path):
    recipe = check(ClassifierRecipe, read_recipe(path), str(path))
    assert recipe.name == path.stem and recipe.network.family == {"a": "residual", "b": "strided"}[path.stem[-1]]
    (tmp_path / "again.toml").write_text(to_toml(recipe))
    assert check(ClassifierRecipe, read_recipe(tmp_path / "again.toml"), "again") == recipe
    network = Classifier(recipe.network, recipe.data.channels, recipe.data.size, {"a": 10}).eval()
    with torch.no_grad():
        assert network.features(torch.zeros(1, *network.shape)).shape == (1, network.width)
