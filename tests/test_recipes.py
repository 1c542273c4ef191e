"""Recipes that ship: they are whole, their networks fit together at full size, and they train and paint from real files."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from giverny.assembly import load_recipe, open_painter, train
from giverny.assembly.atelier import JUDGED, OF_KINDS, OF_WORDS
from giverny.base.contracts import Condition, Request
from giverny.base.recipe import check, override, read_recipe
from giverny.compare.cells import cells, read_experiment
from giverny.data.captions import CIFAR10, MNIST
from giverny.data.catalog import CATALOG, open_named
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.painters.diffusion.recipe import DiffusionRecipe
from giverny.pipelines.text2image import collect

FOLDER = Path(__file__).parents[1] / "recipes"
ALL = [
    (path.stem, preset)
    for path in sorted(FOLDER.glob("*.toml"))
    if (found := read_recipe(path)).get("family") == "diffusion"
    for preset in (None, *found.get("presets", {}))
]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_a_checked_recipe_is_taken_as_it_is(name):
    """A setting that says "none", where leaving it out means a number, once became that number on the way to the trainer."""
    recipe = load_recipe(FOLDER / f"{name}.toml")
    assert load_recipe(recipe) == recipe
    assert (
        load_recipe(recipe, ["loop.clip=none"] if hasattr(recipe, "loop") else ["name=other"]) != recipe or not recipe.loop.clip
    )


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_a_recipe_is_whole_and_its_networks_fit_together(name, preset):
    """Shapes alone, on torch's meta device: nothing is computed, whatever the size."""
    recipe = load_recipe(FOLDER / f"{name}.toml", preset=preset)
    assert isinstance(recipe, DiffusionRecipe) and recipe.name == name and recipe.title
    assert recipe.licence or recipe.data.source == "my/pictures"
    assert recipe.budget is not None
    wide, high = recipe.data.size
    shape = (2, recipe.data.channels, high, wide)
    with torch.device("meta"), torch.no_grad():
        denoiser, latents = recipe.denoiser.network.build(), torch.empty(shape)
        if recipe.autoencoder is not None:
            autoencoder = recipe.autoencoder.network.build()
            latents = autoencoder.encode(torch.empty(shape)).mean
            factor = recipe.autoencoder.network.factor
            assert latents.shape == (2, recipe.denoiser.network.in_channels, high // factor, wide // factor)
            assert autoencoder.decode(latents).shape == shape
        condition = Condition()
        if recipe.text is not None:
            words = torch.empty(2, recipe.text.text.length, recipe.text.text.width)
            condition = Condition(vectors=words, pooled=torch.empty(2, recipe.text.shared_width))
        assert denoiser(latents, torch.empty(2), denoiser.prepare(condition)).shape == latents.shape
        for stage in (recipe.autoencoder, recipe.decoder):
            if stage is not None and stage.critic is not None:
                assert stage.critic.build()(torch.empty(shape))[-1].shape[0] == 2


def test_high_resolution_recipes_have_the_latents_they_promise():
    eight, thirty_two = (load_recipe(FOLDER / name) for name in ("landscapes-512.toml", "landscapes-512-f32.toml"))
    for recipe, side in ((eight, 64), (thirty_two, 16)):
        assert recipe.data.size == (512, 512)
        assert 512 // recipe.autoencoder.network.factor == side
    assert eight.autoencoder.network.latent_channels == 4


# -- real files -------------------------------------------------------------------------------------------------------


def write_mnist(folder: Path, rng: np.random.Generator, count: int = 12) -> np.ndarray:
    labels = rng.integers(0, 10, count, dtype=np.uint8)
    for stem, values in (("images-idx3", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)), ("labels-idx1", labels)):
        head = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
        (folder / f"train-{stem}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return labels


def write_cifar10(folder: Path, rng: np.random.Generator, each: int = 3) -> np.ndarray:
    """The binary form: five batches of rows of a label and 3072 pixels, and the names of the classes."""
    labels = rng.integers(0, 10, 5 * each, dtype=np.uint8)
    rows = np.concatenate([labels[:, None], rng.integers(0, 256, (5 * each, 3072), dtype=np.uint8)], axis=1)
    for number, batch in enumerate(np.split(rows, 5), 1):
        (folder / f"data_batch_{number}.bin").write_bytes(batch.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10.classes) + "\n")
    return labels


