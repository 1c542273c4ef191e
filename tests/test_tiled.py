"""Decoding in tiles: equal to the whole where it can be, closer to it than diffusers' tiles elsewhere, in less memory."""

import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from giverny.autoencoders.codec import LatentCodec, LatentScale, PixelCodec
from giverny.autoencoders.kl import KLRecipe
from giverny.autoencoders.packed import PackedAutoencoder, packed_codec
from giverny.autoencoders.tiled import LiveBytes, TiledCodec, fitting, reach, spans
from giverny.autoencoders.vq import VQRecipe
from giverny.base.errors import InputError
from giverny.layers.packed import available

SEED = int(np.random.default_rng().integers(2**31))  # drawn anew, and said where a test fails


def drawn(recipe_type=KLRecipe, seed=SEED, **sizes):
    """(recipe, codec): a small network whose weights have the size that training leaves them at."""
    chance = random.Random(seed)
    groups = chance.choice([2, 4])
    usual = dict(
        channels=tuple(groups * chance.randint(2, 4) for _ in range(chance.randint(2, 3))), groups=groups, blocks=1,
        latent_channels=chance.randint(2, 5), picture_channels=chance.choice([1, 3]), middle_attention=False,
    )  # fmt: skip
    recipe = recipe_type(**{**usual, **sizes})
    torch.manual_seed(seed)
    network = recipe.build().eval()
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    if isinstance(recipe, VQRecipe):
        network.quantize.embedding.weight.data.normal_()
    network.requires_grad_(False)
    return recipe, LatentCodec(network, recipe.latent_channels, recipe.factor, LatentScale(scale=0.7, shift=0.2))


def field(channels, height, width, seed=SEED, rows=1):
    """Latents as pictures have them: tones that change slowly over the picture, and detail."""
    generator = torch.Generator().manual_seed(seed)
    slow = torch.randn(rows, channels, 3, 4, generator=generator)
    fine = torch.randn(rows, channels, height, width, generator=generator)
    return F.interpolate(slow, size=(height, width), mode="bicubic", align_corners=True) + 0.3 * fine


def without_norms(codec):
    for module in list(codec.autoencoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return codec


def close(given, expected, tolerance=1e-5):
    return given.shape == expected.shape and float((given - expected).abs().max()) <= tolerance * float(expected.abs().max())


def off(given, expected):
    return float((given - expected).abs().mean())


@pytest.mark.parametrize("case", range(6))
def test_tiles_lie_evenly_and_their_weights_are_all_of_a_pixel(case):
    chance = random.Random(SEED + case)
    margin, feather, factor = chance.randint(0, 5), chance.randint(1, 9), chance.choice([1, 4, 8])
    tile = 2 * margin + feather + chance.randint(1, 12)
    length = chance.randint(tile + 1, 6 * tile)
    found = spans(length, tile, margin, feather, factor)
    total, seen = torch.zeros(length * factor), []
    for span, following in zip(found, [*found[1:], None], strict=True):
        total[span.start * factor : (span.start + tile) * factor] += span.weights
        seen += range(span.first, span.last)
        assert (span.weights >= 0).all(), SEED
        if span.start > 0:
            assert not span.weights[: margin * factor].any(), "what lies beyond the margin only is shown"
        if following is not None:
            assert span.start + tile - following.start >= 2 * margin + feather, SEED
            assert not span.weights[tile * factor - margin * factor :].any()
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6), SEED
    assert seen == list(range(length)), "each place is counted once"
    assert found[0].start == 0 and found[-1].start + tile == length


@pytest.mark.parametrize("recipe_type", [KLRecipe, VQRecipe])
def test_without_norms_tiles_with_a_margin_of_its_reach_equal_the_whole(recipe_type):
    """Attention or not: what attends sees the whole picture."""
    for attention in (False, True):
        recipe, codec = drawn(recipe_type, middle_attention=attention, patch=2, straight=True)
        codec, margin = without_norms(codec), reach(recipe)
        latents = field(recipe.latent_channels, 3 * margin + 7, 4 * margin + 2, rows=2)
        whole = codec.decode(latents)
        tile = 2 * margin + 6
        assert close(TiledCodec(codec, tile, margin, 3, "tile").decode(latents), whole), SEED


