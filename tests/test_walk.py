"""Walks: between noises, between prompts, along stations; each frame its own picture, smoothness measured by hand."""

import json
import os
import random
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageSequence
from pydantic import ValidationError
from scipy.spatial import geometric_slerp

from giverny.assembly import families, open_painter, train
from giverny.base.contracts import Condition, Done, Failed, Picture, Provenance, Request, Toward, Variation
from giverny.base.errors import InputError
from giverny.base.images import read_picture, resize
from giverny.base.picture import infotext, read_provenance
from giverny.base.runtime import PictureStreams, slerp
from giverny.cli import cli
from giverny.painters.diffusion.painter import BATCH
from giverny.pipelines import walk
from giverny.pipelines.text2image import collect, paint
from giverny.steering.between import between

pytestmark = pytest.mark.xdist_group("contract")
SEED = random.SystemRandom().randrange(2**32)  # fresh every time; every failure names it
SHAPE = (4, 8, 8)
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def draw():
    print(f"drawn from seed {SEED}")
    return np.random.default_rng(SEED)


@pytest.fixture(scope="module")
def shelf():
    return open_painter("fashion-mnist")


def ask(painter, *requests):
    numbered = [r.model_copy(update={"id": str(i)}) for i, r in enumerate(requests)]
    return [p.pixels for p in collect(painter.paint(numbered), numbered)]


def flat(value, side=2):
    return Picture(np.full((side, side, 3), value, np.uint8))


# -- noise ------------------------------------------------------------------------------------------------------------


def test_slerp_is_what_scipy_computes_and_keeps_ends_to_the_bit(draw):
    for size in (2, 3, 64, 1000):
        a, b = (x / np.linalg.norm(x) for x in draw.normal(size=(2, size)))
        shares = np.sort(draw.uniform(size=5))
        wanted = geometric_slerp(a, b, shares)
        rows = [torch.tensor(np.stack([x] * 5)) for x in (a, b)]
        for kind, limit in ((torch.float64, 1e-12), (torch.float32, 1e-6)):  # of the sine: near a half turn nothing is exact
            ours = slerp(*(x.to(kind) for x in rows), torch.tensor(shares)).double().numpy()
            assert np.abs(ours - wanted).max() * (1 - (a @ b) ** 2) ** 0.5 < limit
        for start, end in (rows, [x.float() * draw.uniform(0.1, 9) for x in rows]):
            assert torch.equal(slerp(start, end, 0.0), start) and torch.equal(slerp(start, end, 1.0), end)


def test_slerp_of_parallel_opposite_and_empty_vectors_is_finite(draw):
    a = torch.tensor(draw.normal(size=(1, 50)), dtype=torch.float32)
    for b in (a, 3 * a, a + 1e-7, -a, 0 * a):
        for share in (0.0, 0.3, 1.0):
            mixed = slerp(a, b, share)
            assert torch.isfinite(mixed).all()
            if b is not a and b.abs().sum() > 0 and (b * a).sum() > 0:
                assert torch.allclose(mixed, (1 - share) * a + share * b, atol=1e-5)
    assert torch.equal(slerp(0 * a, 0 * a, 0.5), 0 * a)
    # the change from arc to straight line, where the angle is about 1e-6, leaves no step
    turned = a + 1e-6 * a.norm() * torch.nn.functional.normalize(torch.randn_like(a), dim=-1)
    assert torch.allclose(slerp(a, turned, 0.5), (a + turned) / 2, atol=1e-6)


