"""Noise: published numbers of both sources, AUTOMATIC1111's readings of seeds, Brownian trees."""

import math
import random

import numpy as np
import pytest
import torch

from giverny.base.contracts import NoiseLevel
from giverny.base.errors import InputError
from giverny.base.philox import Philox, philox
from giverny.base.runtime import PictureStreams
from giverny.base.streams import SOURCES, stream
from giverny.sampling.brownian import TREE, BrownianTree, TreeNoise
from giverny.sampling.noise import PictureNoise
from giverny.sampling.samplers import SAMPLERS, integrate
from giverny.sampling.schedules import beta_table, from_ratios, levels, ve_levels, zero_terminal
from giverny.sampling.webui import Seed, WebuiStreams, batch_seeds, column_slerp, pasted

SHAPE = (4, 64, 64)
CPU = {  # first four numbers, the last one, and the first of the next draw
    0: (-1.125840, -1.152360, -0.250579, -0.433879, -1.078208, -0.551836),
    42: (1.926915, 1.487284, 0.900717, -2.105521, -0.293406, -1.304659),
    12345: (-1.479808, 0.487306, -3.012794, 0.443855, 1.738847, -0.698099),
}
NV = {
    0: (-0.924662, -0.425344, -2.643846, 0.145184, -2.954316, 0.180826),
    42: (0.194019, 2.161374, -0.172051, 0.849060, 0.082989, 0.139137),
    12345: (0.578641, -0.524755, -0.291904, 0.014014, 2.256242, 2.701285),
}


@pytest.mark.parametrize(("source", "seed"), [(s, seed) for s in SOURCES for seed in CPU])
def test_both_sources_draw_their_published_numbers(source, seed):
    streams = PictureStreams([seed], source=source)
    first, second = streams.normal(SHAPE)[0], streams.normal(SHAPE)[0]
    got = [*first.flatten()[:4].tolist(), float(first[-1, -1, -1]), float(second[0, 0, 0])]
    assert got == pytest.approx({"cpu": CPU, "nv": NV}[source][seed], abs=1e-6)
    assert first.dtype == torch.float32


