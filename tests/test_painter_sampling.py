"""The diffusion painter's settings of sampling: names, spacings, sources of noise, and what a picture's file says of them."""

import numpy as np
import pytest
import torch

from giverny.base.contracts import Failed, Request
from giverny.base.errors import InputError
from giverny.base.picture import infotext
from giverny.pipelines.reproduce import repaint
from giverny.sampling.brownian import TREE
from giverny.sampling.names import FACTS, SAMPLER_NAMES, SPACINGS
from giverny.sampling.schedules import levels
from tiny_painters import WORDS, painted, tiny_painter

RED, BLUE = (WORDS[0], 3), (WORDS[1], 4)


def pixels(painter, *asked, **knobs):
    return [picture.pixels for picture in painted(painter, *asked, **knobs)]


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_paints_over_its_usual_spacing_and_reproduces(name):
    painter = tiny_painter(schedule="scaled_linear", zero=False, dtype=torch.float64)
    knobs = {"sampler": FACTS[name].label, "spacing": "Automatic", "noise": "nv", "steps": 5}
    together = painted(painter, RED, BLUE, **knobs)
    alone = painted(painter, BLUE, **knobs)[0]
    assert abs(alone.pixels.astype(int) - together[1].pixels).max() <= 1
    again, differing = repaint(painter, together[0].provenance)
    assert not differing and abs(again.pixels.astype(int) - together[0].pixels).max() <= 1
    tree = FACTS[name].draws == "tree"
    assert alone.provenance.noise == ("nv+" + TREE if tree else "nv")
    said = infotext(alone.provenance)
    assert "RNG: NV" in said and (f"Brownian tree: {TREE}" in said) == tree


def test_combined_names_carry_their_spacing_and_leave_out_what_the_originals_do():
    painter = tiny_painter(schedule="scaled_linear", zero=False)
    table = painter.parts.denoiser.table

    def run(**knobs):
        return painter.levels(painter.settle(Request(knobs=knobs))[0])

    assert torch.equal(run(sampler="DPM++ 2M Karras", steps=9).sigma, levels(table, 9, "karras").sigma)
    assert torch.equal(run(sampler="DPM2 a Karras", steps=9).sigma, levels(table, 9, "karras", discard_penultimate=True).sigma)
    assert torch.equal(run(sampler="DPM++ 2M", spacing="SGM Uniform").sigma, levels(table, 4, "sgm_uniform").sigma)
    assert torch.equal(run(sampler="DPM++ 2M", spacing="automatic").sigma, levels(table, 4, "karras").sigma)
    assert torch.equal(run(sampler="Euler a", spacing="automatic").sigma, levels(table, 4, "normal").sigma)
    assert torch.equal(run(sampler="DDIM").sigma, levels(table, 4, "normal").sigma)  # as before there was "automatic"
    both, one = pixels(painter, RED, sampler="DPM++ 2M Karras"), pixels(painter, RED, sampler="dpmpp_2m", spacing="karras")
    assert np.array_equal(both, one)


def test_sources_of_noise_paint_different_pictures_and_the_usual_one_is_the_cpus():
    painter = tiny_painter()
    usual, cpu, nv = (pixels(painter, RED, **knobs)[0] for knobs in ({}, {"noise": "cpu"}, {"noise": "nv"}))
    assert np.array_equal(usual, cpu) and not np.array_equal(cpu, nv)


def test_eta_of_ancestral_samplers_is_a_knob_of_its_own():
    painter = tiny_painter()
    plain = pixels(painter, RED, sampler="euler")
    assert np.array_equal(pixels(painter, RED, sampler="euler a", eta_ancestral=0.0), plain)
    assert not np.array_equal(pixels(painter, RED, sampler="euler a"), plain)
    assert not np.array_equal(pixels(painter, RED, sampler="ddim", eta=1.0), plain)
    assert np.array_equal(pixels(painter, RED, sampler="ddim", eta_ancestral=0.0), plain)


def test_unknown_names_and_impossible_runs_fail_with_a_hint():
    painter = tiny_painter()
    for knobs, hint in (
        ({"sampler": "eular a"}, "euler_a"),
        ({"spacing": "karas"}, "karras"),
        ({"spacing": "lcm", "steps": 60}, "at most 50"),
        ({"noise": "gpu"}, "noise"),
    ):
        with pytest.raises(InputError, match=hint):
            painter.settle(Request(knobs=knobs))
        assert isinstance(next(painter.paint([Request(knobs=knobs)])), Failed)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_paints_from_pure_noise_too(spacing):
    painter = tiny_painter()
    shown = pixels(painter, RED, BLUE, spacing=spacing)
    assert shown[0].shape == (16, 16, 3) and not np.array_equal(*shown)