def test_streams_between_two_seeds(draw):
    a, b = (int(x) for x in draw.integers(2**62, size=2))
    for share in (0.0, 1.0):
        mixed, plain = PictureStreams([a], [(b, share)]), PictureStreams([(a, b)[int(share)]])
        assert all(torch.equal(mixed.normal(SHAPE), plain.normal(SHAPE)) for _ in range(3))  # later draws as well
    share = float(draw.uniform(0.2, 0.8))
    first, second = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)).double().numpy() for s in (a, b))
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    angle = np.arccos((first / lengths[0] * second / lengths[1]).sum())
    wanted = (np.sin((1 - share) * angle) * first + np.sin(share * angle) * second) / np.sin(angle)
    assert np.abs(PictureStreams([a], [(b, share)]).normal(SHAPE)[0].numpy() - wanted).max() < 1e-5
    many = PictureStreams([a, 5, a, b], [(b, share), None, (b, 0.0), (a, 1.0)]).normal(SHAPE)
    assert torch.equal(many[0], PictureStreams([a], [(b, share)]).normal(SHAPE)[0])
    assert torch.equal(many[1], PictureStreams([5]).normal(SHAPE)[0]) and torch.equal(many[2], many[3])
    with pytest.raises(ValueError):
        PictureStreams([1, 2], [None])


def test_noise_on_the_way_is_still_unit_noise(draw):
    for share in (0.1, 0.5, 0.9):
        noise = PictureStreams([int(draw.integers(2**62))], [(int(draw.integers(2**62)), share)]).normal((4, 128, 128))
        assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02  # five deviations of 65,536 draws
        assert abs(noise.pow(4).mean() - 3) < 0.2  # in a straight line it would be thinner: 0.75 at the middle


# -- words ------------------------------------------------------------------------------------------------------------


def conditions(draw, rows, length=6, width=5, dtype=torch.float32):
    """Random conditions whose texts are of random length."""
    mask = torch.arange(length) < torch.tensor(draw.integers(1, length, size=(rows, 1)))
    vectors, pooled = draw.normal(size=(rows, length, width)), draw.normal(size=(rows, width + 2))
    return Condition(torch.tensor(vectors).to(dtype), mask, torch.tensor(pooled).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conditions_between_two_texts(draw, dtype):
    a, b = conditions(draw, 5, dtype=dtype), conditions(draw, 5, dtype=dtype)
    share = float(draw.uniform(0.1, 0.9))
    kinds = zip((0, 1, share, share), ("linear", "spherical") * 2, strict=True)
    ways = [Toward(prompt="", share=s, way=w) for s, w in kinds]
    mixed = between(a, b, [*ways, None])
    for row, end in ((0, a), (1, b), (4, a)):
        for name in ("vectors", "pooled", "mask"):
            assert torch.equal(getattr(mixed, name)[row], getattr(end, name)[row]), (row, name)
    assert mixed.vectors.dtype == mixed.pooled.dtype == dtype
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    x, y = a.vectors.double().numpy(), b.vectors.double().numpy()
    assert np.abs(mixed.vectors[2].double().numpy() - ((1 - share) * x[2] + share * y[2])).max() < limit
    pairs = [(mixed.vectors[3, i], x[3, i], y[3, i]) for i in range(6)]
    pairs += [(mixed.pooled[i], a.pooled[i].double().numpy(), b.pooled[i].double().numpy()) for i in (2, 3)]
    for ours, start, end in pairs:  # scipy's between directions; its weights are the same for any lengths
        angle = np.arccos(start @ end / np.linalg.norm(start) / np.linalg.norm(end))
        wanted = (np.sin((1 - share) * angle) * start + np.sin(share * angle) * end) / np.sin(angle)
        assert np.abs(ours.double().numpy() - wanted).max() < limit
    assert torch.equal(mixed.mask[2:4], a.mask[2:4] | b.mask[2:4])


def test_only_the_parts_that_are_there_are_mixed(draw):
    a, b = conditions(draw, 1), conditions(draw, 1)
    way = [Toward(prompt="", share=0.5)]
    words = between(Condition(a.vectors), Condition(b.vectors), way)
    assert words.pooled is None and words.mask is None and torch.allclose(words.vectors, (a.vectors + b.vectors) / 2)
    assert between(Condition(pooled=a.pooled), Condition(pooled=b.pooled), way).vectors is None


# -- requests ---------------------------------------------------------------------------------------------------------


def test_requests_without_a_way_are_written_as_ever():
    plain = '{"prompt":"a","negative":"","seed":3,"size":null,"knobs":{},"id":""}'
    assert Request(prompt="a", seed=3).model_dump_json() == plain
    assert Request.model_validate_json(plain) == Request(prompt="a", seed=3)
    assert Request().model_dump(include={"prompt", "seed"}) == {"prompt": "", "seed": 0} and not Request().asks


def test_requests_on_a_way_survive_json_and_tell_web_interfaces():
    request = Request(prompt="a", toward=Toward(prompt="b, c", share=0.25), variation=Variation(seed=9, strength=0.5))
    assert Request.model_validate_json(request.model_dump_json()) == request
    assert request.asks == {"toward", "variation"} and hash(request.toward)
    told = Provenance(
        request=request, knobs={"steps": 2}, painter="p", model="m", fingerprint="f" * 16, versions={}, device="cpu",
        precision="float32", backend="plain", threads=1, batch=1,
    )  # fmt: skip
    assert Provenance.model_validate_json(told.model_dump_json()) == told
    line = infotext(told, (8, 8)).splitlines()[-1]
    wanted = 'Model: m, Variation seed: 9, Variation seed strength: 0.5, RNG: CPU, Toward: "b, c", Toward share: 0.25'
    assert wanted in line
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValidationError):
            Toward(prompt="", share=wrong)
        with pytest.raises(ValidationError):
            Variation(seed=1, strength=wrong)