@pytest.mark.parametrize(("levels", "blocks"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_reach_is_how_far_a_latent_is_seen(levels, blocks):
    """Found by changing latents: in double precision, with weights that let everything through."""
    recipe = KLRecipe(channels=(2,) * levels, groups=1, blocks=blocks, latent_channels=2, middle_attention=False)
    codec = without_norms(LatentCodec(recipe.build().double(), 2, recipe.factor, LatentScale()))
    for p in codec.autoencoder.parameters():
        p.data = torch.full_like(p, 3.0 / p[0].numel() if p.dim() > 1 else 0.0)
    margin = reach(recipe)
    wide = 3 * margin + 4
    with torch.no_grad():
        (maps,) = codec.open(torch.ones(1, 2, 2, wide, dtype=torch.float64))
        moved = maps.clone()
        moved[..., : margin + 2] += 1
        seen = (codec.finish(moved) != codec.finish(maps)).any(2).any(1)[0].nonzero().flatten()
    last = int(seen.max()) + 1 - (margin + 2) * recipe.factor  # pixels beyond the change
    assert (margin - 1) * recipe.factor < last <= margin * recipe.factor


def test_an_autoencoder_of_another_make_is_tiled_as_a_whole():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inward, self.first = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 8, 5, padding=2)
            self.second = nn.ConvTranspose2d(8, 3, 4, stride=4)
            self.requires_grad_(False)

        def decode(self, latents):
            return self.second(torch.tanh(self.first(latents)))

    torch.manual_seed(SEED)
    codec = LatentCodec(Plain(), 4, 4, LatentScale(scale=2.0))
    latents = field(4, 23, 31)
    assert close(TiledCodec(codec, 12, 2, 3).decode(latents), codec.decode(latents)), SEED
    assert torch.equal(TiledCodec(codec, 40).decode(latents), codec.decode(latents)), "one tile is the codec's own work"


@pytest.mark.parametrize("recipe_type", [KLRecipe, VQRecipe])
def test_exact_statistics_make_tiles_equal_the_whole_and_thinned_ones_come_close(recipe_type):
    recipe, codec = drawn(recipe_type, middle_attention=True)
    margin = reach(recipe)
    latents = field(recipe.latent_channels, 2 * margin + 19, 2 * margin + 30)
    whole, tile = codec.decode(latents), 2 * margin + 8
    made = {how: TiledCodec(codec, tile, margin, 4, how).decode(latents) for how in ("tile", "thinned", "exact")}
    assert close(made["exact"], whole), SEED
    assert not close(made["tile"], whole, 1e-3), "tiles with statistics of their own differ in tone"
    if available(torch.device("cpu")):
        packed = packed_codec(codec)
        assert isinstance(packed.autoencoder, PackedAutoencoder)
        for how, plain in made.items():
            assert close(TiledCodec(packed, tile, margin, 4, how).decode(latents), plain), (SEED, how)


def test_thinned_statistics_are_nearer_to_the_whole_than_those_of_tiles():
    """Over drawn networks and pictures, since any one may be lucky."""
    errors = {"tile": 0.0, "thinned": 0.0}
    for case in range(4):
        recipe, codec = drawn(seed=SEED + case, channels=(8, 12), middle_attention=True)
        latents = field(recipe.latent_channels, 40, 56, SEED + case)
        whole = codec.decode(latents)
        for how in errors:
            errors[how] += off(TiledCodec(codec, 24, 4, 8, how).decode(latents), whole) / float(whole.std())
    assert errors["thinned"] < 0.6 * errors["tile"], (SEED, errors)


@pytest.mark.xdist_group("oracles")
def test_tiles_are_nearer_to_the_whole_than_those_of_diffusers():
    """The same weights, tiles of the same size and overlap, and each compared with its own untiled decode."""
    from diffusers import AutoencoderKL

    errors, jumps = {"ours": 0.0, "theirs": 0.0, "ours, their way": 0.0}, []
    for case in range(3):
        recipe, codec = drawn(seed=SEED + case, channels=(8, 12, 16), groups=4, middle_attention=True, picture_channels=3)
        theirs = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=recipe.latent_channels, block_out_channels=recipe.channels,
            layers_per_block=recipe.blocks, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, sample_size=96,
        )  # fmt: skip
        theirs.load_state_dict(codec.autoencoder.state_dict())
        theirs.eval()
        latents = field(recipe.latent_channels, 42, 60, SEED + case)
        with torch.no_grad():
            raw = latents / codec.scale.scale + codec.scale.shift
            whole = codec.decode(latents)
            assert close(theirs.decode(raw).sample, whole), SEED
            theirs.enable_tiling()
            assert theirs.tile_latent_min_size == 24 and theirs.tile_overlap_factor == 0.25
            made = {
                "theirs": theirs.decode(raw).sample,
                "ours": TiledCodec(codec, 24, 1, 4).decode(latents),
                "ours, their way": TiledCodec(codec, 24, 0, 6, "tile").decode(latents),
            }
        for name, pixels in made.items():
            errors[name] += off(pixels, whole) / float(whole.std())
        jumps.append({name: float((pixels - whole).diff(dim=-1).abs().amax()) for name, pixels in made.items()})
    assert errors["ours"] < errors["ours, their way"] < 1.02 * errors["theirs"], (SEED, errors)
    assert errors["ours"] < 0.6 * errors["theirs"], (SEED, errors)
    assert sum(j["ours"] for j in jumps) < sum(j["theirs"] for j in jumps), (SEED, jumps)


