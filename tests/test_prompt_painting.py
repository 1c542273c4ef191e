"""Prompts with syntax, painted: by a tiny painter of drawn weights, and by a model of the shelf."""

import re

import numpy as np
import pytest
import torch

from giverny.assembly import open_painter
from giverny.base.contracts import Branch, Condition, Failed, NoiseLevel, Request, Toward
from giverny.painters.diffusion.knobs import DiffusionKnobs
from giverny.painters.diffusion.told import Prompts
from giverny.steering.guidance import FixedPlan, StagedPlan, classifier_free, composed
from giverny.text.encoding import conditions, encode
from giverny.text.prompting import PromptSettings, prompt_plan
from tiny_painters import painted, requests, tiny_painter

A1111 = {"dialect": "a1111"}
LEVEL = NoiseLevel(torch.tensor(0.6), torch.tensor(0.8))


def pixels(painter, *asked, **knobs):
    return [p.pixels.astype(int) for p in painted(painter, *asked, **{**A1111, **knobs})]


def test_prompts_joined_by_and_are_branches():
    a, b, none = (Condition(pooled=torch.full((1, 1), v)) for v in (1.0, 2.0, 0.0))
    plan = composed([(a, 1.0), (b, -0.5)], none, 4.0, (0.0, 0.5))
    outside = [(x.condition, x.weight) for x in plan.at(0, 5, LEVEL)]
    assert outside == [(a, 1.0), (b, -0.5), (none, 0.5)]
    inside = plan.at(0, 5, NoiseLevel(torch.tensor(0.9), torch.tensor(0.1)))
    assert [(x.condition, x.weight) for x in inside] == [(a, 4.0), (b, -2.0), (none, -1.0)]
    one = composed([(a, 1.0)], none, 4.0).at(0, 5, LEVEL)
    same = classifier_free(a, none, 4.0).at(0, 5, LEVEL)
    assert [(x.condition, x.weight) for x in one] == [(x.condition, x.weight) for x in same]
    assert [x.condition for x in composed([(a, 0.5), (b, 0.5)], none, 1.0).at(0, 5, LEVEL)] == [a, b]


def test_plans_follow_one_another():
    branches = [Branch(Condition(), float(i)) for i in range(3)]
    staged = StagedPlan((0, 2, 5), [FixedPlan((branch,)) for branch in branches])
    assert [staged.at(step, 8, LEVEL)[0].weight for step in range(8)] == [0, 0, 1, 1, 1, 2, 2, 2]


def test_without_syntax_every_dialect_paints_the_same_to_the_bit():
    painter = tiny_painter()
    asked = [("a red circle", 1), ("two big blue squares", 2), ("", 3)]
    usual = painted(painter, *asked, dialect="plain")
    for dialect in ("a1111", "a1111-old", "comfyui"):
        again = painted(painter, *asked, dialect=dialect)
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(usual, again, strict=True))
    long = "a red circle two big blue squares a green ring"
    assert len(painter.parts.encoder.tokenizer.split(long)[0]) > 8
    cut, whole = painted(painter, (long, 1), dialect="plain")[0], painted(painter, (long, 1), **A1111)[0]
    assert np.array_equal(cut.pixels, whole.pixels), "one window, as ever"
    assert not np.array_equal(cut.pixels, painted(painter, (long, 1), windows=3, **A1111)[0].pixels)


def test_what_is_told_is_what_the_plan_says():
    """The painter's conditions against the same put together by hand."""
    painter = tiny_painter()
    prompt, steps = "a (red:1.7) [circle:ring:2]", 5
    knobs = DiffusionKnobs(dialect="a1111", guidance=3.0, steps=steps)
    plan = Prompts(painter.parts, knobs, [Request(prompt=prompt)]).plans(torch.device("cpu"), torch.float32)(steps, None)
    coder = painter.parts.encoder
    (read,) = encode([prompt_plan(prompt, "", PromptSettings(dialect="a1111"), coder.tokenizer, steps)], coder)
    seen = []
    for step in range(steps):
        (positive,), negative = conditions([read.at(step)], hide_padding=True)
        told, against = plan.at(step, steps, LEVEL)
        assert (told.weight, against.weight) == (3.0, -2.0)
        assert torch.equal(told.condition.vectors, positive.vectors) and torch.equal(told.condition.mask, positive.mask)
        assert torch.equal(against.condition.vectors, negative.vectors)
        seen.append(told)
    assert [told is seen[0] for told in seen] == [True, True, True, False, False], "the same objects while nothing changes"


