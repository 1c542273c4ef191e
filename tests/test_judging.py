"""How clothes are judged, on a small set of drawn ones: three shapes in four colours, with a pair held out."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from giverny.base.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import clothes_judges
import clothes_measures
import judges
import likeness
import scoring
import wardrobe
from clothes_judges import UNKNOWN, WORDS, Seen, first_judge, kin, open_photographs, second_judge
from clothes_measures import build_yard, choose_pairs, measure, nearest_training, rule, small

RNG = np.random.default_rng(5)
PAINTS = {"red": (200, 30, 40), "blue": (40, 60, 200), "yellow": (240, 210, 40), "black": (25, 25, 25)}
SHAPES = {
    "t-shirt": [(4, 12), (60, 12), (60, 28), (46, 28), (46, 56), (18, 56), (18, 28), (4, 28)],
    "trousers": [(16, 4), (48, 4), (52, 60), (38, 60), (32, 24), (26, 60), (12, 60)],
    "belt": [(2, 28), (62, 28), (62, 38), (2, 38)],
}
HELD = ("belt", "yellow")


def drawn(garment: str, colour: str, chance: np.random.Generator) -> np.ndarray:
    """One piece on white, uint8 (64, 64, 3), a little moved, its cloth a little uneven."""
    sheet = Image.new("RGB", (64, 64), "white")
    corners = np.array(SHAPES[garment]) + chance.integers(-3, 4, 2) + chance.integers(-2, 3, (len(SHAPES[garment]), 2))
    ImageDraw.Draw(sheet).polygon([tuple(c) for c in corners.tolist()], PAINTS[colour])
    pixels = np.asarray(sheet).astype(int)
    cloth = (pixels < 250).any(2, keepdims=True)
    return np.clip(pixels + cloth * chance.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)


def written(folder: Path, each: int, chance: np.random.Generator) -> Path:
    """A set as `giverny data prepare` leaves it: `each` photographs of a pair to learn from, six to test with."""
    for split in ("train", "test"):
        rows, pictures = [], []
        for garment in SHAPES:
            for colour in PAINTS:
                pair = (garment, colour)
                if split == "train" and pair == HELD:
                    continue
                for number in range(each if split == "train" else 6):
                    named, changed = colour if number != 5 else "", split == "train" and number == 4
                    told = {"garment": garment, "colour": named, "recoloured": changed}
                    rows.append({"file_name": f"images/{len(rows):05}.png", "text": [f"{colour} {garment}"], **told})
                    pictures.append(drawn(garment, colour, chance))
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for row, picture in zip(rows, pictures, strict=True):
                kept = io.BytesIO()
                Image.fromarray(picture).save(kept, "PNG")
                archive.writestr(row["file_name"], kept.getvalue())
            archive.writestr("metadata.jsonl", "\n".join(map(json.dumps, reversed(rows))))  # no order is promised
    pairs = {f"{g}/{c}": each for g in SHAPES for c in PAINTS if (g, c) != HELD}
    (folder / "card.json").write_text(json.dumps({"held_out_pairs": [HELD], "pairs": pairs}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A set, judges that learnt from it for seconds, and the yard: what a model of these clothes is measured by."""
    root = tmp_path_factory.mktemp("shop")
    data, cache = root / "wardrobe", root / "judges"
    data.mkdir()
    written(data, 30, np.random.default_rng(1))
    train, test = open_photographs(data, "train"), open_photographs(data, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "BATCH", 16)
        patch.setattr(clothes_judges, "EPOCHS", (5, 5))
        patch.setattr(clothes_judges, "first_judge", second_judge)  # the quicker build for both, from other beginnings
        patch.setattr(judges, "bfloat16_pays", lambda *_: False)  # a measurement, which may fall out either way
        nets = clothes_judges.open_judges(cache, train)
        pairs = choose_pairs(clothes_judges.card_of(data), train, (), tuple(PAINTS))
        yield SimpleNamespace(
            data=data, cache=cache, train=train, test=test, nets=nets, pairs=pairs, yard=build_yard(train, test, pairs, nets)
        )


