"""Two sets that do not correspond: their batches, and what is held out of them."""

import collections

import numpy as np
import pytest
import torch
from PIL import Image

from giverny.base.errors import InputError
from giverny.base.images import to_pixels
from giverny.data.crops import held_out, photographs_of, thinned
from giverny.data.folders import open_source
from giverny.data.loader import Kept
from giverny.data.toy import ToyShapes
from giverny.data.unpaired import Unpaired, UnpairedLoader
from giverny.painters.diffusion import family as diffusion
from giverny.painters.translator import family as translator
from giverny.training.parallel import World
from test_pairs import tiny as tiny_double


@pytest.fixture
def both():
    return Unpaired(ToyShapes(count=7, size=20, seed=1), ToyShapes(count=12, size=20, seed=2))


def which(pixels, source):
    """The index of each picture in its source, where nothing was changed about it."""
    known = [source.read(i).pixels for i in range(len(source))]
    found = []
    for picture in to_pixels(pixels):
        (index,) = (i for i, k in enumerate(known) if np.array_equal(k, picture))
        found.append(index)
    return found


def test_given_pictures_come_in_epochs_and_wanted_ones_are_drawn(both):
    loader = UnpairedLoader(both, size=(20, 20), batch=3, seed=4, workers=0)
    steps = [loader.batch_at(step) for step in range(200)]
    given = [i for batch in steps[:4] for i in which(batch["given"], both.given)]
    assert sorted(given) == list(range(12))  # one epoch
    drawn = collections.Counter(i for batch in steps for i in which(batch["wanted"], both.wanted))
    assert set(drawn) == set(range(7)) and min(drawn.values()) > 600 / 7 * 0.6
    first = [i for batch in steps[:7] for i in which(batch["wanted"], both.wanted)]
    assert sorted(first) != sorted([*range(7)] * 3)  # with replacement, not in epochs
    assert [int(b["epochs"].max()) for b in steps[:9]] == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_a_batch_hangs_on_its_step_alone_and_shards_share_it(both):
    make = lambda **more: UnpairedLoader(both, size=(16, 16), batch=4, seed=1, flip=True, larger=(19, 19), **more)  # noqa: E731
    whole, parts = make().batch_at(9), [make(shard=(rank, 2)).batch_at(9) for rank in range(2)]
    stream = make(workers=2).stream(7)
    streamed = [next(stream) for _ in range(3)][2]
    stream.close()
    for key, value in whole.items():
        assert torch.equal(value, torch.cat([part[key] for part in parts]))
        assert torch.equal(value, streamed[key])


def test_parts_are_cut_anywhere_within_the_larger_picture_and_kept_ones_are_the_same(both):
    plain = UnpairedLoader(both, size=(20, 20), batch=12, seed=1, workers=0)
    kept = Kept(both.given, (20, 20), 3), Kept(both.wanted, (20, 20), 3)
    loader = UnpairedLoader(both, size=(16, 16), batch=12, seed=1, larger=(20, 20), workers=0)
    again = UnpairedLoader(both, size=(16, 16), batch=12, seed=1, larger=(20, 20), workers=0, kept=kept)
    places = set()
    for step in range(30):
        large, small = plain.batch_at(step)["given"], loader.batch_at(step)["given"]
        assert torch.equal(small, again.batch_at(step)["given"]) and torch.equal(small, again.batch_at(step)["given"])
        for one, other in zip(large, small, strict=True):
            fits = [(y, x) for y in range(5) for x in range(5) if torch.equal(one[:, y : y + 16, x : x + 16], other)]
            assert fits
            places |= set(fits) if len(fits) == 1 else set()
    assert len(places) > 15


def test_mirroring_is_decided_for_each_draw(both):
    plain, mirrored = (UnpairedLoader(both, size=(20, 20), batch=10, seed=1, flip=f, workers=0) for f in (False, True))
    turned = []
    for step in range(20):
        for one, other in zip(plain.batch_at(step)["wanted"], mirrored.batch_at(step)["wanted"], strict=True):
            assert torch.equal(one, other) or torch.equal(one.flip(-1), other)
            turned.append(not torch.equal(one, other))
    assert 0.3 < np.mean(turned) < 0.7