# -- painters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families())
def test_a_family_that_walks_keeps_its_ends_and_its_independence(name, tiny_runs):
    painter = open_painter(tiny_runs[name])
    if not {"toward", "variation"} <= getattr(painter, "can", frozenset()):
        pytest.skip(f"{name} does not walk")
    a, b = "a red circle", "two big blue squares"
    for knobs in ({}, {"sampler": "euler a"}, {"sampler": "ddpm"}) if name == "diffusion" else ({},):
        there, other = (ask(painter, Request(prompt=p, seed=s, knobs=knobs))[0] for p, s in ((b, 3), (a, 4)))
        here = ask(painter, Request(prompt=a, seed=3, knobs=knobs))[0]
        for share, word_end, noise_end in ((0, here, here), (1, there, other)):
            toward = Request(prompt=a, seed=3, knobs=knobs, toward=Toward(prompt=b, share=share))
            varied = Request(prompt=a, seed=3, knobs=knobs, variation=Variation(seed=4, strength=share))
            assert np.array_equal(ask(painter, toward)[0], word_end)
            assert np.array_equal(ask(painter, varied)[0], noise_end)
    way = {"toward": Toward(prompt=b, share=0.4), "variation": Variation(seed=8, strength=0.6)}
    mixed = [Request(prompt=a, seed=1, **way), Request(prompt=b, seed=2), Request(prompt="", seed=1, toward=way["toward"])]
    for alone, together in zip(mixed, ask(painter, *mixed), strict=True):
        assert abs(ask(painter, alone)[0].astype(int) - together).max() <= 1


@pytest.mark.parametrize("sampler", ["dpm++ 2m", "euler a"])
def test_pictures_change_little_by_little_and_pass_stations_without_a_jump(sampler, shelf, draw):
    """In steps of 1e-5 at most a tenth of the way from end to end, both on a leg and across a station."""
    seeds = [int(s) for s in draw.integers(2**32, size=3)]
    stations = walk.stations_for(["a sneaker", "an ankle boot", "a bag"], seeds)
    spots, knobs = [0.0, 1.0, 0.3, 0.30001, 0.99999, 1.00001, 2.0], {"sampler": sampler, "steps": 6}
    wanted = walk.requests_along(stations, spots, knobs=knobs)
    at = dict(zip(spots, collect(shelf.paint(wanted), wanted), strict=True))
    whole = min(walk.distance(at[0.0], at[1.0]), walk.distance(at[1.0], at[2.0]))
    assert whole > 0.1
    assert walk.distance(at[0.3], at[0.0]) > 0.01 and walk.distance(at[0.3], at[1.0]) > 0.01
    assert walk.distance(at[0.3], at[0.30001]) < whole / 10
    assert walk.distance(at[0.99999], at[1.0]) < whole / 10 and walk.distance(at[1.0], at[1.00001]) < whole / 10