def painted(shop, each: int, seed: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """New pictures of every pair, as a perfect painter would make them, and which pair they show."""
    chance, pair = np.random.default_rng(seed), np.repeat(np.arange(len(shop.pairs.names)), each)
    return np.stack([drawn(*shop.pairs.names[number], chance) for number in pair]), pair


# -- arithmetic -------------------------------------------------------------------------------------------------------


def test_shares_count_every_pair_alike_and_know_how_sure_they_are():
    hits = np.array([1, 0, 1, 1, 0, 0, 1, 1], bool)
    groups = np.array([3, 3, 7, 7, 7, 7, 9, 9])
    share, count = likeness.even_share(hits, groups)
    assert share == pytest.approx((1 / 2 + 2 / 4 + 2 / 2) / 3)
    assert count == pytest.approx(9 / (1 / 2 + 1 / 4 + 1 / 2))
    assert likeness.even_share(hits, np.arange(8) % 2)[1] == 8  # groups of one size: as many as there are


def test_the_ratio_of_shares_has_the_interval_that_scipy_gives():
    scipy = pytest.importorskip("scipy.stats.contingency")
    theirs = scipy.relative_risk(81, 120, 150, 190)
    value, interval = likeness.share_ratio((81 / 120, 120), (150 / 190, 190))
    assert value == pytest.approx(theirs.relative_risk)
    assert interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-6)
    assert 0 < likeness.share_ratio((0.0, 50), (0.5, 50))[0] < 0.03


def test_draws_are_as_many_of_a_pair_as_are_wanted_or_as_there_are():
    labels, wanted = np.repeat([0, 1, 2, 5], [6, 2, 9, 3]), np.repeat([0, 1, 2, 4], [3, 4, 9, 2])
    rows = likeness.drawn_like(labels, wanted, seed=1)
    assert np.bincount(labels[rows], minlength=6).tolist() == [3, 2, 9, 0, 0, 0] and len(set(rows.tolist())) == 14
    assert (rows == likeness.drawn_like(labels, wanted, seed=1)).all()
    assert (rows != likeness.drawn_like(labels, wanted, seed=2)).any()
    four = likeness.balanced(labels, 8, 0, [0, 2])
    assert (labels[four] == np.repeat([0, 2], 4)).all() and len(set(four.tolist())) == 8


def test_the_nearest_training_picture_may_be_mirrored_and_is_as_far_as_scipy_says():
    scipy = pytest.importorskip("scipy.spatial.distance")
    train, asked = (RNG.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8) for n in (9, 4))
    asked[2] = train[5][:, ::-1]
    tiny = [sum(some[:, i::2, j::2].astype(float) for i in (0, 1) for j in (0, 1)) / (4 * 255) for some in (train, asked)]
    both = np.concatenate([tiny[0], tiny[0][:, :, ::-1]]).reshape(18, -1)
    far = scipy.cdist(tiny[1].reshape(4, -1), both).min(1)
    found = nearest_training(asked, small(train))
    assert far[2] == 0 and found[2] < 0.05 and found[[0, 1, 3]] == pytest.approx(far[[0, 1, 3]], rel=1e-4)


def test_kin_are_words_that_no_judge_tells_apart_and_enough_photographs_show():
    names = WORDS["colour"]
    a, b, c, rare = (names.index(name) for name in ("red", "orange", "blue", "pink"))
    told = np.repeat([a, b, c, rare, UNKNOWN], [40, 40, 40, 4, 5])
    logits = RNG.normal(0, 1, (len(told), len(names)))
    logits[:, c] = np.where(told == c, 9, -9)  # blue stands out; red and orange are as noise to this judge
    blind = Seen({"colour": logits}, logits)  # so is pink, but few things show it
    same = kin([blind, blind], "colour", told)
    assert same[a, b] and same[b, a] and same.diagonal().all() and same.sum() == len(names) + 2
    keen = Seen({"colour": logits + 9 * (np.arange(len(names)) == told[:, None])}, logits)
    assert kin([blind, keen], "colour", told).sum() == len(names)
    with_kin, alone = (blind.right("colour", told, k)[told == a].mean() for k in (same, None))
    assert with_kin > alone


# -- the set and its pairs --------------------------------------------------------------------------------------------


