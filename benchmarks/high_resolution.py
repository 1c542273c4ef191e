"""What pictures of 512 x 512 cost: a step of every stage, painting one, and decoding whole or in tiles.

    python benchmarks/high_resolution.py                                  # both recipes: steps, then painting
    python benchmarks/high_resolution.py --recipe landscapes-512 --preset gpu
    python benchmarks/high_resolution.py --decode --sides 512 1024        # whole and in tiles: seconds, memory, difference

A stage's memory is the most that the process has held since it began. That of painting and decoding is counted in tensors
alone (`LiveBytes`), in a run of its own that is not timed. For painting, a model is trained one step a stage: speed and
memory do not depend on what it has learnt. Decoding is of photographs of `landscape-photos`, enlarged, by the trained
autoencoder of a model that ships; differences are between tiles and the whole, in 255ths of the range of pixels.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from giverny.assembly import load_recipe, open_painter, open_source, probe_training, train
from giverny.autoencoders.tiled import FEATHER, MARGIN, LiveBytes, TiledCodec
from giverny.base.contracts import Request
from giverny.base.images import fit, to_tensor
from giverny.base.runtime import describe_machine, pick_device
from giverny.data.head import Head
from giverny.pipelines.text2image import collect

RECIPES = ("landscapes-512", "landscapes-512-f32")
STAGES = ("autoencoder", "text", "denoiser", "decoder")
PICTURES = (3, 100, 200)  # of the set
RUNS, MIB = 3, 2**20


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """What comes of it in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def taken(work: Callable[[], Any], runs: int = 1) -> tuple[float, float, Any]:
    """(least seconds of so many runs, MiB of tensors at once, what came of it). A first run counts bytes, untimed."""
    with LiveBytes() as counted:
        work()
    least = math.inf
    for _ in range(runs):
        began = time.perf_counter()
        made = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - began)
    return least, counted.most / MIB, made


def steps(name: str, preset: str | None, device: str) -> list[dict[str, Any]]:
    """What `giverny train NAME --dry-run` says."""
    return probe_training(load_recipe(name, preset=preset), device=device)


def brief_model(name: str, preset: str | None, device: str, run: Path) -> None:
    """A model with the recipe's networks, as they are after a step."""
    stages = [stage for stage in STAGES if getattr(load_recipe(name), stage) is not None]
    short = [f"{stage}.loop.{entry}" for stage in stages for entry in ("steps=1", "batch=1", "precision=float32")]
    recipe: Any = load_recipe(name, ["data.validation=1", "knobs.steps=1", *short], preset)
    for _ in train(recipe, run, device=device, source=Head(open_source(recipe.data.source), 4)):
        pass


def painting(run: Path, device: str, count: int, tile: int | None) -> tuple[float, float]:
    """(seconds, MiB) of painting one picture, decoded whole or in tiles."""
    painter: Any = open_painter(run, device=device)
    if tile is not None:
        painter.codec = TiledCodec(painter.codec, tile)
    requests = [Request(prompt="", seed=1, id="one", knobs={"steps": count})]
    seconds, memory, _ = taken(lambda: collect(painter.paint(requests), requests))
    return seconds, memory


@torch.inference_mode()
def report_decoding(model: str, sides: Sequence[int], tile: int, ways: Sequence[str], device: str) -> None:
    codec, source = open_painter(model, device=device).codec, open_source("landscape-photos")  # type: ignore[attr-defined]
    shown = f"{len(PICTURES)} photographs, tiles of {tile} latents, feather {FEATHER}"
    print(f"\ndecoder of {model}, {codec.factor} pixels a latent; {shown}")
    print(f"{'side':>6} {'margin':>7} {'statistics':>11} {'seconds':>9} {'MiB':>7} {'mean off':>9} {'most off':>9}")
    for side in sides:
        pixels = torch.stack([to_tensor(fit(source.read(index).pixels, (side, side), "crop")) for index in PICTURES])
        latents = [codec.encode(x[None].to(pick_device(device))) for x in pixels]
        whole = [taken(lambda x=x: codec.decode(x), RUNS) for x in latents]
        print_row(side, "", "whole", whole, whole)
        for way in ways:
            for margin in (0, MARGIN):
                tiled = TiledCodec(codec, tile, margin, FEATHER, way)  # type: ignore[arg-type]
                runs = 1 if way == "exact" else RUNS
                print_row(side, margin, way, [taken(lambda x=x, c=tiled: c.decode(x), runs) for x in latents], whole)


def print_row(side: int, margin: int | str, way: str, made: Sequence[Any], whole: Sequence[Any]) -> None:
    off = [(ours - theirs).abs() * 127.5 for (*_, ours), (*_, theirs) in zip(made, whole, strict=True)]
    mean, most = sum(float(x.mean()) for x in off) / len(off), max(float(x.max()) for x in off)
    seconds, memory = min(row[0] for row in made), max(row[1] for row in made)
    print(f"{side:>6} {margin:>7} {way:>11} {seconds:>9.2f} {memory:>7.0f} {mean:>9.2f} {most:>9.1f}", flush=True)


def report_recipe(name: str, preset: str | None, device: str, count: int, tile: int) -> None:
    recipe: Any = load_recipe(name, preset=preset)
    factor = recipe.autoencoder.network.factor
    wide, high = recipe.data.size
    print(f"\n{name}{' ' + preset if preset else ''}: {wide} x {high}, latents {wide // factor} x {high // factor} x "
          f"{recipe.autoencoder.network.latent_channels}")  # fmt: skip
    columns = ("stage", "parameters", "batch", "seconds a step", "memory so far")
    print("".join(f"{title:>16}" for title in columns))
    for row in alone(steps, name, preset, device):
        batch = getattr(recipe, row["stage"]).loop.batch
        cells = (row["stage"], row["parameters"], batch, f"{row['seconds a step']:.3f}", row["memory"])
        print("".join(f"{cell:>16}" for cell in cells), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        alone(brief_model, name, preset, device, run)
        for how, given in (("whole", None), (f"in tiles of {tile} latents", tile)):
            seconds, memory = alone(painting, run, device, count, given)
            print(f"painting one, {count} steps, decoded {how}: {seconds:.2f} s, {memory:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", nargs="+", default=list(RECIPES), metavar="NAME")
    add("--preset", default=None, help="of the recipes, such as gpu")
    add("--device", default="auto")
    add("--steps", type=int, default=5, help="of painting")
    add("--decode", action="store_true", help="measure decoding instead")
    add("--model", default="wardrobe", help="whose decoder, with --decode")
    add("--sides", type=int, nargs="+", default=[512], help="of pictures, in pixels, with --decode")
    add("--statistics", nargs="+", default=["tile", "thinned", "exact"], help="of tiles, with --decode")
    add("--tile", type=int, default=32, help="latents along a side of a tile")
    args = parser.parse_args()
    machine = describe_machine()
    print(f"torch {machine['torch']}, {pick_device(args.device)}, {torch.get_num_threads()} threads")
    if args.decode:
        report_decoding(args.model, args.sides, args.tile, args.statistics, args.device)
        return
    for name in args.recipe:
        report_recipe(name, args.preset, args.device, args.steps, args.tile)


if __name__ == "__main__":
    main()
