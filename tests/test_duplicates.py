"""Copies and near copies: against a graph library and an optimiser, on photographs, and in time."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.csgraph
from PIL import Image

from conftest import FIXTURES
from giverny.base.images import read_picture
from giverny.data.duplicates import NEAR_BITS, NEAR_COLOUR, Print, alike, print_of
from giverny.data.folders import open_source
from test_audit import scene


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def test_groups_are_those_of_a_graph_library(rng):
    """All pairs by plain counting of bits, the best light by scipy's optimiser, groups by scipy's connected components."""
    for _ in range(3):
        n = int(rng.integers(120, 200))
        base = rng.integers(0, 2**63, 30, dtype=np.uint64)
        scenes = rng.integers(40, 200, (3, 768))
        flips = [sum({1 << int(bit) for bit in rng.integers(0, 64, rng.integers(1, 9))}) for _ in range(n)]
        bits = base[rng.integers(0, 30, n)] ^ np.array(flips, np.uint64)
        light = rng.choice([0.85, 0.97, 1.03, 1.3], (n, 1))
        colours = (scenes[rng.integers(0, 3, n)] * light + rng.normal(0, 2, (n, 768))).clip(0, 255).astype(np.uint8)
        digests = [bytes([d]) * 16 for d in rng.integers(0, 256, n)]
        prints = [Print(d, b.tobytes(), c.tobytes()) for d, b, c in zip(digests, bits, colours, strict=True)]
        first = [digests.index(digest) for digest in digests]
        prints = [prints[i] for i in first]  # equal pixels mean equal hashes
        edges = np.zeros((n, n), bool)
        edges[np.arange(n), first] = True
        for i in set(first):
            for j in set(first) & set(range(i)):
                differ = (int.from_bytes(prints[i].bits) ^ int.from_bytes(prints[j].bits)).bit_count()
                edges[i, j] = differ <= 6 and apart(prints[j], prints[i]) <= 7
        count, wanted = scipy.sparse.csgraph.connected_components(scipy.sparse.csr_matrix(edges))
        same, near = alike(prints, near_bits=6, near_colour=7)
        assert len(set(near.tolist())) == count == len(set(zip(near.tolist(), wanted.tolist(), strict=True)))
        assert all(prints[s].digest == p.digest for s, p in zip(same, prints, strict=True))
        assert len(set(same.tolist())) == len(set(digests)) and 1 < count < len(set(digests))


def apart(one, other):
    a, b = (np.frombuffer(p.colours, np.uint8).astype(float) for p in (one, other))
    found = scipy.optimize.minimize_scalar(
        lambda light: np.sqrt(((a - light * b) ** 2).mean()), bounds=(0.9, 1.1), method="bounded", options={"xatol": 1e-9}
    )
    return found.fun


def test_the_hash_is_the_published_one(rng):
    """Against plain means of fields, on sizes that 9 and 8 divide; answers within two grey levels of the margin may differ."""
    for _ in range(20):
        high, wide = 8 * int(rng.integers(2, 9)), 9 * int(rng.integers(2, 9))
        pixels = scene(rng, (wide, high))
        weights = np.array([0.299, 0.587, 0.114])
        fields = (pixels @ weights).reshape(8, high // 8, 9, wide // 9).mean(axis=(1, 3))
        step = fields[:, :-1] - fields[:, 1:] - 4
        bits = np.unpackbits(np.frombuffer(print_of(pixels).bits, np.uint8)).reshape(8, 8).astype(bool)
        assert (bits == (step > 0))[abs(step) > 2].all() and (abs(step) > 2).mean() > 0.5
        assert print_of(pixels[..., :1]) == print_of(pixels[..., :1].repeat(3, axis=2))


def test_photographs_are_known_again_and_told_apart(rng):
    """24 photographs, each once more after scaling, compression and a change of light: 24 groups, and never fewer."""
    source = open_source(FIXTURES / "clothing")
    pictures = [source.read(i).pixels for i in range(len(source))]
    altered = []
    for pixels in pictures:
        image = Image.fromarray(pixels)
        share = rng.uniform(0.75, 2)
        image = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)
        path_quality, light = int(rng.integers(50, 95)), rng.uniform(0.97, 1.03)
        changed = (np.asarray(image) * light).clip(0, 255).astype(np.uint8)
        altered.append(jpeg(changed, path_quality))
    _, near = alike([print_of(p) for p in (*pictures, *altered)])
    assert len(set(near[:24].tolist())) == 24
    assert (near[24:] == near[:24]).sum() >= 22  # a hash may miss one now and then


def jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return read_picture(buffer.getvalue())


def test_one_outline_in_two_colours_is_two_pictures():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(64, axis=0)
    red, blue = (ramp * np.array(c, np.uint8) for c in ((1, 0, 0), (0, 0, 1)))
    prints = [print_of(p) for p in (red, blue, jpeg(red, 80))]
    _, near = alike(prints)
    assert near.tolist() == [0, 1, 0]


def test_fifteen_thousand_are_searched_in_seconds(rng):
    """Half of them nearly blank, which is the hard case: their hashes agree, and only colours tell them apart."""
    bits = rng.integers(0, 2**63, 15000, dtype=np.uint64)
    bits[::2] = 0
    colours = rng.integers(0, 256, (15000, 1, 3), dtype=np.uint8).repeat(256, axis=1)
    prints = [Print(rng.bytes(16), b.tobytes(), c.tobytes()) for b, c in zip(bits, colours, strict=True)]
    start = time.perf_counter()
    _, near = alike(prints)
    assert time.perf_counter() - start < 30
    assert len(set(near[1::2].tolist())) == 7500
    assert NEAR_BITS < 16 and NEAR_COLOUR < 32
