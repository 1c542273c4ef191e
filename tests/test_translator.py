"""The translating painter: pictures of any size, tiles, masks, strength, what it refuses; recipes and two stages."""

import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from giverny.assembly import load_recipe, open_painter
from giverny.base.contracts import Done, Failed, Progress, Request
from giverny.base.errors import InputError
from giverny.base.images import beside, png_bytes, resize, to_tensor
from giverny.base.runtime import derive_seed
from giverny.base.start import Enclosed, Start
from giverny.base.streams import stream
from giverny.checkpoints.native import read_card
from giverny.gans.generators import ResnetRecipe, UnetRecipe
from giverny.painters.translator import tiles
from giverny.painters.translator.family import tiny
from giverny.painters.translator.painter import TranslatorPainter
from giverny.painters.translator.recipe import ModelRecipe, TranslatorRecipe


def enclosed(content, name="drawn.png"):
    return Enclosed(name=name, sha256=hashlib.sha256(content).hexdigest(), content=content)


def smooth(width, height, seed=0):
    """A picture like a photograph: large forms, small ones in them."""
    drawn = np.random.default_rng(seed)
    sides = [(max(1, width // by), max(1, height // by)) for by in (16, 2)]
    large, small = (Image.fromarray(drawn.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sides)
    return np.asarray(Image.blend(*(one.resize((width, height), Image.Resampling.BICUBIC) for one in (large, small)), 0.2))


def begun(pixels, **more):
    return Request(id="one", start=Start(picture=enclosed(png_bytes(pixels)), **{"strength": 1.0, **more}))


def painter_of(generator, stages=1, seed=0):
    torch.manual_seed(seed)
    recipe = ModelRecipe(generator=generator, stages=stages)
    return TranslatorPainter(recipe, recipe.build(), size=(16, 16))


@pytest.fixture(scope="module")
def painter():
    return painter_of(ResnetRecipe(channels=4, blocks=1, gain=0.1))


def ask(painter, request, **knobs):
    (last,) = (e for e in painter.paint([request.model_copy(update={"knobs": knobs})]) if isinstance(e, Done | Failed))
    return last.artifact.pixels if isinstance(last, Done) else last.reason


# -- any size ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", [ResnetRecipe(channels=4, blocks=1), UnetRecipe(channels=2, levels=6)])
@pytest.mark.parametrize(("width", "height"), [(8, 8), (9, 61), (64, 64), (130, 33)])
def test_any_size_and_aspect_comes_back_as_it_was(generator, width, height):
    made = ask(painter_of(generator), begun(smooth(width, height)))
    assert made.shape == (height, width, 3)


def test_where_nothing_is_to_be_mirrored_it_is_the_network_alone(painter):
    pixels = smooth(40, 24)
    with torch.no_grad():
        wanted = painter.networks[0](to_tensor(pixels)[None])[0]
    wanted = ((wanted + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    assert np.abs(ask(painter, begun(pixels)).astype(int) - wanted.numpy()).max() <= 1


def test_edges_are_mirrored_as_numpy_mirrors_them():
    for width, height, step in ((5, 7, 4), (8, 8, 4), (3, 2, 32), (1, 9, 8)):
        x = torch.randn(1, 2, height, width)
        canvas = tiles.mirrored(x, step)
        top, bottom, left, right = canvas.box
        around = [(0, 0), (0, 0), (top, canvas.pixels.shape[2] - bottom), (left, canvas.pixels.shape[3] - right)]
        assert np.array_equal(canvas.pixels, np.pad(x.numpy(), around, "reflect"))
        assert torch.equal(canvas.inner, x) and not any(side % step for side in canvas.pixels.shape[2:])


def test_a_size_that_is_asked_for_is_painted(painter):
    request = begun(smooth(40, 24)).model_copy(update={"size": (20, 32)})
    assert ask(painter, request).shape == (32, 20, 3)


# -- grain ------------------------------------------------------------------------------------------------------------------


GRAINED = UnetRecipe(channels=4, levels=3, gain=0.2, norm="batch", doubling="resize", grain=2)


def test_the_seed_says_how_strokes_fall_where_there_is_grain_and_nothing_elsewhere(painter):
    request = begun(smooth(61, 40))
    seeds = [request.model_copy(update={"seed": seed}) for seed in (3, 3, 4)]
    first, again, other = (ask(painter_of(GRAINED), each) for each in seeds)
    assert np.array_equal(first, again) and np.abs(first.astype(int) - other).mean() > 0.5
    first, _, other = (ask(painter, each) for each in seeds)
    assert np.array_equal(first, other)


def test_the_noise_of_tiles_is_the_noise_of_the_whole():
    """Batch norm in evaluation: nothing but cuts, and another noise behind them, could tell."""
    network = GRAINED.build().eval()
    x, noise = torch.rand(1, 3, 200, 328) * 2 - 1, torch.randn(1, 2, 200, 328)
    (whole,) = tiles.through(network, x, 8, None, noise)
    *_, made = steps = list(tiles.through(network, x, 8, 200, noise))
    assert len(steps) > 1 and torch.allclose(made, whole, atol=1e-5)
    (other,) = tiles.through(network, x, 8, None, noise.flip(3))
    assert not torch.allclose(other, whole, atol=1e-3)


def test_norms_that_tiles_share_see_noise_as_it_is():
    """What is made smaller for the norms' sake is the picture. Noise, averaged, would be weaker than what the tiles see."""
    torch.manual_seed(1)
    network = UnetRecipe(channels=8, levels=3, gain=0.2, doubling="resize", grain=1).build().eval()
    x, noise = to_tensor(smooth(768, 384))[None], torch.randn(1, 1, 384, 768)
    (whole,) = tiles.through(network, x, 8, None, noise)
    *_, made = steps = list(tiles.through(network, x, 8, 256, noise))
    assert len(steps) > 1 and (made.std() / whole.std()).item() == pytest.approx(1, abs=0.1)


# -- tiles ------------------------------------------------------------------------------------------------------------------


def test_tiles_of_a_network_that_sees_not_far_are_the_whole():
    """Batch norm in evaluation, so that nothing but the cuts could tell."""
    network = ResnetRecipe(channels=4, blocks=1, norm="batch", gain=0.2).build().eval()
    x = torch.rand(1, 3, 200, 328) * 2 - 1
    with torch.no_grad():
        whole = network(x)
    steps = list(tiles.through(network, x, 4, 200))
    assert len(steps) == tiles.count(x, 4, 200) > 1
    assert torch.allclose(steps[-1], whole, atol=1e-5)


def test_tiles_share_the_norms_of_the_picture():
    """Half of the picture is flat: by itself a tile of it would be stretched to the contrast of the other."""
    network = ResnetRecipe(channels=8, blocks=2, gain=0.1).build().eval()
    x = to_tensor(smooth(512, 256))[None]
    x[..., 256:] *= 0.02
    with torch.no_grad():
        whole = network(x)
        *_, made = tiles.through(network, x, 4, 256)
        alone = torch.cat([network(x[..., :256]), network(x[..., 256:])], 3)
    error, usual = ((y - whole).abs().mean().item() for y in (made, alone))
    assert error < 0.25 * usual
    assert all(
        p.data_ptr() == q.data_ptr() for p, q in zip(network.parameters(), tiles.sharing(network).parameters(), strict=True)
    )


def test_a_large_picture_goes_through_in_tiles_and_tells_of_each(painter):
    pixels = smooth(700, 420)
    request = begun(pixels).model_copy(update={"knobs": {"memory": 12}})
    events = list(painter.paint([request], previews=True))
    steps = [e for e in events if isinstance(e, Progress)]
    assert len(steps) == steps[0].total > 1 and [e.step for e in steps] == list(range(1, len(steps) + 1))
    made = events[-1].artifact.pixels
    assert made.shape == pixels.shape and np.array_equal(steps[-1].preview, made)
    whole = ask(painter, begun(pixels), memory=0).astype(int)
    assert np.abs(whole - made).mean() < 8


@pytest.mark.parametrize(
    "generator",
    [ResnetRecipe(channels=2, blocks=1), UnetRecipe(channels=2, levels=4), UnetRecipe(channels=2, levels=5, grain=2)],
)
def test_a_strip_however_long_goes_through(generator):
    canvas = tiles.mirrored(to_tensor(smooth(6000, 24))[None], generator.step)
    noise = torch.randn(1, 2, *canvas.pixels.shape[2:]) if generator.grain else None
    *_, made = steps = list(tiles.through(generator.build().eval(), canvas.pixels, generator.step, 256, noise))
    assert len(steps) > 20 and canvas.cut(made).shape == (1, 3, 24, 6000) and bool(torch.isfinite(made).all())


def test_memory_that_is_too_little_says_how_much_it_takes(painter):
    said = ask(painter, begun(smooth(700, 420)), memory=1)
    assert "MiB or more" in said
    enough = int(said.split("memory of ")[1].split(" MiB")[0])
    assert isinstance(ask(painter, begun(smooth(700, 420)), memory=enough), np.ndarray)


# -- how much, and where ------------------------------------------------------------------------------------------------------


def test_strength_lays_it_over_the_picture_and_a_mask_says_where(painter):
    pixels = smooth(32, 32)
    all_of_it, none = ask(painter, begun(pixels)), ask(painter, begun(pixels, strength=0.0))
    assert np.array_equal(none, pixels) and not np.array_equal(all_of_it, pixels)
    half = ask(painter, begun(pixels, strength=0.5)).astype(float)
    assert np.abs(half - (pixels.astype(float) + all_of_it) / 2).max() <= 0.5
    white = np.zeros((32, 32, 3), np.uint8)
    white[:, 16:] = 255
    masked = ask(painter, begun(pixels, mask=enclosed(png_bytes(white), "mask.png")))
    assert np.array_equal(masked[:, :16], pixels[:, :16]) and np.array_equal(masked[:, 16:], all_of_it[:, 16:])


def test_working_over_is_off_unless_asked_for(painter):
    pixels = smooth(32, 32)
    plain = ask(painter, begun(pixels))
    softer, sharper = ask(painter, begun(pixels), denoise=1), ask(painter, begun(pixels), sharpen=1.0)
    edges = [np.abs(np.diff(p.astype(int), axis=1)).mean() for p in (softer, plain, sharper)]
    assert edges[0] < edges[1] < edges[2]


@pytest.mark.parametrize(("strokes", "smaller"), [(2, (32, 24)), (3.0, (21, 16)), (64, (8, 8))])
def test_larger_strokes_are_painted_smaller_and_enlarged(painter, strokes, smaller):
    pixels = smooth(64, 48)
    expected = resize(ask(painter, begun(resize(pixels, smaller))), (64, 48))
    assert np.array_equal(ask(painter, begun(pixels), strokes=strokes), expected)
    shown = [e.preview for e in painter.paint([begun(pixels).model_copy(update={"knobs": {"strokes": strokes}})], previews=True)
             if isinstance(e, Progress)]  # fmt: skip
    assert all(one.shape == (48, 64, 3) for one in shown)


def test_strokes_may_be_as_the_size_asks(painter, monkeypatch):
    monkeypatch.setattr("giverny.painters.translator.painter.PAINTED", 32)
    small, large = smooth(40, 30), smooth(96, 64)
    assert np.array_equal(ask(painter, begun(small), strokes=0), ask(painter, begun(small)))  # never painted larger
    assert np.array_equal(ask(painter, begun(large), strokes=0), ask(painter, begun(large), strokes=2))
    assert "0, or 1 and more" in ask(painter, begun(large), strokes=0.5)


def test_several_translators_are_a_chain():
    chain = painter_of(ResnetRecipe(channels=4, blocks=1, gain=0.1), stages=2)
    x = to_tensor(smooth(32, 32))[None]
    with torch.no_grad():
        wanted = chain.networks[1](chain.networks[0](x))[0]
    wanted = ((wanted + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0)
    assert np.abs(ask(chain, begun(smooth(32, 32))).astype(int) - wanted.numpy()).max() <= 1


# -- what it refuses ----------------------------------------------------------------------------------------------------------


def saved(image, form, **how):
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


BAD = {
    "1 x 1": png_bytes(np.zeros((1, 1, 3), np.uint8)),
    "animation": saved(
        Image.new("L", (32, 32)), "GIF", save_all=True, append_images=[Image.new("L", (32, 32), 200)], duration=40
    ),
    "CMYK": saved(Image.new("CMYK", (32, 32)), "JPEG"),
    "recognised": b"no picture",
}


def test_bad_pictures_are_named_and_the_rest_is_done(painter):
    requests = [Request(id=name, start=Start(picture=enclosed(content, f"{name}.bin"))) for name, content in BAD.items()]
    good = begun(smooth(32, 32)).model_copy(update={"id": "good"})
    noise = begun(smooth(32, 32), mask=enclosed(png_bytes(np.full((32, 32, 3), 255, np.uint8))), fill="noise")
    events = list(painter.paint([*requests, noise, Request(id="words", prompt="Monet"), good]))
    failed = {e.id: e.reason for e in events if isinstance(e, Failed)}
    assert set(failed) == {*BAD, "one", "words"}
    assert all(name.split()[0] in failed[name] for name in BAD)
    assert "giverny translate" in failed["words"]
    assert [e.id for e in events if isinstance(e, Done)] == ["good"]


def test_a_network_that_overflows_is_said_and_not_painted():
    broken = painter_of(ResnetRecipe(channels=4, blocks=1))
    nn.init.constant_(broken.networks[0].model[1].weight, float("nan"))
    assert "finite" in ask(broken, begun(smooth(16, 16)))


# -- recipes and stages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [None, "cpu", "gpu", "small"])
def test_the_recipe_that_ships_is_whole_and_fits_together(preset):
    recipe = load_recipe("monet-cyclegan", preset=preset)
    assert isinstance(recipe, TranslatorRecipe) and recipe.licence and recipe.budget
    with torch.device("meta"):
        made = recipe.build()
        x, noise = (torch.empty(1, channels, *recipe.data.size) for channels in (3, made.grain))
        assert made.forth(beside(x, noise)).shape == x.shape
        assert made.judges[0].outputs(x)[0].shape[-1] == {None: 15, "cpu": 3, "gpu": 30, "small": 3}[preset]
        if preset in ("cpu", "gpu"):  # those of the shelf, in float16
            assert 2 * sum(p.numel() for p in made.forth.parameters()) < 15e6


def test_what_does_not_fit_together_is_refused_in_the_recipe():
    tiny_recipe = tiny().model_dump()
    for change, said in (
        ({"data": {"size": (18, 16)}}, "divisible by 4"),
        ({"data": {"part": 32}}, "data.part wants a side of data.size or less"),
        ({"data": {"size": (48, 48), "part": 18}}, "divisible by 4"),
        ({"objective": {"judged": {"mixing": "cutmix"}}}, "critic of every pixel"),
        ({"objective": {"judged": {"mixing": "cutmix", "mixing_form": "image"}}}, "want each other"),
        ({"objective": {"family": "patches"}, "generator": {"family": "unet", "levels": 4}}, "family 'resnet'"),
        ({"objective": {"together": True}, "generator": {"family": "resnet", "norm": "batch"}}, "instance norm"),
        ({"critic": {"family": "patch", "layers": 4}}, "seen by the critic"),
    ):
        data = {**tiny_recipe, **{k: {**(tiny_recipe[k] if k == "data" else {}), **v} for k, v in change.items()}}
        with pytest.raises(ValidationError, match=said):
            TranslatorRecipe.model_validate(data)


def test_the_second_stage_learns_from_what_the_first_has_made(tiny_runs):
    from giverny.assembly import open_source
    from giverny.data.unpaired import Unpaired
    from giverny.painters.translator.workshop import TranslatorWorkshop

    painter = open_painter(tiny_runs["translator"])
    assert painter.recipe.stages == 2 and len(painter.networks) == 2
    card = read_card(tiny_runs["translator"] / "model")
    assert set(card.training["stages"]) == {"translate", "again"} and card.task == "picture to picture"
    assert card.data["given"]["pictures"] == 256
    workshop = TranslatorWorkshop(tiny(), Unpaired(open_source("toy"), open_source("toy")), tiny_runs["translator"])
    first, second = (job.start for job in workshop.jobs())  # the same start, before and after something was kept
    plain = next(first()[1](3))
    workshop.made.append(painter.networks[0])
    made = next(second()[1](3))
    assert torch.equal(plain["wanted"], made["wanted"])
    assert torch.equal(made["given"], next(second()[1](3))["given"])  # the noise is drawn by the step
    with torch.no_grad():
        drawn = stream(derive_seed(tiny().loop.seed, 0, 3))
        wanted = [painter.networks[0](beside(one[None], drawn.normal((1, 1, 16, 16)))) for one in plain["given"]]
    assert torch.allclose(made["given"], torch.cat(wanted), atol=1e-6)


def test_training_wants_two_sets(tmp_path):
    from giverny.assembly import open_source, train

    with pytest.raises(InputError, match="two sets"):
        list(train(tiny(), tmp_path / "run", source=open_source("toy")))
