"""The CLIP beside a model: kept in its folder, opened without painting, and how its answers are counted."""

import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

import clip as scores
from giverny.assembly import family, open_clip, open_painter, train
from giverny.base.contracts import Picture, Request
from giverny.base.errors import InputError
from giverny.base.images import fit, to_tensor
from giverny.checkpoints.native import fill, read_card, read_weights, write_card, write_model
from giverny.data.clothes.words import COLOURS, GARMENTS, captions
from giverny.painters.diffusion.recipe import ModelRecipe
from giverny.pipelines.text2image import collect
from giverny.text.clip import Clip, ClipImageRecipe, ClipRecipe, ClipTextRecipe
from giverny.text.space import SharedSpace
from giverny.text.tokenizer import Tokenizer
from tiny_wardrobe import write_wardrobe

with_runs = pytest.mark.xdist_group("contract")  # one process trains the tiny models
RNG = np.random.default_rng()  # drawn anew: what is counted must be counted right for any numbers
WORDS = ["a red circle", "a blue square", "", "a ring and many more words than could ever be read by so short a tower as this"]


@pytest.fixture
def run(tiny_runs):
    return tiny_runs["diffusion"]


def without_tower(run, place):
    """The same model as folders were before they kept the picture tower."""
    card = read_card(run / "model")
    parts = open_painter(run, precision="float32").parts
    extras = {"tokenizer.json": (run / "model" / "tokenizer.json").read_text("utf-8")}
    recipe = {key: value for key, value in card.recipe.items() if key != "image"}
    return write_model(place, card.model_copy(update={"recipe": recipe}), parts.networks(), extras)


# -- the model folder -----------------------------------------------------------------------------------------------------


@with_runs
def test_a_model_keeps_the_clip_that_was_trained_beside_it(run):
    space = open_clip(run)
    recipe = ModelRecipe(**read_card(run / "model").recipe)
    clip = ClipRecipe(text=recipe.text, image=recipe.image, shared_width=recipe.pooled_width).build()
    trained = load_file(run / "stages" / "text" / "weights.safetensors")
    fill(clip, {k.removeprefix("clip/"): v for k, v in trained.items()}, "CLIP").eval()
    tokenizer = Tokenizer.read(run / "model" / "tokenizer.json", recipe.text.length)
    pixels = RNG.integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)  # more than are looked at together
    with torch.no_grad():
        words, seen = clip.text_features(tokenizer(WORDS).ids, tokenizer.end), clip.image_features(to_tensor(pixels))
    assert torch.allclose(space.texts(WORDS), words, atol=0.01)  # as far as float16 has rounded the weights
    assert torch.allclose(space.pictures(pixels), seen, atol=0.01)
    assert torch.allclose(space.texts(WORDS).norm(dim=1), torch.ones(4), atol=1e-5)
    assert space.scale == pytest.approx(float(clip.logit_scale.detach().exp()), rel=2e-3)
    assert space.texts([]).shape == space.pictures([]).shape == (0, recipe.pooled_width)


@with_runs
def test_with_or_without_the_tower_a_model_paints_the_same(run, tmp_path):
    card = without_tower(run, tmp_path / "old")
    assert "image" not in card.parameters and read_card(run / "model").parameters["image"] > 0
    ours, theirs = open_painter(run), open_painter(tmp_path / "old")
    assert "image" not in ours.parts.networks(), "nobody paints with it"
    asked = [Request(prompt=p, seed=s, id=f"{p}{s}") for p in ("a red circle", "") for s in (1, 2)]
    for a, b in zip(collect(ours.paint(asked), asked), collect(theirs.paint(asked), asked), strict=True):
        assert np.array_equal(a.pixels, b.pixels)
    with pytest.raises(InputError, match="words' side alone"):
        open_clip(tmp_path / "old")
    write_card(tmp_path / "old", card.model_copy(update={"family": "other"}))
    with pytest.raises(InputError, match=r"diffusion model, which has CLIP beside it; given .* 'other'"):
        open_clip(tmp_path / "old")