def test_blending_spreads_a_difference_over_the_seam():
    """A decoder that takes nothing but a tile's mean, of a picture that grows lighter from left to right."""

    class Tone(nn.Module):
        def decode(self, latents):
            return F.interpolate(latents - latents.mean(), scale_factor=4)

    codec = LatentCodec(Tone(), 1, 4, LatentScale())
    latents = torch.linspace(0, 1, 60).expand(1, 1, 20, 60)
    steps = {}
    for feather in (1, 10):
        made = TiledCodec(codec, 24, 1, feather, "tile").decode(latents)
        steps[feather] = float((made - codec.decode(latents)).diff(dim=-1).abs().max())
    difference = 0.5 * 36 / 59  # of the tones of two tiles, at least: there are three
    assert 0.9 * difference / 4 / 2 < steps[1] and steps[10] < 0.25 * steps[1], steps


def test_pictures_of_a_batch_are_decoded_as_each_alone_and_by_several_threads_at_once():
    recipe, codec = drawn(middle_attention=True)
    latents = field(recipe.latent_channels, 24, 31, rows=3)
    tiled, before = TiledCodec(codec, 16, 2, 4), latents.clone()
    together = tiled.decode(latents)
    assert torch.equal(latents, before)
    for i in range(3):
        assert torch.equal(tiled.decode(latents[i : i + 1])[0], together[i])
    found = {}
    workers = [threading.Thread(target=lambda i=i: found.update({i: tiled.decode(latents[i : i + 1])[0]})) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(found[i], together[i]) for i in range(3))
    assert not any("SharedNorm" in type(m).__name__ for m in codec.autoencoder.modules()), "the network is as it was"
    pixels = torch.rand(2, recipe.picture_channels, 2 * recipe.factor, 3 * recipe.factor) * 2 - 1
    assert torch.equal(tiled.encode(pixels), codec.encode(pixels))