def test_syntax_moves_the_picture_as_it_says():
    painter = tiny_painter()
    red, blue, weighted, one, late, both = pixels(
        painter,
        *((p, 4) for p in ("a red circle", "a blue circle", "a (red:3) circle", "a (red:1) circle", "a [red:blue:99] circle")),
        ("a red circle AND a blue circle :0", 4),
        guidance=6.0,
    )
    assert np.abs(red - blue).max() > 2 and np.abs(red - weighted).max() > 2
    for same in (one, late, both):
        assert np.abs(red - same).max() <= 1
    assert np.abs(red - pixels(painter, ("a red circle", 4), guidance=6.0, clip_skip=1)[0]).max() <= 1


def test_a_picture_does_not_depend_on_what_is_painted_beside_it():
    painter = tiny_painter()
    asked = [(p, 5) for p in ("a red circle", "a [red|blue] circle", "a (red:1.5) ring", "a ring AND a circle:.5", "[a:b:2]")]
    together = pixels(painter, *asked, guidance_every=3, steps=6, windows=2)
    for one, whole in zip(asked, together, strict=True):
        assert np.abs(pixels(painter, one, guidance_every=3, steps=6, windows=2)[0] - whole).max() <= 1, one


def test_a_way_between_two_prompts_with_syntax_ends_at_either():
    painter = tiny_painter()
    here, there = "a (red:2) circle", "a [blue:green:2] ring, a red circle, a green ring"
    asked = [Request(prompt=here, seed=3, toward=Toward(prompt=there, share=s)) for s in (0.0, 0.5, 1.0)]
    start, middle, end = pixels(painter, *asked, windows=3, guidance=6.0)
    alone = pixels(painter, (here, 3), (there, 3), windows=3, guidance=6.0)
    assert np.abs(start - alone[0]).max() <= 1 and np.abs(end - alone[1]).max() <= 1
    assert np.abs(middle - start).max() > 0 and np.abs(middle - end).max() > 0


def test_the_second_pass_goes_on_counting():
    painter = tiny_painter()
    second = {"upscale": 2.0, "upscale_strength": 1.0, "guidance": 6.0}
    first, late, red, blue = pixels(
        painter, *((p, 6) for p in ("a [red:blue:.99] circle", "a [red:blue:1.99] circle", "a red circle", "a blue circle")),
        **second,
    )  # fmt: skip
    assert np.abs(first - blue).max() <= 1, "from pure noise nothing of the first pass is left, and it was blue by then"
    assert np.abs(late - red).max() <= 1 and np.abs(first - late).max() > 1


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (dict(prompt="a <lora:x:0.5> ring"), "without adapters.*lora 'x'"),
        (dict(prompt="a ring", knobs={"clip_skip": 2}), "a clip_skip from 1 to 1"),
        (dict(prompt="a AND b", toward=Toward(prompt="c", share=0.5)), "without AND"),
        (dict(prompt="a", toward=Toward(prompt="b AND c", share=0.5)), "without AND"),
    ],
)
def test_what_cannot_be_done_is_said(request_, said):
    (failed,) = tiny_painter().paint(requests(Request(**request_), **A1111))
    assert isinstance(failed, Failed) and re.search(said, failed.reason), failed
    (fine, *_) = tiny_painter().paint(requests(Request(prompt="a <lora:x:0.5> AND ring")))
    assert not isinstance(fine, Failed), "in a plain dialect it is text"


def test_clip_is_led_by_words_without_syntax():
    parts, knobs = tiny_painter().parts, DiffusionKnobs(dialect="a1111")
    asked = [Request(prompt=r"a (red:1.3) [ring:circle:3] \(x\)", toward=Toward(prompt="((b))", share=0.5))]
    (spoken,) = Prompts(parts, knobs, asked).spoken
    assert spoken.prompt == "a red circle (x)" and spoken.toward.prompt == "b"


@pytest.mark.xdist_group("shelf")
def test_a_red_dress_redder_on_the_shelf():
    """What the card's dialect says: weights act, and prompts without syntax are as they were."""
    painter = open_painter("wardrobe")
    asked = [("a red dress", 3), ("a (red:1.3) dress", 3), ("a [red:blue:.3] dress", 3)]
    usual, redder, turned = (p.pixels.astype(int) for p in painted(painter, *asked, steps=8))
    plain = painted(painter, asked[0], steps=8, dialect="plain")[0].pixels.astype(int)
    assert np.abs(usual - plain).max() <= 2
    assert 0.2 < np.abs(usual - redder).mean() < 40 and np.abs(usual - turned).mean() > 1