@with_runs
def test_a_finished_run_gets_its_tower_when_it_is_resumed(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    without_tower(run, tmp_path / "run" / "model")
    told = [(t.stage, t.happened) for t in train(family("diffusion").tiny(), tmp_path / "run", resume=True)]
    assert {happened for _, happened in told} == {"reused"}
    whole, again = (read_weights(r / "model", read_card(r / "model")) for r in (run, tmp_path / "run"))
    assert whole.keys() == again.keys() >= {"image"}
    assert all(torch.equal(value, again[name][key]) for name, part in whole.items() for key, value in part.items())


# -- pictures of all kinds ------------------------------------------------------------------------------------------------


def small_space(channels=3, mean=(0.5,), deviation=(0.5,)):
    torch.manual_seed(3)
    tokenizer = Tokenizer.train(["a red shirt", "two shoes"], 600, 8)
    text = ClipTextRecipe(width=8, layers=1, heads=2, inner=16, length=8, vocabulary=tokenizer.vocabulary)
    image = ClipImageRecipe(width=8, layers=1, heads=2, inner=16, size=12, patch=4, channels=channels)
    return SharedSpace(Clip(ClipRecipe(text=text, image=image, shared_width=6)), tokenizer, mean=mean, deviation=deviation)


def test_pictures_of_any_size_are_brought_to_the_towers():
    space = small_space()
    big, flat = RNG.integers(0, 256, (40, 25, 3), dtype=np.uint8), RNG.integers(0, 256, (12, 12, 1), dtype=np.uint8)
    found = space.pictures([Picture(big), big, flat])
    with torch.no_grad():
        first = space.clip.image_features(to_tensor(fit(big, (12, 12), "crop"))[None])[0]
        last = space.clip.image_features(to_tensor(flat.repeat(3, axis=2))[None])[0]
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[[0, 2]], torch.stack([first, last]), atol=1e-5)
    grey = small_space(channels=1)
    assert torch.allclose(grey.pictures([flat]), grey.pictures([flat.repeat(3, axis=2)]), atol=1e-6)
    for wrong, words in (
        (big[..., 0], r"uint8 pictures .* 12 x 12; given uint8 \(40, 25\)"),
        (big / 255, "float64"),
        (big.transpose(2, 0, 1), r"\(3, 40, 25\)"),
        (big[:0], r"\(0, 25, 3\)"),
    ):
        with pytest.raises(InputError, match=words):
            space.pictures([wrong])


def test_the_temperature_has_a_limit():
    space = small_space()
    assert space.scale == pytest.approx(1 / 0.07)
    space.clip.logit_scale.fill_(9.0)
    assert space.scale == 100


@pytest.mark.xdist_group("oracles")
def test_a_published_folder_is_asked_as_transformers_asks_it(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    tokenizer = Tokenizer.train(["a red shirt", "two shoes"], 600, 9)
    sizes = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=48)
    end = {"eos_token_id": tokenizer.end, "bos_token_id": tokenizer.start, "pad_token_id": tokenizer.end}
    text = dict(sizes, vocab_size=tokenizer.vocabulary, max_position_embeddings=9, **end)
    theirs = CLIPModel(CLIPConfig(text_config=text, vision_config=dict(sizes, image_size=24, patch_size=8),
                                  projection_dim=20)).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    inner = json.loads(tokenizer.to_json())
    inner["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    inner["padding"] = {"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(inner))  # what such a file may say of lengths is not ours
    with pytest.raises(InputError, match=r"image_mean and image_std .*preprocessor_config\.json"):
        open_clip(tmp_path)
    mean, deviation = [0.48, 0.45, 0.4], [0.26, 0.27, 0.28]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": deviation}))
    space = open_clip(tmp_path, "cpu")
    pixels, words = RNG.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8), ["a red shirt", "shoes", "two red shoes"]
    ids = tokenizer(words).ids
    values = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[
        :, None, None
    ]
    with torch.no_grad():
        told = theirs(input_ids=ids, pixel_values=values, attention_mask=tokenizer(words).mask.long())
    assert torch.allclose(space.texts(words), told.text_embeds, atol=1e-5)
    assert torch.allclose(space.pictures(pixels), told.image_embeds, atol=1e-5)
    assert torch.allclose(space.scale * space.pictures(pixels) @ space.texts(words).T, told.logits_per_image, atol=1e-4)


# -- counting -------------------------------------------------------------------------------------------------------------


def test_places_and_chance_by_hand():
    similar = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.7], [0.4, 0.4, 0.4]])
    right = torch.tensor([[False, True, False], [True, True, False], [True, False, False]])
    assert scores.ranks(similar, right).tolist() == [3, 1, 3]  # among equals the right one counts last
    assert scores.chance(right[:1], 1) == pytest.approx(1 / 3)
    assert scores.chance(right, 2) == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert scores.chance(right, 3) == scores.chance(right, 7) == 1


def test_places_and_chance_by_trying_all():
    similar = torch.from_numpy(RNG.integers(0, 6, (40, 7)) / 6).float()  # many are equally near
    right = torch.from_numpy(RNG.random((40, 7)) < 0.3)
    right[:, 0] |= ~right.any(1)
    for found, near, good in zip(scores.ranks(similar, right), similar.tolist(), right.tolist(), strict=True):
        order = sorted(range(7), key=lambda a: (-near[a], good[a]))
        assert found == 1 + min(order.index(a) for a in range(7) if good[a])
    for k in (1, 2, 5):
        draws = list(itertools.combinations(range(7), k))
        blind = np.mean([np.mean([any(good[a] for a in draw) for draw in draws]) for good in right.tolist()])
        assert scores.chance(right, k) == pytest.approx(blind)
    one, five = scores.shares("x", similar, right, (1, 5), note=3)
    assert one.value == np.mean(scores.ranks(similar, right) == 1) <= five.value and one.interval[0] <= one.value
    assert five.conditions | {"chance": 0} == {"questions": 40, "answers": 7, "among": 5, "chance": 0, "note": 3}