def test_coarse_networks_are_blended_finely():
    recipe, codec = drawn()
    latents = field(recipe.latent_channels, 30, 30)
    expected = TiledCodec(codec, 16, 2, 4).decode(latents)
    codec.autoencoder.bfloat16()
    made = TiledCodec(codec, 16, 2, 4).decode(latents.bfloat16())
    assert made.dtype == torch.float32 and off(made, expected) < 0.05 * float(expected.std()), SEED


@pytest.mark.parametrize(
    "sizes", [dict(tile=16, margin=4, feather=8), dict(margin=-1), dict(feather=0), dict(statistics="mean")]
)
def test_impossible_tiles_are_refused(sizes):
    with pytest.raises(InputError):
        TiledCodec(drawn()[1], **sizes)


def test_shared_statistics_want_modules():
    class Numbers:
        def decode(self, latents):
            return latents.repeat_interleave(2, -1).repeat_interleave(2, -2)

    codec = LatentCodec(Numbers(), 3, 2, LatentScale())
    latents = field(3, 20, 20)
    with pytest.raises(InputError, match=r"torch modules.*'tile'"):
        TiledCodec(codec, 12, 1, 4).decode(latents)
    assert close(TiledCodec(codec, 12, 1, 4, "tile").decode(latents), codec.decode(latents)), SEED


# -- memory -----------------------------------------------------------------------------------------------------------


def test_live_bytes_are_those_of_the_tensors_that_there_are():
    weight = torch.ones(1000)
    with LiveBytes() as counted:
        a = torch.zeros(500) + 1  # 2000 bytes twice, of which one goes
        assert counted.now == 2000 and counted.most == 4000
        b = (weight * 2).view(10, 100)[:, 3:]  # 4000; views are of nothing new, and what was there before does not count
        weight.view(20, 50).t()
        assert counted.now == 6000 and counted.most == 6000
        del a
        assert counted.now == 4000
        b += 1
        c = b.sum()
        assert counted.now == 4004 and c.nbytes == 4
        del b
    assert counted.most == 6000


def peak(work):
    with LiveBytes() as counted, torch.no_grad():
        work()
    return counted.most


def test_tiles_take_a_fraction_of_the_memory_and_no_more_for_a_larger_picture():
    recipe, codec = drawn(channels=(4, 8, 8), groups=4, picture_channels=3, latent_channels=4)
    tiled = TiledCodec(codec, 24, 2, 4)
    small, large = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 128)
    assert recipe.factor == 4
    whole, parts = peak(lambda: codec.decode(small)), peak(lambda: tiled.decode(small))
    assert parts < 0.5 * whole, (whole, parts)  # a quarter of it is the picture
    picture = 4 * 3 * 256 * 256  # of which there is more
    kept = 4 * 64 * 64 * 8 * 4  # maps where it attends, four at once at most
    assert peak(lambda: tiled.decode(large)) - parts <= picture + kept
    assert peak(lambda: codec.decode(large)) > 1.9 * whole