# -- held out -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def crops(tmp_path):
    """21 files of 8 photographs, 1 to 4 crops of each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo, many in enumerate((1, 2, 3, 4, 1, 3, 4, 3)):
        for crop in range(many):
            shade = np.full((8, 8, 3), 10 * photo + crop, np.uint8)
            Image.fromarray(shade).save(folder / f"photo_{photo:03d}_{crop}.png")
    return open_source(folder)


def test_crops_of_one_photograph_lie_on_one_side(crops):
    group = r"photo_(\d+)_"
    number = lambda rows: {crops.entries[i].name.split("_")[1] for i in rows}  # noqa: E731
    splits = set()
    for seed in range(20):
        held, kept = held_out(crops, 6, seed, group)
        assert sorted([*held, *kept]) == list(range(21)) and 1 <= len(held) <= 21 // 5
        assert not number(held) & number(kept)
        splits.add(tuple(held))
    assert len(splits) > 3
    assert np.array_equal(held_out(crops, 6, 1, group)[0], held_out(crops, 6, 1, group)[0])


def test_without_a_pattern_each_picture_stands_for_itself(crops):
    held, kept = held_out(crops, 3, 0, "")
    assert len(held) == 3 and len(kept) == 18
    assert len(held_out(ToyShapes(count=10, size=8), 100, 0, "")[0]) == 2  # at most a fifth


@pytest.mark.parametrize(
    ("group", "said"), [("(", "pattern"), (r"(photo_\d+_\d+)", "sets all apart"), ("photo", "in one group")]
)
def test_patterns_that_part_nothing_are_refused(crops, group, said):
    with pytest.raises(InputError, match=said):
        held_out(crops, 3, 0, group)


def test_an_empty_domain_is_named(both):
    class Empty(ToyShapes):
        def __len__(self):
            return 0

    with pytest.raises(InputError, match="toy-shapes, which is empty"):
        Unpaired(both.wanted, Empty(count=3))


def test_both_sets_are_one_source(both):
    assert len(both) == 19 and len(both.head(5)) == 10
    assert np.array_equal(both.read(3).pixels, both.wanted.read(3).pixels)
    assert np.array_equal(both.read(10).pixels, both.given.read(3).pixels)
    assert both.captions_of(10) == both.given.captions_of(3)
    assert both.fingerprint != Unpaired(both.given, both.wanted).fingerprint


def test_a_share_is_of_whole_photographs_and_the_larger_holds_the_smaller(tmp_path):
    for photograph in range(12):
        for crop in range(1 + photograph % 3):
            pixels = np.full((8, 8, 3), 20 * photograph, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"photo_{photograph:03d}_{crop}.png")
    source = open_source(tmp_path)
    names = photographs_of(source)
    for seed in range(5):
        _, kept = held_out(source, 4, seed)
        parts = [thinned(source, kept, share, seed) for share in (0.01, 0.2, 0.5, 0.9, 1.0)]
        assert np.array_equal(parts[-1], kept)
        for share, part in zip((0.01, 0.2, 0.5, 0.9), parts, strict=False):
            assert list(part) == sorted(part) and round(share * len(kept)) <= len(part) <= max(1, round(share * len(kept))) + 2
            assert not {names[i] for i in part} & {names[i] for i in set(kept) - set(part)}
        assert all(set(less) < set(more) for less, more in zip(parts[:-2], parts[1:], strict=False))
    assert not np.array_equal(thinned(source, kept, 0.5, 1), thinned(source, kept, 0.5, 2))
    shapes = ToyShapes(count=40, size=8)
    assert len(thinned(shapes, np.arange(40), 0.25, 0)) == 10


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_trainings_from_two_sets_take_a_share_of_both_and_hold_out_the_same(share, tmp_path):
    def workshop_of(module, recipe, source):
        data = recipe.data.model_copy(update={"share": share})
        return module.workshop(recipe.model_copy(update={"data": data}), source, tmp_path, World(), torch.device("cpu"))

    both = Unpaired(ToyShapes(count=80, size=16), ToyShapes(count=100, size=16, seed=1))
    made = workshop_of(translator, translator.tiny(), both)
    assert (len(made.wanted), len(made.given)) == (72 * share, 92 * share)
    assert (len(made.held_wanted), len(made.held_given)) == (8, 8)
    assert not set(made.held_given) & set(made.given) and not set(made.held_wanted) & set(made.wanted)
    untold = translator.workshop(translator.tiny(), both, tmp_path, World(), made.device)
    assert (next(made.jobs()).identity == next(untold.jobs()).identity) == (share == 1)
    paintings = ToyShapes(count=48, size=16)
    made = workshop_of(diffusion, tiny_double(), paintings)
    assert (len(made.kept), len(made.photographs.kept)) == (40 * share, 184 * share)
    assert (len(made.held), len(made.photographs.held)) == (8, 8)


def test_parts_are_cut_out_anywhere(both):
    loader = UnpairedLoader(both, size=(8, 8), batch=12, seed=1, larger=(20, 14), workers=0)
    whole = UnpairedLoader(both, size=(20, 14), batch=12, seed=1, workers=0)
    places = set()
    for step in range(30):
        parts, pictures = loader.batch_at(step)["given"], whole.batch_at(step)["given"]
        for part, picture in zip(parts, pictures, strict=True):
            found = [(x, y) for x in range(13) for y in range(7) if torch.equal(picture[:, y : y + 8, x : x + 8], part)]
            assert found
            places |= set(found[:1])
    assert len({x for x, _ in places}) == 13 and len({y for _, y in places}) == 7
