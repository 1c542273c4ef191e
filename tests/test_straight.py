"""Patches and the straight path of an autoencoder: what they compute, and what a primed network begins with."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from giverny.autoencoders.kl import KLRecipe
from giverny.autoencoders.vq import VQRecipe

SEED = int(np.random.default_rng().integers(2**31))  # drawn anew, and said where a test fails


def correlated(count, channels, side, seed):
    """Pictures whose neighbouring pixels and channels go together, (count, channels, side, side), around 0.3."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, side // 4 + 1, side // 4 + 1, generator=generator)
    mixed = torch.einsum("kc,bchw->bkhw", torch.randn(channels, channels, generator=generator), coarse)
    fine = torch.randn(count, channels, side, side, generator=generator)
    return 0.3 + 0.2 * F.interpolate(mixed, size=(side, side), mode="bilinear") + 0.02 * fine


@pytest.mark.xdist_group("oracles")
def test_patches_are_what_diffusers_makes_of_pictures_cut_up_beforehand():
    from diffusers import AutoencoderKL

    torch.manual_seed(SEED)
    recipe = KLRecipe(patch=3, picture_channels=2, channels=(8, 12), groups=4, blocks=1, latent_channels=5)
    theirs = AutoencoderKL(
        in_channels=18, out_channels=18, latent_channels=5, block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    ours = recipe.build()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 2, 12, 18)
    expected = theirs.encode(F.pixel_unshuffle(pixels, 3)).latent_dist.mean
    assert torch.allclose(ours.encode(pixels).mean, expected, atol=1e-5), SEED
    made = F.pixel_shuffle(theirs.decode(expected).sample, 3)
    assert torch.allclose(ours.decode(expected), made, atol=1e-5), SEED
    assert recipe.factor == 6 and made.shape == pixels.shape


@pytest.mark.parametrize("recipe_type", [KLRecipe, VQRecipe])
def test_a_primed_path_loses_what_principal_components_lose(recipe_type):
    """Against numpy's singular value decomposition: the same error, and latents as white as they are to be."""
    chance = random.Random(SEED)
    channels, width = chance.choice([1, 3]), chance.randint(3, 9)
    sizes = dict(channels=(8, 8), groups=4, blocks=1, middle_attention=False)
    sizes["whiteness"] = chance.choice([0, 0.5, 1, chance.random()])
    recipe = recipe_type(patch=2, straight=True, picture_channels=channels, latent_channels=width, **sizes)
    torch.manual_seed(SEED)
    network = recipe.build()
    pixels = correlated(300, channels, 12, SEED)
    before = network.quant_conv.weight.detach().clone()
    network.prime(pixels)
    assert torch.allclose(network.quant_conv.weight, 0.1 * before)
    patches = F.pixel_unshuffle(pixels, 4)
    latents = network.straight.inward(patches)
    lost = (network.straight.outward(latents) - patches).square().sum()
    rows = patches.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    power = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    expected = power[width:].sum()
    assert lost.item() == pytest.approx(expected, rel=1e-3), SEED
    spoken = latents.permute(1, 0, 2, 3).flatten(1).double()
    large = torch.from_numpy(power[:width]) ** (1 - sizes["whiteness"])
    assert torch.allclose(spoken @ spoken.T / spoken.shape[1], torch.diag(large / large.mean()), atol=2e-3), SEED
    again = recipe_type(patch=2, straight=True, picture_channels=channels, latent_channels=width, **sizes).build()
    again.prime(pixels)
    assert torch.equal(again.straight.inward.weight, network.straight.inward.weight), "signs are not left to chance"


def test_the_straight_path_is_added_to_what_the_networks_say():
    torch.manual_seed(SEED)
    network = KLRecipe(straight=True, patch=2, channels=(8, 8), groups=4, blocks=1, latent_channels=6).build()
    pixels = torch.randn(2, 3, 8, 12)
    mean = network.quant_conv(network.encoder(F.pixel_unshuffle(pixels, 2)))[:, :6]
    linear = F.conv2d(F.pixel_unshuffle(pixels, 4), network.straight.inward.weight, network.straight.inward.bias)
    belief = network.encode(pixels)
    assert torch.allclose(belief.mean, mean + linear, atol=1e-6)
    beside = F.conv_transpose2d(  # patches side by side: a transposed convolution whose stride is its kernel
        belief.mean, network.straight.outward.weight.reshape(3, 4, 4, 6).permute(3, 0, 1, 2),
        stride=4,
    ) + F.pixel_shuffle(network.straight.outward.bias[None, :, None, None].expand(2, -1, 2, 3), 4)  # fmt: skip
    made = F.pixel_shuffle(network.decoder(network.post_quant_conv(belief.mean)), 2)
    assert torch.allclose(network.decode(belief.mean), made + beside, atol=1e-5)
    taught = {id(p) for p in network.decoder_parameters()}
    assert {id(p) for p in network.straight.outward.parameters()} <= taught
    assert not {id(p) for p in network.straight.inward.parameters()} & taught


def test_more_components_than_there_are_numbers_are_refused():
    with pytest.raises(ValueError, match="at most 12 components, latent_channels = 13"):
        KLRecipe(straight=True, channels=(8, 8), groups=4, latent_channels=13)
    assert KLRecipe(channels=(8, 8), groups=4, latent_channels=13).straight is False
    plain = KLRecipe(channels=(8, 8), groups=4, latent_channels=2).build()
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    plain.prime(torch.randn(2, 3, 4, 4))  # nothing to prime
    assert all(torch.equal(before[k], v) for k, v in plain.state_dict().items())