CHILD = """
import torch
from giverny.autoencoders.codec import LatentCodec, LatentScale
from giverny.autoencoders.kl import KLRecipe
from giverny.autoencoders.tiled import TiledCodec

def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

torch.set_num_threads(1)
network = KLRecipe(channels=(8, 8, 16, 16), blocks=1, groups=8, middle_attention=False).build()
codec = LatentCodec(network, 4, 8, LatentScale())
latents = torch.randn(1, 4, 64, 64)
with torch.no_grad():
    codec.decode(latents[..., :8, :8])  # libraries are loaded
    tiled = TiledCodec(codec, 16, 2, 4)
    before = most()
    tiled.decode(latents)
    between = most()
    codec.decode(latents)
print(between - before, most() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own peak")
def test_a_process_that_decodes_in_tiles_stays_smaller():
    """512 x 512 pixels, as the system counts: what libraries take for themselves is in it."""
    out = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True, timeout=300).stdout
    tiled, whole = map(int, out.split())
    assert tiled < 0.5 * whole, (tiled, whole)


def decode_within(codec, latents, most, *more):
    return fitting(codec, latents, most, *more).decode(latents)


def test_decoding_within_a_limit_keeps_it():
    codec = drawn(channels=(8, 8, 8), groups=4, picture_channels=3, latent_channels=4)[1]
    latents = field(4, 48, 64, rows=2)
    whole = codec.decode(latents)
    free = peak(lambda: codec.decode(latents))
    assert torch.equal(decode_within(codec, latents, 2 * free), whole)
    one = decode_within(codec, latents, int(0.75 * free))
    assert torch.equal(one, torch.cat([codec.decode(row) for row in latents.split(1)])), "one by one, whole"
    for share in (0.4, 0.25, 0.15):
        most, made = int(share * free), []
        assert peak(lambda most=most, made=made: made.append(decode_within(codec, latents, most, 2, 4))) <= most, share
        assert off(made[0], whole) < 0.6 * float(whole.std()), (SEED, share)  # norms of few places; another picture is 1.4 away
    with pytest.raises(InputError, match=r"MiB or more to decode 2 of 256 x 192.*Allow more memory"):
        decode_within(codec, latents, free // 100)
    pixels = torch.randn(1, 3, 8, 8)
    assert decode_within(PixelCodec(3), pixels, 1) is pixels


def test_a_painter_keeps_to_the_memory_it_is_allowed():
    """Of the model that ships, at a size that does not fit: nearly the same picture in tiles, and an honest refusal."""
    from giverny.assembly import open_painter
    from giverny.base.contracts import Failed, Request
    from giverny.pipelines.text2image import collect

    painter = open_painter("wardrobe")
    asked = [
        Request(prompt="a red dress", seed=2, size=(384, 384), knobs={"steps": 2, "decode_memory": m}) for m in (0, 2000, 12)
    ]
    whole, large, small = (collect(painter.paint([one]), [one])[0].pixels.astype(int) for one in asked)
    assert (whole == large).all() and not (whole == small).all()
    assert abs(whole - small).mean() < 4  # of 255
    (failed,) = [
        e for e in painter.paint([asked[0].model_copy(update={"knobs": {"decode_memory": 1}})]) if isinstance(e, Failed)
    ]
    assert "Allow more memory" in failed.reason


def test_what_is_free_decides_where_nothing_is_said(monkeypatch):
    """Small pictures are decoded as ever, unasked; large ones whole where there is room, else in tiles, which is recorded."""
    from giverny.assembly import open_painter
    from giverny.base.contracts import Request
    from giverny.painters.diffusion import painter as module
    from giverny.pipelines.text2image import collect

    painter = open_painter("wardrobe")

    def painted(size, free):
        monkeypatch.setattr(module, "free_memory", free)
        asked = [Request(prompt="a red dress", seed=2, size=size, knobs={"steps": 1})]
        return collect(painter.paint(asked), asked)[0]

    assert painted((64, 64), lambda device: pytest.fail("asked")).provenance.decoded == ""
    monkeypatch.setattr(module, "LARGE", 300_000)
    whole, small, none, unknown = (painted((640, 512), lambda device, free=free: free) for free in (2**34, 40 * 2**20, 0, None))
    assert whole.provenance.decoded == unknown.provenance.decoded == "" and (whole.pixels == unknown.pixels).all()
    told = [int(picture.provenance.decoded.removeprefix("tiles of ")) for picture in (small, none)]
    assert 80 > told[0] > told[1] == 32  # the least that is quick
    for picture in (small, none):
        assert 0 < abs(whole.pixels.astype(int) - picture.pixels).mean() < 4


def test_free_memory_is_told():
    from giverny.base.runtime import describe_machine, free_memory

    free = free_memory(torch.device("cpu"))
    assert free is None or 0 < free <= describe_machine()["memory"]
    assert free_memory(torch.device("meta")) is None
