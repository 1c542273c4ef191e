"""What prepares photographs of clothes: colour space, cuts, colours, recolouring, words."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from scipy import ndimage

from giverny.base.errors import InputError
from giverny.base.images import read_picture
from giverny.base.lab import from_lab, to_lab
from giverny.data.clothes.colours import ColourModel, colour_counts, fit_colours
from giverny.data.clothes.composites import Composites, square, unsquare
from giverny.data.clothes.cutouts import cut, filled, flooded, largest, on_white
from giverny.data.clothes.garments import garment_cut
from giverny.data.clothes.recolour import cloth_colour, recolour
from giverny.data.clothes.words import BY_HOME, BY_SHOP, COLOURS, GARMENTS, SHADES, caption, captions, colour_of_shade

SEED = int(np.random.default_rng().integers(2**31))  # drawn anew, and said where a test fails
CHANCE = np.random.default_rng(SEED)


# -- Lab --------------------------------------------------------------------------------------------------------------


def test_lab_is_what_little_cms_says():
    """ImageCms works in D50 with 8 bits: hue, order and size agree within its rounding and the change of white."""
    pixels = CHANCE.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    way = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    theirs = np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), way)).astype(np.float32)
    theirs = np.stack([theirs[..., 0] / 2.55, (theirs[..., 1] + 128) % 256 - 128, (theirs[..., 2] + 128) % 256 - 128], -1)
    difference = np.abs(to_lab(pixels) - theirs)
    assert difference[..., 0].max() < 3 and np.median(difference) < 2.5, SEED


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    assert np.allclose(to_lab(np.array(rgb, np.uint8)), lab, atol=0.05)


def test_lab_and_back_changes_nothing():
    pixels = CHANCE.integers(0, 256, (500, 3), dtype=np.uint8)
    assert np.abs(from_lab(to_lab(pixels)).astype(int) - pixels).max() <= 1, SEED


# -- cuts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.3, 0.5, 0.7])
def test_pieces_are_scipys(density):
    mask = CHANCE.random((30, 41)) < density
    names, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum(mask, names, range(1, count + 1))
    wanted = np.isin(names, 1 + np.nonzero(sizes >= 0.35 * sizes.max())[0])
    assert np.array_equal(largest(torch.from_numpy(mask)).numpy(), wanted), SEED
    start = np.zeros_like(mask)
    start[0] = mask[0]
    reached = flooded(torch.from_numpy(mask), torch.from_numpy(start)).numpy()
    sides, _ = ndimage.label(mask)
    assert np.array_equal(reached, np.isin(sides, np.unique(sides[0][mask[0]]))), SEED


def test_small_holes_are_filled_and_wide_ones_are_not():
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[5:35, 5:35] = True
    mask[8:10, 8:10] = False
    mask[15:30, 15:30] = False
    done = filled(mask)
    assert bool(done[8:10, 8:10].all()) and not bool(done[17:28, 17:28].any())


def photograph(colour=(200, 30, 40), ground=(180, 170, 160), slope=25, size=(96, 72)):
    """A disc on a ground whose light falls off to one side; its true cut beside it."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    lit = np.clip(np.array(ground) + slope * (x / width - 0.5)[..., None] + CHANCE.normal(0, 1.5, (*size, 3)), 0, 255)
    disc = ((y - height / 2) / 30) ** 2 + ((x - width / 2) / 22) ** 2 < 1
    lit[disc] = np.clip(np.array(colour) + CHANCE.normal(0, 4, (disc.sum(), 3)), 0, 255)
    return lit.astype(np.uint8), disc


@pytest.mark.parametrize("colour", [(200, 30, 40), (20, 20, 24), (240, 240, 240), (60, 90, 180)])
def test_a_thing_on_a_plain_ground_is_cut_out(colour):
    pixels, true = photograph(colour)
    found = cut(pixels)
    assert found is not None
    assert (found & true).sum() / (found | true).sum() > 0.88, SEED


def test_no_cut_where_the_ground_is_not_plain_or_nothing_lies_on_it():
    assert cut(CHANCE.integers(0, 256, (96, 72, 3), dtype=np.uint8)) is None
    assert cut(np.full((96, 72, 3), 128, np.uint8)) is None
    assert cut(np.zeros((4, 4, 3), np.uint8)) is None


def test_studio_white_is_ground_only_where_it_can_be_reached_from_outside():
    pixels = np.full((60, 60, 3), 255, np.uint8)
    pixels[10:50, 10:50] = (10, 60, 10)
    pixels[25:35, 25:35] = 255
    found = on_white(pixels)
    assert found[30, 30] and not found[2, 2] and found[12, 12]
    bag = garment_cut(pixels, "bag")
    assert bag is not None and not bag[30, 30] and bag[12, 12]


# -- recolouring and naming -------------------------------------------------------------------------------------------