def test_a_prepared_set_is_read_with_what_its_table_says(shop):
    assert len(shop.train) == 11 * 30 and shop.train.pixels.shape[1:] == (64, 64, 3)
    assert shop.train.recoloured.sum() == 11 and not shop.test.recoloured.any()
    assert (shop.test.words["colour"] == UNKNOWN).sum() == 12
    garments, colours = ([names[n] for n in shop.test.words[kind]] for kind, names in WORDS.items())
    assert set(garments) == set(SHAPES)
    for index in np.flatnonzero(shop.test.words["colour"] != UNKNOWN):  # the cloth is of the colour that is told
        picture = shop.test.pixels[index]
        cloth = np.median(picture[(picture < 200).any(2)], axis=0)
        assert np.abs(cloth - PAINTS[colours[index]]).max() < 10


def test_what_is_no_prepared_set_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"card\.json"):
        clothes_judges.card_of(tmp_path)
    plain = tmp_path / "pictures"
    plain.mkdir()
    Image.new("RGB", (64, 64)).save(plain / "a.png")
    with pytest.raises(InputError, match="giverny data prepare"):
        open_photographs(plain, "train")
    row = {"file_name": "a.png", "text": ["a red dress"], "garment": "dress", "colour": "red", "recoloured": False}
    (plain / "metadata.jsonl").write_text(json.dumps(row), "utf-8")
    assert open_photographs(plain, "train").words["garment"].tolist() == [WORDS["garment"].index("dress")]
    Image.new("RGB", (32, 32)).save(plain / "a.png")
    with pytest.raises(InputError, match="64 x 64"):
        open_photographs(plain, "train")


def test_pairs_are_those_of_the_commonest_garments_and_of_held_out_ones(shop, monkeypatch):
    assert shop.pairs.garments == ("t-shirt", "trousers", "belt")  # as many photographs: in the order of words
    monkeypatch.setattr(clothes_measures, "COMMON", 1)
    card = clothes_judges.card_of(shop.data)
    few = choose_pairs(card, shop.train, (), ("red", "yellow"))
    assert few.names == [("t-shirt", "red"), ("t-shirt", "yellow"), ("belt", "red"), ("belt", "yellow")]
    assert few.unseen.tolist() == [False, False, False, True] and few.examples.tolist() == [30, 30, 30, 0]
    assert choose_pairs(card, shop.train, (), ()).colours == clothes_measures.BASIC
    number = few.number(shop.test)
    assert np.bincount(number[number != UNKNOWN]).tolist() == [5] * 4
    assert few.told("colour", np.array([1, 2])).tolist() == [WORDS["colour"].index(c) for c in ("yellow", "red")]
    with pytest.raises(InputError, match="did you mean 'belt'"):
        choose_pairs(card, shop.train, ("belts",), ())


def test_prompts_have_the_article_that_is_spoken():
    pairs = (("t-shirt", "orange"), ("dress", "red"), ("jeans", "orange"), ("shoes", "black"))
    assert [wardrobe.caption(*pair) for pair in pairs] == ["an orange t-shirt", "a red dress", "orange jeans", "black shoes"]


# -- judges -----------------------------------------------------------------------------------------------------------


def test_judges_are_shown_shifted_mirrored_and_recoloured_pictures_and_told_which_kept_their_colours(monkeypatch):
    monkeypatch.setattr(judges, "BATCH", 8)
    monkeypatch.setattr(judges, "bfloat16_pays", lambda *_: False)
    pixels = RNG.integers(0, 256, (60, 8, 6, 3), dtype=np.uint8)
    shown, told = [], []

    class Eye(torch.nn.Module):
        def forward(self, x):
            shown.append(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
            return x.mean((2, 3))

    def loss(logits, rows, plain):
        told.append((rows.numpy(), plain.numpy()))
        return logits.square().mean()

    net = judges.Judge(torch.nn.Sequential(Eye()), 3, 4)
    judges.train_judge(net, pixels, loss, 2, shift=2, ground=255, mirror=True, swapped=0.5)
    around = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255)
    places, turned, kept = set(), 0, 0
    for pictures, (rows, plain) in zip(shown, told, strict=True):
        for picture, row, own in zip(pictures, rows, plain, strict=True):
            fits = [
                (down, right, way, order)
                for down in range(5)
                for right in range(5)
                for way in (1, -1)
                for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
                if (around[row, down : down + 8, right : right + 6][:, ::way, order] == picture).all()
            ]
            assert len(fits) == 1 and (fits[0][3] == (0, 1, 2)) == own
            places.add(fits[0][:2])
            turned, kept = turned + (fits[0][2] < 0), kept + own
    count = sum(len(rows) for rows, _ in told)
    assert len(places) > 20 and 0.35 < turned / count < 0.65 and 0.4 < kept / count < 0.75  # 7 in 12 keep their colours


