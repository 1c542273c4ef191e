"""giverny doctor: what this machine can do, and what is missing."""

from __future__ import annotations

import os
from importlib.util import find_spec

import click

from .voice import Voice, speaks

OPTIONAL = {  # package -> what it is for
    "tensorboard": "looking at training curves (`pip install tensorboard`)",
    "diffusers": "a reference in tests and benchmarks (`pip install giverny[dev]`)",
    "transformers": "a reference in tests (`pip install giverny[dev]`)",
}


@click.command("doctor")
@speaks
def command(voice: Voice) -> None:
    """Check this installation: device, threads, precision, backends, models, data, optional packages."""
    from ..assembly import model_folders, models, recipes
    from ..base.runtime import describe_machine, pick_device, pick_precision
    from ..data.catalog import CATALOG, find
    from ..painters.diffusion.backends import BACKENDS

    device = pick_device()
    here = [name for name, entry in CATALOG.items() if find(entry)]
    facts = {
        **describe_machine(),
        "paints on": f"{device} in {str(pick_precision(device)).removeprefix('torch.')}",
        "backends": ", ".join(name for name, works in BACKENDS.items() if works(device)),
        "models": ", ".join(models()) or "none: train one, or set GIVERNY_MODELS",
        "model folders": ", ".join(str(f) for f in model_folders()),
        "recipes": ", ".join(recipes()),
        "data sets here": ", ".join(here) or "none (see `giverny data`)",
        "GIVERNY_DATA": os.environ.get("GIVERNY_DATA", "not set"),
    }
    missing = {name: why for name, why in OPTIONAL.items() if find_spec(name) is None}
    voice.event("doctor", **facts, missing=missing)
    for name, value in facts.items():
        voice.say(f"{name:>16}  {value}")
    for name, why in missing.items():
        voice.say(f"{'not installed':>16}  {name}: {why}")
    if not missing:
        voice.say(f"{'not installed':>16}  nothing: all optional packages are here")