def test_a_family_that_cannot_walk_refuses(monkeypatch, tmp_path):
    """The newcomer of tests/test_adding.py, which knows nothing of walks."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    entry = EntryPoint("classgan", "one_file_painter:PAINTER", "giverny.painters")
    monkeypatch.setattr("giverny.assembly.opening.entry_points", lambda group: [entry] if "painters" in group else [])
    for _ in train({"family": "classgan", "name": "gan"}, tmp_path / "gan"):
        pass
    painter = open_painter(tmp_path / "gan")
    walking = [Request(prompt="circle", id="w", toward=Toward(prompt="ring", share=0.5)),
               Request(prompt="circle", id="v", variation=Variation(seed=1, strength=0.5))]  # fmt: skip
    events = list(walk.able(painter, [*walking, Request(prompt="circle", id="plain")]))
    failed = {e.id: e.reason for e in events if isinstance(e, Failed)}
    assert set(failed) == {"w", "v"} and "'toward'" in failed["w"] and "classgan" in failed["v"]
    assert [e.id for e in events if isinstance(e, Done)] == ["plain"]
    said = run("walk", "circle", "ring", "-m", tmp_path / "gan", "-o", tmp_path / "out", code=2).output
    assert "classgan" in said and not list((tmp_path / "out").glob("*"))


# -- stations and places ----------------------------------------------------------------------------------------------


def test_stations_pair_prompts_and_seeds():
    given = (("ab", [1]), ("a", [1, 2]), ("ab", [1, 2]))
    told = [[(s.prompt, s.seed) for s in walk.stations_for(*one)] for one in given]
    assert told == [[("a", 1), ("b", 1)], [("a", 1), ("a", 2)], [("a", 1), ("b", 2)]]
    for prompts, seeds, word in (("abc", [1, 2], "as many"), ("a", [1], "differ"), ("aa", [1], "differ"), ("a", [], "many")):
        with pytest.raises(InputError, match=word):
            walk.stations_for(prompts, seeds)
    assert walk.read_seeds(" 1, 7 42") == [1, 7, 42]
    for wrong in ("", "a", "1,,-2", "1.5", str(2**63)):
        with pytest.raises(InputError):
            walk.read_seeds(wrong)


def test_places_pass_every_station_in_even_steps(draw):
    for _ in range(200):
        count, loop = int(draw.integers(2, 6)), bool(draw.integers(2))
        frames = int(draw.integers(count, 60))
        stations = walk.stations_for([str(i) for i in range(count)], [1])
        places = walk.places_for(stations, frames, loop)
        legs = walk.legs_of(stations, loop)
        assert len(places) == frames and set(map(float, range(count))) <= set(places)
        steps = np.diff([*places, float(legs)] if loop else places)
        assert np.isclose(steps.sum(), legs) and steps.min() > 0
        per_leg = np.bincount([int(p) for p in places if p < legs], minlength=legs)
        assert per_leg.max() - per_leg.min() <= 1
        with pytest.raises(InputError):
            walk.places_for(stations, count - 1, loop)


def test_requests_at_stations_are_plain():
    stations = walk.stations_for(["a", "b", "b"], [1, 2, 3])
    plain, mixed, noise, back = walk.requests_along(stations, [1.0, 0.25, 1.5, 2.75])
    assert plain == Request(prompt="b", seed=2, id="0")
    assert mixed.toward == Toward(prompt="b", share=0.25) and mixed.variation == Variation(seed=2, strength=0.25)
    assert noise.toward is None and noise.variation == Variation(seed=3, strength=0.5)
    assert back.toward == Toward(prompt="a", share=0.75) and back.variation.seed == 1  # a loop's last leg


# -- smoothness -------------------------------------------------------------------------------------------------------


def test_smoothness_by_hand():
    told = walk.smoothness([flat(0), flat(51), flat(255)], loop=False, note="x")
    numbers = (told.mean_step, told.max_step, told.unevenness, told.path, told.ends, told.detour)
    assert numbers == pytest.approx((0.5, 0.8, 1.6, 1.0, 1.0, 1.0)) and told.frames == 3
    assert told.conditions == {"size": (2, 2), "loop": False, "note": "x"}
    round_about = walk.smoothness([flat(0), flat(255), flat(51)], loop=False)
    assert round_about.detour == pytest.approx(1.8 / 0.2)
    ring = walk.smoothness([flat(0), flat(51), flat(102)], loop=True)
    assert (ring.path, ring.ends, ring.detour, ring.max_step) == pytest.approx((0.8, 0.4, 1.0, 0.4))
    assert walk.smoothness([flat(9), flat(9)], loop=False).unevenness is None
    half = Picture(np.array([[[0] * 3, [255] * 3]], np.uint8))
    assert walk.distance(half, Picture(0 * half.pixels)) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("loop", [False, True])
def test_respacing_evens_out_a_path_of_uneven_speed(loop):
    """Brightness along the way is known, so how even the frames can be is known too; asking again comes closer."""
    stations = walk.stations_for(["a", "b"], [1])
    legs = walk.legs_of(stations, loop)
    shine = lambda p: 1 / (1 + np.exp(-60 * (p - 0.6)))  # a switch, as words are to a denoiser  # noqa: E731
    see = lambda place: flat(round(255 * shine(1 - abs(1 - place) if loop else place)), 1)  # noqa: E731
    places, seen, uneven = walk.places_for(stations, 24, loop), {}, []
    for _ in range(4):
        uneven.append(walk.smoothness([see(p) for p in places], loop).unevenness)
        seen |= {p: see(p) for p in places}
        places = walk.respaced(seen, 24, loop, legs)
        assert len(places) == 24 and places[0] == 0 and places == sorted(places) and (loop or places[-1] == 1)
    assert uneven[0] > 5 and uneven[-1] < 1.4 and uneven[-1] < uneven[1]


# -- showing ----------------------------------------------------------------------------------------------------------


def test_film_shares_one_palette_and_keeps_greys(draw):
    grey = [Picture(np.repeat(draw.integers(256, size=(28, 28, 1)).astype(np.uint8), 3, axis=2)) for _ in range(3)]
    for picture, frame in zip(grey, walk.film(grey), strict=True):
        assert abs(frame[2::4, 2::4].astype(int) - picture.pixels).max() <= 1 and frame.shape == (112, 112, 3)
    dress, hat = (resize(read_picture(FIXTURES / "clothing" / f"{name}-1.jpg"), (64, 64)) for name in ("dress", "hat"))
    colour = [Picture(((1 - s) * dress + s * hat).astype(np.uint8)) for s in (0, 0.3, 0.7, 1)]
    frames = np.stack(walk.film(colour))
    assert len(np.unique(frames.reshape(-1, 3), axis=0)) <= 256
    assert np.abs(frames[:, ::2, ::2].astype(int) - np.stack([p.pixels for p in colour])).mean() < 6


# -- the command ------------------------------------------------------------------------------------------------------


def run(*args, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_walk_writes_frames_that_reproduce_and_replaces_nothing(shelf, tmp_path):
    out = tmp_path / "out"
    flags = ["-m", "fashion-mnist", "--frames", 7, "--steps", 3, "--sampler", "euler a", "-o", out, "--json"]
    lines = run("walk", "a sneaker", "an ankle boot", "a bag", "--seeds", "1,7,3", *flags, "--fps", 12).stdout.splitlines()
    told = [json.loads(line) for line in lines]
    frames = [f"{i:05d}.png" for i in range(7)]
    assert {p.name for p in out.iterdir()} == {*frames, "walk.gif", "sheet.png", "walk.json"}
    assert [e["event"] for e in told] == ["picture"] * 7 + ["walk"]
    for name in frames:  # each from its own file alone, though stations of other words were painted beside it
        assert json.loads(run("reproduce", out / name, "--json").stdout.splitlines()[-1])["same"] is True, name
    second = read_provenance(out / "00001.png").request
    assert second.toward.prompt == "an ankle boot" and second.variation == Variation(seed=7, strength=second.toward.share)
    plain = paint(shelf, "an ankle boot", seed=7, steps=3, sampler="euler a")[0].pixels
    assert abs(read_picture(out / "00003.png").astype(int) - plain).max() <= 1  # at a station
    with Image.open(out / "walk.gif") as film:
        assert film.info["loop"] == 0 and film.n_frames == 7 and film.size == (112, 112)
        lasting = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
        assert abs(sum(lasting) - 7000 / 12) <= 5
    kept = json.loads((out / "walk.json").read_text())
    pixels = [np.asarray(Image.open(out / name)) / 255 for name in frames]
    steps = [np.sqrt(((a - b) ** 2).mean()) for a, b in zip(pixels, pixels[1:], strict=False)]
    assert [row["step"] for row in kept["frames"]] == [*(pytest.approx(s) for s in steps), None]
    assert kept["smoothness"]["max_step"] == pytest.approx(max(steps)) == told[-1]["max_step"]
    assert kept["smoothness"]["conditions"]["knobs"]["sampler"] == "euler a"
    assert [s["seed"] for s in kept["stations"]] == [1, 7, 3]
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    again = ["-m", "fashion-mnist", "--loop", "--even", "--frames", 3, "--steps", 2, "-o", out, "--seed", 5]
    said = run("walk", "a dress", "a coat", *again).output
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.name in before} == before
    new = "00007.png 00008.png 00009.png walk-00007.gif sheet-00007.png walk-00007.json"
    assert {p.name for p in out.iterdir()} - set(before) == set(new.split())
    assert "largest" in said and "fashion-mnist" in said and "2 steps" in said


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["a dress"], "several seeds"),
        (["a dress", "a coat", "a bag", "--frames", 2], "3 stations"),
        (["a dress", "a coat", "--seed", 1, "--seeds", "1,2"], "both"),
        (["a dress", "a coat", "--seeds", "1,x"], "1,7,42"),
        (["a dress", "a coat", "--seeds", "1,2,3"], "2 prompts and 3 seeds"),
        (["a dress", "a coat", "--sampler", "eulr"], "euler"),
        (["a dress", "a coat", "--frames", 1], "2<=x"),
    ],
)
def test_walks_that_cannot_be_are_one_sentence(given, word, tmp_path):
    said = run("walk", *given, "-o", tmp_path / "out", code=2).output
    assert word in said and "Traceback" not in said and not list(tmp_path.glob("out/*"))


def test_ctrl_c_leaves_the_frames_that_are_done(tiny_runs, tmp_path):
    command = [sys.executable, "-m", "giverny", "walk", "a ring", "a square", "--frames", "9000", "--json", "--seed", "1"]
    command += ["-m", str(tiny_runs["diffusion"]), "-o", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and '"stopped"' in rest
    left = sorted(tmp_path.iterdir())
    assert left and all(p.suffix == ".png" and p.stem.isdigit() for p in left) and len(left) < 9000 - BATCH
    assert {read_picture(path).shape for path in left} == {(16, 16, 3)}
