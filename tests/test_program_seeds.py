"""Pictures painted from the seeds of AUTOMATIC1111 and ComfyUI: each is held against one whose noise the test draws itself, as
those programs' rules say, and against what their files ask for."""

import json
import random

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

from giverny.base.contracts import BatchRow, Failed, Request, Variation
from giverny.base.errors import InputError
from giverny.base.images import to_pixels
from giverny.base.infotext import infotext
from giverny.base.philox import Philox
from giverny.checkpoints.comfy import from_comfy
from giverny.checkpoints.infotext import parse_infotext
from giverny.cli import cli
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.painters.diffusion.painter import DiffusionPainter
from giverny.pipelines.like import like
from giverny.pipelines.reproduce import repaint
from giverny.pipelines.text2image import requests_for, several
from giverny.sampling.comfyui import ComfyStreams, Place
from giverny.sampling.samplers import SAMPLERS, integrate
from giverny.steering.guidance import classifier_free, guided
from test_infotext import provenance
from test_like import graph
from tiny_painters import WORDS, painted, tiny_painter

SEED = random.SystemRandom().randrange(2**31)  # fresh every time; every failure names it
CAN = DiffusionPainter.can


@pytest.fixture(autouse=True)
def drawn():
    print(f"drawn from seed {SEED}")
    random.seed(SEED)
    torch.manual_seed(SEED)


# -- the rules, written once more -------------------------------------------------------------------------------------------


def draws(seed, source):
    """Calls of a generator of that seed, one after the other."""
    if source == "nv":
        return Philox(seed).normal
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def mixed(share, low, high):
    """Along spheres over dimension 1, for noises that are not alike."""
    low_unit, high_unit = low / low.norm(dim=1, keepdim=True), high / high.norm(dim=1, keepdim=True)
    angle = torch.acos((low_unit * high_unit).sum(1)).unsqueeze(1)
    return torch.sin((1 - share) * angle) / angle.sin() * low + torch.sin(share * angle) / angle.sin() * high


