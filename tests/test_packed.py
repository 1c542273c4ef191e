"""The packed backend paints with the plain network's numbers, whatever the shape, the condition or the time."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from giverny.autoencoders.codec import LatentCodec, LatentScale, PixelCodec
from giverny.autoencoders.kl import KLRecipe
from giverny.autoencoders.packed import PackedAutoencoder, packed_codec
from giverny.autoencoders.vq import VQRecipe
from giverny.base.contracts import Condition
from giverny.denoisers.packed import Folded, PackedUNet
from giverny.denoisers.unet import UNetRecipe
from giverny.layers.blocks import Upsample
from giverny.layers.packed import LAYOUTS, Double, available

pytestmark = pytest.mark.skipif(not available(torch.device("cpu")), reason="this build of torch lacks oneDNN")

RECIPES = {
    "cross": UNetRecipe(channels=(16, 24), attention=(False, True), depth=(1, 2), heads=(2, 3), context_width=12, groups=4),
    "everything": UNetRecipe(
        channels=(16, 24, 32), attention=(True, False, True), depth=(1, 1, 1), head_width=8, context_width=12, groups=8,
        conditioning="both", pooled_width=10, linear_projection=True, in_channels=6, blocks=1,
    ),
    "additive": UNetRecipe(
        channels=(16,), attention=(True,), depth=(1,), heads=(4,), conditioning="additive", pooled_width=10, groups=4,
        middle_attention=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("times", ["one", "many"])
@pytest.mark.parametrize("words", [4, 9])  # few enough to be folded into the attention's maps, or too many
def test_packed_equals_plain(name, branches, times, words):
    recipe = RECIPES[name]
    torch.manual_seed(0)
    plain = recipe.build().eval()
    for p in plain.parameters():
        p.data += 0.05 * torch.randn_like(p)
    packed = PackedUNet(plain)
    extra = recipe.in_channels - recipe.out_channels
    for batch, height, width in ((1, 7, 7), (2, 8, 8), (2, 5, 12), (1, 7, 7)):
        rows = batch * branches
        condition = Condition(
            torch.randn(rows, words, recipe.context_width) if recipe.cross else None,
            torch.rand(rows, words).argsort(1) < 3 if recipe.cross else None,
            torch.randn(rows, recipe.pooled_width) if recipe.additive else None,
            torch.randn(rows, extra, height, width) if extra else None,
        )
        x = torch.randn(batch, recipe.out_channels, height, width)
        t = torch.full((batch,), 321.5) if times == "one" else torch.rand(batch) * 999
        with torch.inference_mode():
            prepared = plain.prepare(condition)
            expected = plain(x, t, prepared)
            given = packed(x, t, packed.prepare(condition))
            by_hand = torch.cat(
                [plain(x, t, plain.prepare(part(condition, i, batch))) for i in range(branches)]
            )  # fmt: skip
        assert given.shape == (rows, recipe.out_channels, height, width)
        assert float((given - expected).abs().max()) < 1e-5 * float(expected.abs().max())
        assert float((by_hand - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_few_words_are_folded():
    packed = PackedUNet(RECIPES["cross"].build().eval())
    with torch.inference_mode():
        few, many = (packed.prepare(Condition(torch.randn(1, n, 12))).words for n in (4, 9))
    assert all(isinstance(w, Folded) for w in few) and not any(isinstance(w, Folded) for w in many)


def part(condition, i, batch):
    cut = lambda v: None if v is None else v[i * batch : (i + 1) * batch]  # noqa: E731
    return Condition(cut(condition.vectors), cut(condition.mask), cut(condition.pooled), cut(condition.channels))


def test_a_probe_or_a_gradient_gets_the_plain_network():
    plain = RECIPES["cross"].build().eval()
    packed = PackedUNet(plain)
    x, t = torch.randn(1, 4, 8, 8, requires_grad=True), torch.tensor([5.0])
    prepared = packed.prepare(Condition(vectors=torch.randn(1, 5, 12)))
    packed(x, t, prepared).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())
    seen = []
    with torch.inference_mode():
        packed(x, t, prepared, lambda place, weights: seen.append(place))
    assert any(place.endswith("cross") for place in seen)


def drawn_autoencoder(recipe_type, attention):
    """A small network of drawn sizes, its weights moved away from their beginnings."""
    groups = random.choice([2, 4])
    recipe = recipe_type(
        picture_channels=random.choice([1, 3]),
        latent_channels=random.randint(1, 8),
        channels=tuple(groups * random.randint(3, 8) for _ in range(random.randint(1, 4))),
        blocks=random.randint(1, 2),
        middle_attention=attention,
        groups=groups,
        patch=random.randint(3, 4) if attention else 1,
        straight=attention,
    )
    network = recipe.build().eval()
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return recipe, network


def close(given, expected):
    return given.shape == expected.shape and float((given - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("recipe_type", [KLRecipe, VQRecipe])
@pytest.mark.parametrize("attention", [False, True])
def test_a_packed_decoder_equals_the_plain_one(recipe_type, attention):
    """Drawn networks, odd and repeated sizes; more sizes than layouts are kept, then the first again."""
    for _ in range(3):
        seed = torch.seed()
        random.seed(seed)
        recipe, plain = drawn_autoencoder(recipe_type, attention)
        packed = PackedAutoencoder(plain)
        for batch, height, width in ((1, 3, 5), (2, 4, 4), (1, 7, 2), (3, 3, 6), (1, 3, 3), (1, 3, 5)):
            latents = torch.randn(batch, recipe.latent_channels, height, width)
            with torch.inference_mode():
                expected = plain.decode(latents)
                assert close(packed.decode(latents), expected), (seed, recipe, latents.shape)
                assert expected.shape[-2:] == (height * recipe.factor, width * recipe.factor)
        assert len(packed.decoder.conv_in.weight.kept) == LAYOUTS


def test_a_packed_decoder_takes_a_single_place():
    """One wide group: a norm over two or four values magnifies rounding, in both decoders alike."""
    plain = KLRecipe(latent_channels=1, channels=(24, 32), groups=1, blocks=1).build().eval()
    latents = torch.randn(2, 1, 1, 1)
    with torch.inference_mode():
        assert close(PackedAutoencoder(plain).decode(latents), plain.decode(latents))


def test_doubling_is_nearest_and_convolution_everywhere():
    """Against torch's own operators in double precision, borders included; to sizes that are not double as well."""
    torch.seed()
    up = Upsample(6)
    double = Double(up)
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last)
    for size in ((10, 8), (9, 8), (10, 7)):
        big = F.interpolate(x.double(), size=size, mode="nearest")
        expected = F.conv2d(big, up.conv.weight.double(), up.conv.bias.double(), padding=1)
        with torch.inference_mode():
            assert close(double(x, size).double(), expected)
    with torch.inference_mode():
        assert double(x).shape == (2, 6, 10, 8)