def write_landscapes(folder: Path, rng: np.random.Generator, count: int = 6) -> None:
    with zipfile.ZipFile(folder / CATALOG["landscape-photos"].files[0].name, "w") as archive:
        for number in range(count):
            coarse, out = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)), io.BytesIO()
            coarse.resize((256, 256), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
            archive.writestr(f"photos/photo_{number:03d}_0.jpg", out.getvalue())


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """An empty folder of that name, where the catalog looks for a set."""

    def place(name):
        monkeypatch.setenv("GIVERNY_DATA", str(tmp_path))
        (tmp_path / name).mkdir()
        return tmp_path / name

    return place


def two_steps(name: str, run: Path, *settings: str, prompt: str = "", batch: int = 4) -> np.ndarray:
    """Train two steps of every stage of a recipe, its networks as they are; one picture from the model."""
    stages = [
        stage for stage in ("autoencoder", "decoder", "text", "denoiser") if stage in read_recipe(FOLDER / f"{name}.toml")
    ]
    loops = [f"{s}.loop.{entry}" for s in stages for entry in ("steps=2", f"batch={batch}", "precision=float32", "warmup=1")]
    told = [f'prompts=["{prompt}"]', "knobs.steps=2", "data.validation=2", *loops, *settings]
    reports = list(train(load_recipe(FOLDER / f"{name}.toml", told), run))
    assert [r.stage for r in reports if r.happened == "finished"] == [
        s for s in ("autoencoder", "text", "denoiser", "decoder") if s in stages
    ]
    assert all(np.isfinite(list(r.report.values.values())).all() for r in reports if r.report is not None)
    painter = open_painter(run, device="cpu")
    request = Request(prompt=prompt, seed=5, id="one")
    (picture,) = collect(painter.paint([request]), [request])
    return picture.pixels


def test_mnist_trains_and_paints(placed, tmp_path):
    labels = write_mnist(placed("mnist"), np.random.default_rng())
    source = open_named("mnist", fetch=False)
    assert [source.captions_of(i) for i in range(len(labels))] == [MNIST.of(label) for label in labels]
    assert any(caption == "a handwritten three" for caption in MNIST.of(3))
    pixels = two_steps("mnist", tmp_path / "run", prompt="a handwritten three")
    assert pixels.shape == (28, 28, 3) and (pixels == pixels[..., :1]).all()


def test_cifar_10_trains_and_paints(placed, tmp_path):
    labels = write_cifar10(placed("cifar10"), np.random.default_rng())
    source = open_named("cifar10", fetch=False)
    assert [source.captions_of(i) for i in range(len(labels))] == [CIFAR10.of(label) for label in labels]
    pixels = two_steps("cifar-10", tmp_path / "run", prompt="a frog")
    assert pixels.shape == (32, 32, 3) and pixels.std() > 0


SMALL = ("data.size=[128, 128]", "text.image.size=128", "text.image.patch=32")


@pytest.mark.parametrize("name", ["landscapes-512", "landscapes-512-f32"])
def test_landscapes_train_and_paint_without_words_at_a_quarter_of_their_size(name, placed, tmp_path):
    write_landscapes(placed("landscape-photos"), np.random.default_rng())
    assert open_named("landscape-photos").captions_of(0) == ()
    assert two_steps(name, tmp_path / "run", *SMALL, batch=2).shape == (128, 128, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["landscapes-512", "landscapes-512-f32"])
def test_landscapes_train_and_paint_at_full_size(name, placed, tmp_path):
    write_landscapes(placed("landscape-photos"), np.random.default_rng())
    assert two_steps(name, tmp_path / "run", batch=1).shape == (512, 512, 3)


# -- experiments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "experiments").glob("*.toml")))
def test_every_cell_of_an_experiment_is_a_whole_recipe_and_its_scores_have_names(name):
    recipe = read_experiment(FOLDER / "experiments" / f"{name}.toml")
    for cell in cells(recipe):
        checked = load_recipe(cell.recipe, cell.overrides, cell.preset)
        with torch.device("meta"):
            checked.denoiser.network.build()
        check(DiffusionKnobs, {**checked.knobs, **override({}, cell.knobs)}, cell.label)
    known = (*OF_KINDS, *OF_WORDS, *(f"{JUDGED}{of}" for of in ("all", "class", "garment", "colour")))
    assert set(recipe.measure) <= set(known)
    assert recipe.control and len(recipe.seeds) >= 3