def test_both_builds_say_garment_and_colour_and_give_features():
    nets = judges.untrained(first_judge, second_judge)
    for net, width in zip(nets, (128, 192), strict=True):
        seen = clothes_judges.look(net.eval(), RNG.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
        assert [seen.logits[kind].shape for kind in WORDS] == [(3, len(words)) for words in WORDS.values()]
        assert seen.features.shape == (3, width) and seen.features.dtype == np.float64
    assert [type(layer).__name__ for layer in nets[0].body] != [type(layer).__name__ for layer in nets[1].body]


def test_judges_learn_words_from_real_pictures_alone_and_are_kept(shop, tmp_path, monkeypatch):
    for kind, (first, second) in shop.yard.accuracy.items():
        assert max(first, second) > 0.9 and min(first, second) > 0.6, kind
    kept = clothes_judges.open_judges(shop.cache, shop.train)  # no second file: nothing was learnt again
    assert len(list(shop.cache.iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(kept[0].parameters(), shop.nets[0].parameters(), strict=True))
    noise = shop.train.pixels.copy()
    noise[shop.train.recoloured] = 0
    clothes_judges.open_judges(shop.cache, replace(shop.train, pixels=noise))
    assert len(list(shop.cache.iterdir())) == 1  # recoloured pictures are not even in the key
    monkeypatch.setattr(clothes_judges, "EPOCHS", (1, 1))
    noise[~shop.train.recoloured] = 0
    clothes_judges.open_judges(tmp_path, replace(shop.train, pixels=noise))
    assert {path.name for path in tmp_path.iterdir()}.isdisjoint(path.name for path in shop.cache.iterdir())


def test_rare_words_weigh_more_and_all_photographs_together_as_much():
    numbers = np.array([0] * 90 + [1] * 10 + [UNKNOWN] * 7)
    weight = clothes_judges.weights(numbers, 3).numpy()
    assert weight[1] / weight[0] == pytest.approx(3) and weight[numbers[:100]].mean() == pytest.approx(1)


# -- scores -----------------------------------------------------------------------------------------------------------


def test_a_perfect_painter_holds_and_its_table_counts_what_judges_see(shop):
    pixels, pair = painted(shop, 8)
    scores = measure(shop.yard, pixels, pair, {"seeds": [0, 95]})
    held = rule(scores)
    assert all(held.values()), held
    looked = clothes_judges.look(shop.nets[0], pixels)
    found = [WORDS["colour"][n] for n in looked.logits["colour"].argmax(1)]
    wanted = [shop.pairs.names[number][1] for number in pair]
    share = np.mean([a == b for a, b in zip(found, wanted, strict=True)])
    assert scores["colour found, first judge"].value == pytest.approx(share)
    table = scores["both found, first judge"].conditions["found_by_pair"]
    assert np.mean([cell[1] for row in table.values() for cell in row.values()]) == pytest.approx(share, abs=1e-4)
    unseen = scores["colour found, unseen pairs, first judge"]
    assert unseen.value == pytest.approx(table["belt"]["yellow"][1], abs=1e-4) and unseen.conditions["photographs"] == 5
    known = scores["garment found, pairs of 30 examples, second judge"].conditions
    assert known["pairs_taken"] == 11 and known["photographs"] == 55 and scores["kid"].conditions["seeds"] == [0, 95]
    json.dumps([score.model_dump(mode="json") for score in scores.values()], allow_nan=False)
    assert set(wardrobe.COLUMNS.values()) <= set(scores)
    assert set(wardrobe.SHOWN) - {"with_kin", "real_with_kin"} <= {k for score in scores.values() for k in score.conditions}


def test_each_fault_fails_its_own_rule(shop):
    pixels, pair = painted(shop, 8)

    def failed(faulty: np.ndarray) -> str:
        return "; ".join(what for what, held in rule(measure(shop.yard, faulty, pair, {})).items() if not held)

    swapped = failed(pixels[..., [2, 1, 0]])  # red for blue
    assert "colours found 95" in swapped and "colours found 80 % as often" in swapped and "garments found" not in swapped
    repeated = failed(np.repeat(pixels[::8], 8, axis=0))
    assert "spread of pixels" in repeated and "spread of features" in repeated and "found" not in repeated
    by_heart = pixels.copy()
    learnt = shop.pairs.number(shop.train)
    for number in np.unique(learnt[learnt != UNKNOWN]):
        by_heart[pair == number] = shop.train.pixels[np.flatnonzero(learnt == number)[:8], :, ::-1]
    assert "no nearer to training pictures" in failed(by_heart)
    negative = failed(255 - pixels)
    assert "KID" in negative and "garments found 95" in negative


def test_halves_of_the_photographs_are_even_and_have_none_in_common(shop):
    one, other = shop.yard.half(False), shop.yard.half(True)
    assert len(one.pair) + len(other.pair) == len(shop.yard.pair) == 60
    for a, b in zip(np.bincount(one.pair), np.bincount(other.pair), strict=True):
        assert abs(a - b) <= 1
    both = np.sort(np.concatenate([one.nearest, other.nearest]))
    assert (both == np.sort(shop.yard.nearest)).all()
    again = clothes_judges.look(shop.nets[0], other.pixels)
    assert np.allclose(again.features, other.seen[0].features, atol=1e-4)


def test_pairs_without_four_photographs_cannot_be_measured(shop):
    few = replace(shop.yard, pair=shop.yard.pair[:3], pixels=shop.yard.pixels[:3])
    with pytest.raises(InputError, match="4 test photographs"):
        measure(replace(few, seen=[Seen({k: v[:3] for k, v in s.logits.items()}, s.features[:3]) for s in shop.yard.seen],
                        nearest=shop.yard.nearest[:3]), *painted(shop, 4), {})  # fmt: skip


# -- the script -------------------------------------------------------------------------------------------------------


def test_painting_gives_a_picture_for_each_prompt_by_its_own_seed():
    first, conditions = scoring.paint("fashion-mnist", ["a bag", "a dress"], 5, ["steps=2"], 28)
    assert first.shape == (2, 28, 28, 3) and conditions["seeds"] == [5, 6] and conditions["knobs"]["steps"] == 2
    again, _ = scoring.paint("fashion-mnist", ["a dress"], 6, ["steps=2"], 28)
    assert np.abs(again[0].astype(int) - first[1]).max() <= 1
    with pytest.raises(InputError, match="pictures of 64 x 64"):
        scoring.paint("fashion-mnist", ["a bag"], 0, ["steps=1"], 64)


def test_the_sheet_has_a_row_for_each_garment_and_frames_what_was_never_shown(shop):
    pictures = np.full((12, 64, 64, 3), 255, np.uint8)
    sheet = wardrobe.montage(shop.pairs, pictures)
    red = (sheet == wardrobe.RED).all(2)
    assert red.sum() == (64 * 64 - 60 * 60) * 4 and (pictures == 255).all()
    assert red[: len(red) * 2 // 3].sum() == 0  # belts come last


def test_the_script_judges_photographs_by_photographs(shop, monkeypatch, capsys, tmp_path):
    common = ["wardrobe.py", "--data", str(shop.data), "--cache", str(shop.cache)]
    monkeypatch.setattr(sys, "argv", [*common, "--colours", ",".join(PAINTS), "--real", "--json", str(tmp_path / "a.json")])
    monkeypatch.setattr(clothes_measures, "FOUR", 2)  # half of five photographs
    wardrobe.main()
    said = capsys.readouterr().out
    row = json.loads((tmp_path / "a.json").read_text())["rows"][0]
    assert row["setting"] == [] and row["holds"]["spread of pixels 0.7 of the real one"] and len(row["scores"]) > 20
    assert "holds  spread of pixels" in said and "12 pairs (1 never shown, 11 with 30); 60 test photographs" in said
    assert [line[:7] for line in said.splitlines()].count("belt   ") == 1
    for wrong in ("--count-per-pair 1", "--real --card", "--real --montage a.png", "--sweep steps=1 --card"):
        monkeypatch.setattr(sys, "argv", [*common, *wrong.split()])
        with pytest.raises(InputError):
            wardrobe.main()