def webui(shape, seed, source, variation=None, small=None, ensd=0):
    """(initial noise, a function that draws what comes behind it) of one picture; small: (h, w) of another one's noise."""
    own, form = draws(seed, source), (shape[0], *(small or shape[1:]))
    first = draws(seed, source)(form) if small else own(form)
    if variation:
        first = mixed(variation[1], first, draws(variation[0], source)(form))
    if small:
        whole, (top, left) = own(shape), ((shape[1] - form[1]) // 2, (shape[2] - form[2]) // 2)
        whole[:, top : top + form[1], left : left + form[2]] = first
        first = whole
    return first, draws(seed + ensd, source) if ensd else own


def by_hand(painter, request, first, later, sampler, shape=(4, 8, 8)):
    """The picture that this sampler makes of this noise, without the painter's own."""
    knobs, _ = painter.settle(request)
    spread = painter.levels(knobs)
    conditions = painter.parts.condition([request.prompt, ""]).split([1, 1])
    estimate = guided(painter.denoise, classifier_free(*conditions, knobs.guidance), spread.steps)
    start = first[None] * float(spread[0].sigma)
    walk = SAMPLERS[sampler](estimate, start, spread, lambda here, there: later(shape)[None])
    with torch.inference_mode():
        return to_pixels(painter.codec.decode(integrate(walk)))[0]


CASES = [
    {},
    {"variation": (77, 0.3)},
    {"ensd": 31337},
    {"small": (6, 4)},
    {"variation": (78, 0.6), "small": (4, 6), "ensd": 31337},
]


@pytest.mark.parametrize("source", ["cpu", "nv"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "+".join(case) or "plain")
def test_a_painted_picture_has_the_web_interfaces_noise(case, source):
    """Initial noise and fresh draws: the same pixels as by hand, whatever else is in the batch."""
    painter, seed = tiny_painter(zero=False, schedule="scaled_linear"), random.randrange(2**32)
    variation, small = case.get("variation"), case.get("small")
    knobs = {"seeding": "a1111", "noise": source, "sampler": "euler_a", "ensd": case.get("ensd", 0), "steps": 5}
    knobs["seed_resize_from"] = f"{small[1] * 2}x{small[0] * 2}" if small else ""  # two pixels are one place here
    asked = Request(prompt=WORDS[0], seed=seed, knobs=knobs)
    if variation:
        asked = asked.model_copy(update={"variation": Variation(seed=variation[0], strength=variation[1])})
    wanted = by_hand(painter, asked, *webui((4, 8, 8), seed, source, **case), "euler_a")
    got = painted(painter, asked)[0]
    assert np.array_equal(got.pixels, wanted)
    beside = painted(painter, Request(prompt=WORDS[1], seed=5, knobs=knobs), asked)[1]
    assert abs(beside.pixels.astype(int) - wanted).max() <= 1
    others = {**knobs, "seeding": "giverny", "ensd": 0, "seed_resize_from": ""}
    ours = painted(painter, asked.model_copy(update={"knobs": others}))[0].pixels
    assert np.array_equal(ours, wanted) == (not case)  # a seed alone means the same


def test_a_second_pass_of_the_web_interface_begins_with_its_seeds_again():
    """From pure noise (strength 1, zero terminal SNR) nothing of the first pass is left: it is as if there were none."""
    painter, seed = tiny_painter(), random.randrange(2**32)
    knobs = {"seeding": "a1111", "sampler": "euler_a", "ensd": 7, "upscale": 1.5, "upscale_strength": 1.0}
    asked = Request(prompt=WORDS[0], seed=seed, knobs=knobs, variation=Variation(seed=3, strength=0.4))
    shape = (4, 12, 12)
    wanted = by_hand(painter, asked, *webui(shape, seed, "cpu", (3, 0.4), None, 7), "euler_a", shape)
    assert np.array_equal(painted(painter, asked)[0].pixels, wanted)


@pytest.mark.parametrize("later", ["cpu", "nv"])
def test_a_batch_of_comfyui_is_one_draw(later):
    """Every draw is of the whole batch; a row alone is the same picture as among the others."""
    painter, seed = tiny_painter(zero=False, schedule="scaled_linear"), random.randrange(2**32)
    knobs = {"seeding": "comfyui", "noise": later, "sampler": "euler_a", "steps": 5}
    asked = requests_for([WORDS[0]], 3, seed, knobs=knobs)
    assert [(r.seed, r.batch) for r in asked] == [(seed, BatchRow(row=k, of=3)) for k in range(3)]
    pictures = painted(painter, *asked)
    for k in range(3):
        first = draws(seed, "cpu")
        start = first((3, 4, 8, 8))[k]
        behind = first if later == "cpu" else draws(seed, "nv")
        wanted = by_hand(painter, asked[k], start, lambda shape, draw=behind, k=k: draw((3, *shape))[k], "euler_a")
        assert np.array_equal(painted(painter, asked[k])[0].pixels, wanted)
        assert abs(pictures[k].pixels.astype(int) - wanted).max() <= 1
    again, differing = repaint(painter, pictures[1].provenance)
    assert not differing and np.array_equal(again.pixels, pictures[1].pixels)
    alone = Request(prompt=WORDS[0], seed=seed, knobs={"sampler": "euler", "steps": 5})
    same = alone.model_copy(update={"knobs": {**alone.knobs, "seeding": "comfyui"}})
    assert np.array_equal(painted(painter, alone)[0].pixels, painted(painter, same)[0].pixels)  # one of one


def test_rows_of_a_batch_have_trees_of_their_own():
    streams = ComfyStreams([Place(5), Place(5, 1, 2), Place(5, 0, 2), Place(6, 1, 2)])
    assert streams.seeds[0] == streams.seeds[2] == 5 and len(set(streams.seeds)) == 3
    knobs = {"seeding": "comfyui", "sampler": "dpm++ sde", "steps": 3}
    two = painted(tiny_painter(), *requests_for([WORDS[0]], 2, 5, knobs=knobs))
    assert not np.array_equal(two[0].pixels, two[1].pixels)


# -- requests ---------------------------------------------------------------------------------------------------------------


def test_several_pictures_are_numbered_as_their_program_does():
    varied = {"variation": Variation(seed=7, strength=0.5)}
    ours = several(Request(seed=3, **varied), 3)
    assert [(r.seed, r.variation.seed) for r in ours] == [(3, 7), (4, 7), (5, 7)]
    theirs = several(Request(seed=3, knobs={"seeding": "a1111"}, **varied), 3)
    assert [(r.seed, r.variation.seed) for r in theirs] == [(3, 7), (3, 8), (3, 9)]
    off = several(Request(seed=3, knobs={"seeding": "a1111"}, variation=Variation(seed=7, strength=0)), 2)
    assert [r.seed for r in off] == [3, 4]
    assert [r.seed for r in several(Request(seed=2**63 - 1, knobs={"seeding": "a1111"}), 2)] == [2**63 - 1, 0]
    rows = several(Request(seed=3, knobs={"seeding": "comfyui"}, batch=BatchRow(of=4)), 2)
    assert [(r.seed, r.batch) for r in rows] == [(3, BatchRow(row=0, of=4)), (3, BatchRow(row=1, of=4))]
    one = Request(seed=3, knobs={"seeding": "comfyui"}, batch=BatchRow(row=2, of=4))
    assert several(one, 1) == [one]
    with pytest.raises(ValueError, match="row 4"):
        BatchRow(row=4, of=4)


@pytest.mark.parametrize(
    ("knobs", "parts", "said"),
    [
        ({"ensd": 1}, {}, "seeding=a1111"),
        ({"seed_resize_from": "16x16", "seeding": "comfyui"}, {}, "seeding=a1111"),
        ({"seed_resize_from": "16"}, {}, "seed_resize_from"),
        ({"seed_resize_from": "0x16"}, {}, "seed_resize_from"),
        ({}, {"batch": BatchRow(row=1, of=2)}, "seeding comfyui"),
        ({"seeding": "comfyui"}, {"variation": Variation(seed=1, strength=0.5)}, "variation"),
    ],
)
def test_what_a_program_does_not_know_is_an_error(knobs, parts, said):
    (event,) = tiny_painter().paint([Request(knobs=knobs, **parts)])
    assert isinstance(event, Failed) and said in event.reason
    with pytest.raises(InputError):
        tiny_painter().settle(Request(knobs=knobs, **parts))


# -- files ------------------------------------------------------------------------------------------------------------------

LINE = (
    "Steps: 4, Sampler: Euler a, CFG scale: 2, Seed: 11, Size: 16x24, Model hash: 6ce0161689, Variation seed: 12, "
    "Variation seed strength: 0.25, Seed resize from: 16x16, ENSD: 31337, Version: v1.10.1"
)


def test_the_words_of_the_web_interface_ask_for_its_noise():
    made = like(parse_infotext(f"a\n{LINE}"), DiffusionKnobs, CAN)
    assert made.variation == Variation(seed=12, strength=0.25)
    wanted = {"seeding": "a1111", "ensd": 31337, "seed_resize_from": "16x16", "noise": "nv"}
    assert {name: made.knobs[name] for name in wanted} == wanted
    assert not made.notes
    for nothing in ("-1x-1", "0x0"):
        line = LINE.replace("Seed resize from: 16x16", f"Seed resize from: {nothing}")
        assert like(parse_infotext(f"a\n{line}"), DiffusionKnobs, CAN).knobs["seed_resize_from"] == ""
    novel = parse_infotext("a\nSteps: 4, ENSD: 31337, Seed: 1").model_copy(update={"dialect": "novelai"})
    assert like(novel, DiffusionKnobs, CAN).knobs["seeding"] == "a1111"
    # and a picture of ours says it in the same words
    again = parse_infotext(infotext(ours(made.request())))
    assert {k: again.settings[k] for k in ("Variation seed", "Seed resize from", "ENSD", "Seeds")} == {
        "Variation seed": "12", "Seed resize from": "16x16", "ENSD": "31337", "Seeds": "a1111",
    }  # fmt: skip
    assert like(again, DiffusionKnobs, CAN).request().knobs.items() >= wanted.items()


def ours(request):
    """Where a picture of ours of that request came from."""
    knobs = DiffusionKnobs(**request.knobs).model_dump()
    return provenance(knobs, noise=knobs["noise"]).model_copy(update={"request": request})


def test_a_graph_of_comfyui_asks_for_its_noise():
    several_at_once = graph()
    several_at_once["5"]["inputs"]["batch_size"] = 4
    several_at_once["3"]["inputs"]["sampler_name"] = "euler_ancestral"
    found = from_comfy(several_at_once)
    made = like(found, DiffusionKnobs, CAN)
    assert found.settings["Batch size"] == "4" and made.batch == BatchRow(row=0, of=4)
    assert made.knobs["seeding"] == "comfyui" and made.knobs["noise"] == "cpu"
    notes = {note.key: str(note) for note in made.notes}
    assert "-n 4" in notes["Batch size"] and any("device it was painted on" in str(note) for note in made.notes)
    assert [r.batch.row for r in several(made.request(), 4)] == [0, 1, 2, 3]
    alone = like(from_comfy(graph()), DiffusionKnobs, CAN)
    assert alone.batch is None and alone.knobs["seeding"] == "comfyui" and not any("device" in str(n) for n in alone.notes)
    told = infotext(ours(made.request().model_copy(update={"batch": BatchRow(row=2, of=4)})))
    assert "Seeds: comfyui" in told and "Batch size: 4, Batch pos: 2" in told
    assert like(parse_infotext(told), DiffusionKnobs, CAN).batch == BatchRow(row=2, of=4)


def events(*args, code=0):
    result = CliRunner().invoke(cli, [*map(str, args), "--json"])
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.output.splitlines()]


def test_paint_and_reproduce_take_them_from_a_file(tiny_runs, tmp_path):
    """A picture painted by the rules, in a file as that program would have written it, comes back pixel by pixel."""
    from giverny.assembly import open_painter

    tiny = tiny_runs["diffusion"]
    painter = open_painter(tiny)
    knobs = {"steps": 4, "sampler": "euler_a", "guidance": 2.0}
    asked = Request(prompt="a red circle", seed=11, size=(16, 24), knobs=knobs)
    first, later = webui((4, 12, 8), 11, "nv", (12, 0.25), (8, 8), 31337)
    wanted = by_hand(painter, asked, first, later, "euler_a", (4, 12, 8))
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", f"a red circle\n{LINE}")
    Image.fromarray(wanted).save(tmp_path / "a.png", pnginfo=chunks)
    found = events("reproduce", tmp_path / "a.png", "-m", tiny)[-1]
    assert found["same"] is True and not found["differs"].keys() & {"Variation seed", "ENSD", "Seed resize from"}
    events("paint", "--like", tmp_path / "a.png", "-m", tiny, "-o", tmp_path / "out", "-n", 2)
    two = [np.asarray(Image.open(tmp_path / "out" / f"0000{k}.png")) for k in range(2)]
    assert np.array_equal(two[0], wanted)
    first, later = webui((4, 12, 8), 11, "nv", (13, 0.25), (8, 8), 31337)  # the same seed, the next variation
    other = by_hand(painter, asked, first, later, "euler_a", (4, 12, 8))
    assert abs(two[1].astype(int) - other).max() <= 1