def test_a_gradient_or_other_numbers_get_the_plain_decoder():
    recipe, plain = drawn_autoencoder(KLRecipe, False)
    latents = torch.randn(1, recipe.latent_channels, 4, 4, requires_grad=True)
    PackedAutoencoder(plain).decode(latents).sum().backward()
    assert latents.grad is not None and bool((latents.grad != 0).any())
    plain.double()
    with torch.inference_mode():
        exact = latents.detach().double()
        assert torch.equal(PackedAutoencoder(plain).decode(exact), plain.decode(exact))


@pytest.mark.parametrize("batch", [1, 3])
def test_in_bfloat16_the_packed_networks_are_as_near_the_exact_ones_as_the_plain(batch):
    """Both round at every step, in other orders: neither strays further from float32 than twice the other."""
    recipe = RECIPES["cross"]
    torch.manual_seed(torch.seed() % 2**31)
    exact = recipe.build().eval()
    for p in exact.parameters():
        p.data += 0.05 * torch.randn_like(p)
    coarse = recipe.build().eval()
    coarse.load_state_dict(exact.state_dict())
    coarse.to(torch.bfloat16)
    packed = PackedUNet(coarse)
    x, t = torch.randn(batch, 4, 8, 8), torch.full((batch,), 217.0)
    told = Condition(torch.randn(2 * batch, 4, 12), torch.ones(2 * batch, 4, dtype=torch.bool))
    low = Condition(told.vectors.bfloat16(), told.mask)
    with torch.inference_mode():
        expected = exact(x, t, exact.prepare(told))
        usual = (coarse(x.bfloat16(), t, coarse.prepare(low)).float() - expected).square().mean().sqrt()
        given = packed(x.bfloat16(), t, packed.prepare(low))
    assert given.dtype == torch.bfloat16
    assert (given.float() - expected).square().mean().sqrt() < 2 * usual + 1e-3 * expected.std()
    network, plain = drawn_autoencoder(KLRecipe, False)
    latents = torch.randn(batch, network.latent_channels, 4, 4)
    with torch.inference_mode():
        picture = plain.decode(latents)
        plain.to(torch.bfloat16)
        usual = (plain.decode(latents.bfloat16()).float() - picture).square().mean().sqrt()
        given = PackedAutoencoder(plain).decode(latents.bfloat16())
    assert (given.float() - picture).square().mean().sqrt() < 2 * usual + 1e-3 * picture.std()


def test_a_packed_codec_keeps_the_scale_and_leaves_pixels_alone():
    recipe, plain = drawn_autoencoder(KLRecipe, True)
    codec = LatentCodec(plain, recipe.latent_channels, recipe.factor, LatentScale(scale=0.3, shift=-0.7))
    packed = packed_codec(codec)
    assert (packed.channels, packed.factor) == (codec.channels, codec.factor)
    pixels = torch.rand(2, recipe.picture_channels, 2 * recipe.factor, 3 * recipe.factor) * 2 - 1
    with torch.inference_mode():
        latents = codec.encode(pixels)
        assert torch.equal(packed.encode(pixels), latents)
        assert close(packed.decode(latents), codec.decode(latents))
    for other in (PixelCodec(3), LatentCodec(nn.Identity(), 4, 1, LatentScale())):
        assert packed_codec(other) is other