def test_few_numbers_of_torch_are_other_numbers():
    assert stream(0).normal((4,)).tolist() == pytest.approx([1.540996, -0.293429, -2.178789, 0.568431], abs=1e-6)


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [  # known answers of the authors' library Random123
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_known_answers(counter, key, want):
    assert tuple(philox(np.array(counter, np.uint32)[:, None], key)[:, 0].tolist()) == want


def test_the_numbers_of_cuda_are_normal_and_belong_to_their_place():
    drawn = Philox(7).normal((200_000,)).double()
    assert abs(float(drawn.mean())) < 0.01 and abs(float(drawn.std()) - 1) < 0.01
    assert torch.equal(Philox(7).normal((5, 3)).flatten(), drawn[:15].float())
    assert torch.equal(Philox(-1).normal((3,)), Philox(2**64 - 1).normal((3,)))
    assert not torch.equal(Philox(1).normal((3,)), Philox(1 + 2**32).normal((3,)))


def test_unknown_sources_are_refused():
    with pytest.raises(InputError, match="source of noise"):
        PictureStreams([1], source="gpu")


@pytest.mark.parametrize("source", SOURCES)
def test_variations_of_ours_work_with_both_sources(source):
    shape = (4, 8, 8)
    here, there = (PictureStreams([seed], source=source).normal(shape) for seed in (5, 6))
    ends = PictureStreams([5, 5], [(6, 0.0), (6, 1.0)], source).normal(shape)
    assert torch.equal(ends[0], here[0]) and torch.equal(ends[1], there[0])
    assert not torch.equal(PictureStreams([5], [(6, 0.5)], source).normal(shape)[0], here[0])


# ---------------------------------------------------------------------------------------------------------------------
# A run's noise


def test_a_run_begins_with_sigma_times_noise_or_with_noise_of_full_size():
    unit = PictureStreams([3, 4]).normal((4, 8, 8))
    for run in (levels(beta_table("scaled_linear"), 5), ve_levels(levels(beta_table("scaled_linear"), 5).ratios)):
        start = PictureNoise(PictureStreams([3, 4]), (4, 8, 8)).initial(run[0])
        torch.testing.assert_close(start, unit * float(run.sigma[0]))
        full = PictureNoise(PictureStreams([3, 4]), (4, 8, 8)).initial(run[0], full=True)
        torch.testing.assert_close(full, unit * math.hypot(float(run.alpha[0]), float(run.sigma[0])))
    assert PictureNoise(PictureStreams([3], source="nv"), (4, 8, 8)).name == "nv"


# ---------------------------------------------------------------------------------------------------------------------
# AUTOMATIC1111


def test_a_variation_seed_of_the_web_interface():
    low, high = (stream(seed).normal((4, 8, 8)) for seed in (1, 2))
    assert low.flatten()[:2].tolist() == pytest.approx([-1.525596, -0.750232], abs=1e-6)
    assert high.flatten()[:2].tolist() == pytest.approx([-1.040801, 0.916604], abs=1e-6)
    mixed = column_slerp(0.3, low, high)
    assert mixed.flatten()[:4].tolist() == pytest.approx([-1.599467, -0.250061, -1.132214, -2.200169], abs=1e-6)
    assert float(mixed.sum()) == pytest.approx(21.60650, abs=1e-4)
    assert float(mixed.std()) == pytest.approx(1.02039, abs=1e-5)
    streams = WebuiStreams([Seed(1, 2, 0.3)], "cpu")
    assert torch.equal(streams.normal((4, 8, 8))[0], mixed)
    plain = PictureStreams([1])
    plain.normal((4, 8, 8))
    assert torch.equal(streams.normal((4, 8, 8)), plain.normal((4, 8, 8)))  # later draws are the seed's own


def test_noises_that_are_alike_or_empty_columns_stay_finite():
    low = stream(1).normal((4, 8, 8))
    assert torch.equal(column_slerp(0.3, low, low), low * 0.3 + low * 0.7)
    other = stream(2).normal((4, 8, 8))
    other[:, :, 0] = low[:, :, 0]
    mixed = column_slerp(0.4, low, other)
    assert mixed.isfinite().all()
    torch.testing.assert_close(mixed[:, :, 0], low[:, :, 0])
    assert column_slerp(0.5, low[:, :1], other[:, :1]).isfinite().all()


def test_seeds_of_a_batch():
    assert batch_seeds(10, 3) == [Seed(10, 0), Seed(11, 1), Seed(12, 2)]
    assert batch_seeds(10, 3, 7, 0.2) == [Seed(10, 7, 0.2), Seed(10, 8, 0.2), Seed(10, 9, 0.2)]


@pytest.mark.parametrize("source", SOURCES)
def test_without_its_options_the_web_interfaces_streams_are_ours(source):
    ours, theirs = PictureStreams([4, 5], source=source), WebuiStreams(batch_seeds(4, 2), source)
    for shape in ((4, 8, 8), (4, 8, 8), (4, 6, 8)):
        assert torch.equal(ours.normal(shape), theirs.normal(shape))


def test_eta_noise_seed_delta_changes_all_draws_but_the_first():
    streams = WebuiStreams([Seed(4)], "cpu", delta=31337)
    assert torch.equal(streams.normal((4, 8, 8)), PictureStreams([4]).normal((4, 8, 8)))
    other = PictureStreams([4 + 31337])
    for _ in range(2):
        assert torch.equal(streams.normal((4, 8, 8)), other.normal((4, 8, 8)))


@pytest.mark.parametrize("pixels", [(64, 48), (48, 96), (128, 128), (40, 72)])
def test_noise_of_another_size_lies_in_the_middle(pixels):
    shape, small = (4, 8, 9), (4, pixels[1] // 8, pixels[0] // 8)
    own = PictureStreams([3], source="nv")
    ground, later = own.normal(shape)[0], own.normal(shape)[0]
    patch = stream(3, "nv").normal(small)
    streams = WebuiStreams([Seed(3)], "nv", resize_from=pixels)
    got = streams.normal(shape)[0]
    assert torch.equal(got, pasted(patch, ground))
    assert torch.equal(streams.normal(shape)[0], later)
    top, left = (8 - small[1]) // 2, (9 - small[2]) // 2
    for y in range(8):
        for x in range(9):
            inside = 0 <= y - top < small[1] and 0 <= x - left < small[2]
            # an odd surplus of the patch leaves the last row or column as it was, in the original too
            edge = (small[1] > 8 and small[1] % 2 == 1 and y == 7) or (small[2] > 9 and small[2] % 2 == 0 and x == 8)
            want = patch[:, y - top, x - left] if inside and not edge else ground[:, y, x]
            assert torch.equal(got[:, y, x], want), (y, x)


# ---------------------------------------------------------------------------------------------------------------------
# Brownian trees


def way(*sigmas):
    """Levels of shape () at these sigma / alpha."""
    return [NoiseLevel(torch.tensor(1.0, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)) for s in sigmas]


@pytest.mark.parametrize("source", SOURCES)
def test_increments_of_a_tree_add_up_in_any_order(source):
    tree = BrownianTree(5, (4, 8, 8), source)
    seed = random.SystemRandom().randrange(2**31)
    draw = random.Random(seed)
    for _ in range(5):
        a, b, c = sorted((math.exp(draw.uniform(math.log(0.02), math.log(100))) for _ in range(3)), reverse=True)
        parts = tree.noise(a, b) * math.sqrt(a - b) + tree.noise(b, c) * math.sqrt(b - c)
        whole = BrownianTree(5, (4, 8, 8), source).noise(a, c) * math.sqrt(a - c)
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12, msg=lambda m: f"seed {seed}: {m}")
        assert torch.equal(tree.noise(a, b), -tree.noise(b, a))


def test_increments_of_a_tree_are_unit_noise_and_those_of_apart_ways_independent():
    """32768 numbers each: the deviations allowed are five and more standard errors."""
    tree = BrownianTree(11, (8, 64, 64))
    sigmas = levels(beta_table("scaled_linear"), 30, "karras").ratios[:-1].tolist()
    steps = torch.stack([tree.noise(a, b).flatten() for a, b in zip([math.inf, *sigmas], sigmas, strict=False)])
    assert (steps.mean(1).abs() < 0.03).all()
    assert ((steps.std(1) - 1).abs() < 0.02).all()
    seen = torch.corrcoef(steps) - torch.eye(len(steps), dtype=torch.float64)
    assert seen.abs().max() < 0.035
    half, whole = tree.noise(4.0, 2.0).flatten(), tree.noise(4.0, 1.0).flatten()  # as DPM++ SDE asks
    assert float((half * whole).mean()) == pytest.approx(math.sqrt(2 / 3), abs=0.03)


def test_the_whole_path_is_that_of_its_definition():
    """var W(s) = s, cov(W(s), W(t)) = min(s, t), from almost 0 to beyond any model's sigma."""
    tree = BrownianTree(3, (8, 64, 64))
    sigmas = [1e-3, 0.029, 0.0291, 0.5, 1.0, 1.0001, 7.5, 14.6146, 80.0, 3000.0]
    values = torch.stack([tree.at(s).flatten() for s in sigmas])
    got = values @ values.T / values.shape[1]
    size = torch.tensor(sigmas, dtype=torch.float64)
    want = torch.minimum(size[:, None], size[None, :])
    assert ((got - want).abs() / (size[:, None] * size[None, :]).sqrt() < 0.04).all()
    steps = [(values[i + 1] - values[i]).std() / math.sqrt(sigmas[i + 1] - sigmas[i]) for i in range(len(sigmas) - 1)]
    assert all(abs(float(s) - 1) < 0.02 for s in steps)


def test_pictures_with_trees_do_not_depend_on_batch_order_or_the_run():
    shape, run = (4, 8, 8), way(math.inf, 14.6, 3.0, 0.7, 0.03)
    together = TreeNoise(PictureStreams([7, 8]), shape)
    alone = TreeNoise(PictureStreams([8]), shape)
    drawn = {(i, i + 1): together(run[i], run[i + 1]) for i in range(4)}
    for i in (3, 0, 2, 1):  # another order, and other ways in between
        alone(*way(2.0, 0.1))
        assert torch.equal(alone(run[i], run[i + 1])[0], drawn[i, i + 1][1])
    preserving = from_ratios(torch.tensor([14.6, 3.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(alone(preserving[0], preserving[1])[0], drawn[1, 2][1])
    assert not torch.equal(drawn[1, 2][0], drawn[1, 2][1])
    assert together.initial(run[1]).equal(PictureNoise(PictureStreams([7, 8]), shape).initial(run[1]))
    larger = TreeNoise(PictureStreams([8]), (4, 8, 16))(run[1], run[2])[0]
    assert not torch.equal(larger.flatten()[:16], drawn[1, 2][1].flatten()[:16])
    assert together.name == f"cpu+{TREE}"
    assert TreeNoise(PictureStreams([8], source="nv"), shape).name == f"nv+{TREE}"
    assert not torch.equal(TreeNoise(PictureStreams([8], source="nv"), shape)(run[1], run[2])[0], drawn[1, 2][1])


def test_a_tree_on_the_way_to_another_seed_is_brownian_and_keeps_its_ends():
    shape, (a, b, c) = (8, 64, 64), way(9.0, 2.0, 0.4)

    def noise(seed, other=None):
        return TreeNoise(PictureStreams([seed], [other]), shape, torch.float64)

    assert torch.equal(noise(1, (2, 0.0))(a, b), noise(1)(a, b))
    assert torch.equal(noise(1, (2, 1.0))(a, b), noise(2)(a, b))
    half = noise(1, (2, 0.4))
    assert float(half(a, b).std()) == pytest.approx(1, abs=0.02)
    added = half(a, b) * math.sqrt(7) + half(b, c) * math.sqrt(1.6)
    torch.testing.assert_close(added, half(a, c) * math.sqrt(8.6))


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"])
def test_sde_samplers_follow_their_trees_to_the_data(name):
    """From pure noise, over a tree, to normal data of standard deviation 0.5, whose exact estimate is known."""
    run = levels(zero_terminal(beta_table("scaled_linear")), 60, "karras")
    shape = (1, 48, 48)

    def estimate(x, level, step):
        alpha, sigma = level.for_sample(x)
        return 0.25 * alpha * x / (0.25 * alpha**2 + sigma**2)

    noise = TreeNoise(PictureStreams([1, 2]), shape, torch.float64)
    final = integrate(SAMPLERS[name](estimate, noise.initial(run[0]), run, noise))
    again = TreeNoise(PictureStreams([2]), shape, torch.float64)
    single = integrate(SAMPLERS[name](estimate, again.initial(run[0]), run, again))
    torch.testing.assert_close(single[0], final[1], rtol=1e-10, atol=1e-10)
    assert float(final.std()) == pytest.approx(0.5, abs=0.035)