def test_recolouring_moves_the_cloth_and_nothing_else():
    pixels, true = photograph((40, 60, 150))
    pixels[44:52, 30:40] = (250, 240, 60)  # a print
    target = to_lab(np.array([190, 40, 50], np.uint8))
    changed = recolour(pixels, true, target)
    assert np.array_equal(changed[~true], pixels[~true])
    assert np.abs(cloth_colour(changed, true)[0] - target).max() < 4, SEED
    assert np.abs(changed[46:50, 32:38].astype(int) - (250, 240, 60)).max() < 20, "the print keeps its colour"


def test_folds_survive_recolouring():
    pixels, true = photograph((150, 150, 155))
    stripes = true & (np.arange(72) % 8 < 2)
    pixels[stripes] = (pixels[stripes] * 0.7).astype(np.uint8)
    changed = recolour(pixels, true, to_lab(np.array([40, 120, 60], np.uint8)))
    light = to_lab(changed)[..., 0]
    assert light[true & ~stripes].mean() - light[stripes].mean() > 8, SEED


def test_an_empty_cut_has_no_colour():
    with pytest.raises(InputError):
        cloth_colour(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool))


def test_the_colour_model_learns_names_and_keeps_them_on_disk():
    names = ("red", "green", "blue")
    centres = np.array([[200, 40, 40], [50, 160, 60], [40, 60, 190]])
    labels = CHANCE.integers(0, 3, 240)
    counts = np.stack(
        [
            colour_counts(np.clip(centres[k] + CHANCE.normal(0, 25, (20, 20, 3)), 0, 255).astype(np.uint8), np.ones((20, 20)))
            for k in labels
        ]
    )
    assert np.allclose(counts.sum(1), 1, atol=1e-5)
    model = fit_colours(counts[:160], [names[k] for k in labels[:160]], names, bins=24)
    said = model.probabilities(counts[160:])
    assert np.allclose(said.sum(1), 1, atol=1e-5) and (said.argmax(1) == labels[160:]).mean() > 0.97, SEED
    again = ColourModel.from_json(model.to_json())
    assert np.abs(again.probabilities(counts[160:]) - said).max() < 0.02
    with pytest.raises(InputError, match="unknown"):
        fit_colours(counts[:2], ["red", "mauve"], names)


# -- composites -------------------------------------------------------------------------------------------------------


def test_composites_are_a_function_of_seed_and_step():
    things = [photograph() for _ in range(3)]
    made = Composites(things, [p for p, _ in things], 48, 6, SEED)
    a, b = made.batch_at(5), made.batch_at(5)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["pixels"], made.batch_at(6)["pixels"])
    assert a["pixels"].shape == (6, 3, 48, 48) and a["masks"].shape == (6, 1, 48, 48)
    assert float(a["pixels"].min()) >= -1 and float(a["pixels"].max()) <= 1 and float(a["masks"].min()) >= 0
    stream = made.stream(5)
    assert torch.equal(next(stream)["masks"], a["masks"])


@pytest.mark.parametrize("shape", [(96, 72), (50, 96), (30, 30)])
def test_a_cut_comes_back_from_its_square(shape):
    pixels, true = photograph(size=shape)
    layers = square(pixels, true, 96)
    assert layers.shape == (4, 96, 96)
    back = unsquare(layers[3].numpy(), shape) > 0.5
    assert (back == true).mean() > 0.98, SEED


# -- words ------------------------------------------------------------------------------------------------------------


def test_words_of_clothes():
    assert caption("dress", "red") == "a red dress"
    assert caption("shirt", "orange", wearer="Men") == "an orange shirt for men"
    assert caption("jeans", "blue") == "blue jeans"
    assert "a pair of yellow jeans" in captions("jeans", "yellow") and "a yellow jean" in captions("jeans", "yellow")
    assert captions("hat") == ("a hat", "a cap", "a photo of a hat", "hat")
    assert "a maroon t-shirt" in captions("t-shirt", "red", "maroon") and "a tshirt" not in captions("t-shirt", "red")


def test_no_word_names_two_garments_and_no_kind_belongs_to_two():
    words = [noun.name for g in GARMENTS.values() for noun in g.nouns]
    assert len(words) == len(set(words))
    assert len(BY_SHOP) == sum(len(g.shop) for g in GARMENTS.values())
    assert len(BY_HOME) == sum(len(g.home) for g in GARMENTS.values())
    assert {basic for basic, _ in SHADES.values()} <= set(COLOURS)
    assert colour_of_shade("Navy Blue") == ("navy blue", "navy blue") and colour_of_shade("Multi") is None


def test_cutting_the_real_fixtures(request):
    """Of the two dozen photographs at home some lie on plain grounds; what is cut of them is credible."""
    folder = request.path.parent / "fixtures" / "clothing"
    cuts = [cut(read_picture(p)) for p in sorted(folder.glob("*.jpg"))]
    found = [c for c in cuts if c is not None]
    assert 3 <= len(found) < len(cuts)
    assert all(0.1 < c.mean() < 0.8 for c in found)