def test_a_shade_that_is_the_colour_is_no_other_combination():
    row = {"garment": "hat", "colour": "red", "shade": "red", "wearer": "Men"}
    assert scores.combination(row, scores.LEVELS["all words"]) == ("hat", "red", "", "Men")
    assert scores.combination(row | {"shade": "maroon"}, scores.LEVELS["all words"]) == ("hat", "red", "maroon", "Men")
    assert captions("hat", "red", "red", "Men") == captions("hat", "red", "", "Men") != captions("hat", "red", "maroon", "Men")


def test_colours_are_asked_for_in_words_that_name_them():
    prompts = dict(zip(COLOURS, scores.colour_prompts(), strict=True))
    assert "a red dress" in prompts["red"] and "a photo of red trousers" in prompts["red"]
    assert all(any(word in text for word in COLOURS[colour]) for colour, texts in prompts.items() for text in texts)
    assert len(prompts["red"]) >= 3 * len(GARMENTS)


def test_the_nearest_mean_histogram():
    learnt, asked = RNG.random((30, 5)), RNG.random((8, 5))
    of = np.array(["red", "blue", "green"])[np.arange(30) % 3]
    near = scores.by_histogram(learnt, of, asked, ("red", "grey", "blue", "green"))
    assert (near[:, 1] == -math.inf).all(), "none of that name was seen"
    for i, c, name in ((0, 0, "red"), (3, 2, "blue"), (7, 3, "green")):
        mean = sum(learnt[j] for j in range(30) if of[j] == name) / 10
        assert float(near[i, c]) == pytest.approx(-sum((a - b) ** 2 for a, b in zip(asked[i], mean, strict=True)), rel=1e-5)


# -- the benchmark --------------------------------------------------------------------------------------------------------


@with_runs
def test_the_benchmark_measures_a_model_and_fills_its_card(run, tmp_path, capsys):
    data = write_wardrobe(tmp_path, each=3)
    shutil.copytree(run / "model", tmp_path / "model")
    before = read_card(tmp_path / "model")
    scores.main([str(tmp_path / "model"), "--data", str(data), "--json", str(tmp_path / "clip.json"), "--card"])
    told = json.loads((tmp_path / "clip.json").read_text("utf-8"))
    card, by_name = read_card(tmp_path / "model"), {s["name"]: s for s in told["scores"]}
    assert [s.model_dump(mode="json") for s in card.scores] == told["scores"] and card.fingerprint == before.fingerprint
    assert len(by_name) == len(told["scores"]) == 30
    space, rows = open_clip(run), scores.read_rows(scores.open_named(data, "test"))
    source = scores.open_named(data, "test")
    pictures = space.pictures([source.read(i).pixels for i in range(36)])

    def vector(texts):
        return F.normalize(sum(space.texts([t])[0] for t in texts), dim=0)

    hits, kinds = 0, {garment: vector(captions(garment)) for garment in GARMENTS}
    for picture, row in zip(pictures, rows, strict=True):
        near = {garment: float(picture @ kind) for garment, kind in kinds.items()}
        hits += max(near, key=near.get) == row["garment"]
    assert by_name["clip: garment named, 1"]["value"] == pytest.approx(hits / 36)
    assert by_name["clip: garment named, 1"]["conditions"]["chance"] == pytest.approx(1 / 35)

    groups = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(row["text"]), set()).add(i)
    assert len(groups) == 3 * (4 * 2), "per garment and ink: for women, and at home without a wearer (and in maroon)"
    hits = 0
    for texts, members in groups.items():
        near = pictures @ vector(texts)
        hits += bool(members & set(near.topk(5).indices.tolist()))
    asked = by_name["clip: picture of all words, 5"]
    assert asked["value"] == pytest.approx(hits / 24) and asked["conditions"]["answers"] == 36
    assert by_name["clip: garment and colour of a picture, 1"]["conditions"]["answers"] == 9
    assert by_name["clip: colour named (home), 1"]["conditions"]["questions"] == 9, "where a colour is known"
    assert by_name["histogram: colour named, 1"]["value"] == 1, "three flat inks are not to be mistaken"
    assert {line["name"]: line["pictures"] for line in told["classes"]["colour"]} == {"red": 9, "blue": 9, "green": 9}
    assert "histogram: colour named, 1" in capsys.readouterr().out


def test_a_set_without_attributes_is_refused(tmp_path):
    from giverny.data.toy import ToyShapes

    with pytest.raises(InputError, match="prepared set of clothes"):
        scores.read_rows(ToyShapes(count=4, size=8))
