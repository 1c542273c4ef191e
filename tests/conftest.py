"""What several test files need: threads kept low, the fixture data, a tiny model trained once per process."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores: more threads only wait for each other

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells leave it to what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path_factory):
    """Tests see the fixture data and empty places for models and notes, never the user's."""
    monkeypatch.setenv("GIVERNY_DATA", str(FIXTURES))
    monkeypatch.setenv("GIVERNY_MODELS", str(tmp_path_factory.getbasetemp() / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory):
    """{family: run folder} of every family's `tiny`, trained to the end once."""
    from giverny.assembly import families, family, train

    runs = {}
    for name in families():
        runs[name] = tmp_path_factory.mktemp("tiny") / name
        for _ in train(family(name).tiny(), runs[name]):
            pass
    return runs


@pytest.fixture(scope="session")
def trained_tiny(tiny_runs):
    """(painter, its CLIP) of the tiny diffusion model."""
    from giverny.assembly import open_clip, open_painter

    return open_painter(tiny_runs["diffusion"]), open_clip(tiny_runs["diffusion"])
