"""What pictures of 512 x 512 cost: a step of every stage, painting one, and decoding whole or in tiles.

    python benchmarks/high_resolution.py                                  # both recipes: steps, then painting
    python benchmarks/high_resolution.py --recipe landscapes-512 --preset gpu
    python benchmarks/high_resolution.py --decode --sides 512 1024        # whole and in tiles: seconds, memory, difference

What is timed runs in a process of its own; memory is the most that this process held (of a GPU: the most that tensors
took there), above what it held before. For painting, a model is trained one step a stage: speed and memory do not depend
on what it has learnt. Decoding is of photographs of `landscape-photos`, enlarged, by the trained autoencoder of a model
that ships; differences are between tiles and the whole, in 255ths of the range of pixels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from giverny.assembly import load_recipe, open_painter, open_source, probe_training, train
from giverny.autoencoders.tiled import FEATHER, MARGIN, TiledCodec
from giverny.base.contracts import Request
from giverny.base.images import fit, to_tensor
from giverny.base.runtime import describe_machine, peak_memory, pick_device
from giverny.data.head import Head
from giverny.pipelines.text2image import collect

RECIPES = ("landscapes-512", "landscapes-512-f32")
STAGES = ("autoencoder", "text", "denoiser", "decoder")
WAYS: tuple[tuple[int, str], ...] = ((0, "tile"), (MARGIN, "tile"), (0, "thinned"), (MARGIN, "thinned"), (MARGIN, "exact"))
PICTURES = (3, 100, 200)  # of the set
MIB = 2**20


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """What comes of it in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def held(device: torch.device) -> int:
    """The most bytes so far, of a GPU's tensors or of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    """(seconds, MiB above what was held before, what came of it)"""
    before, began = held(device), time.perf_counter()
    made = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, (held(device) - before) / MIB, made


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
    """(seconds a step and picture, MiB) of painting one picture, decoded whole or in tiles."""
    painter: Any = open_painter(run, device=device)
    if tile is not None:
        painter.codec = TiledCodec(painter.codec, tile)
    requests = [Request(prompt="", seed=1, id="one", knobs={"steps": count})]
    seconds, memory, _ = timed(lambda: collect(painter.paint(requests), requests), pick_device(device))
    return seconds, memory


@torch.no_grad()
def decoding(model: str, side: int, tile: int, way: tuple[int, str] | None, device: str) -> list[tuple[float, ...]]:
    """(seconds, MiB, mean and largest difference from the whole) of each photograph; way: margin and statistics of tiles,
    None decodes whole."""
    painter: Any = open_painter(model, device=device)
    place, codec = pick_device(device), painter.codec
    tiled = TiledCodec(codec, tile, way[0], FEATHER, way[1]) if way is not None else codec  # type: ignore[arg-type]
    source, rows = open_source("landscape-photos"), []
    codec.decode(codec.encode(torch.zeros(1, 3, 64, 64, device=place)))  # libraries are loaded
    pixels = [to_tensor(fit(source.read(index).pixels, (side, side), "crop"))[None].to(place) for index in PICTURES]
    latents = [torch.cat([codec.encode(p) for p in x.split(1)]) for x in pixels]
    for i, x in enumerate(latents):
        seconds, memory, made = timed(lambda x=x: tiled.decode(x), place)
        rows.append((seconds, memory if i == 0 else 0.0, made))
    found = []
    for x, (seconds, memory, made) in zip(latents, rows, strict=True):
        apart = (made - codec.decode(x)).abs() * 127.5
        found.append((seconds, memory, float(apart.mean()), float(apart.max())))
    return found


def report_decoding(model: str, sides: Sequence[int], tile: int, device: str) -> None:
    factor = open_painter(model).parts.codec.factor  # type: ignore[attr-defined]
    shown = f"{len(PICTURES)} photographs, tiles of {tile} latents, feather {FEATHER}"
    print(f"\ndecoder of {model}, {factor} pixels a latent; {shown}")
    print(f"{'side':>6} {'margin':>7} {'statistics':>11} {'seconds':>9} {'MiB':>7} {'mean off':>9} {'most off':>9}")
    for side in sides:
        for way in (None, *WAYS):
            found = alone(decoding, model, side, tile, way, device)
            seconds, memory = min(row[0] for row in found), found[0][1]
            apart = sum(row[2] for row in found) / len(found), max(row[3] for row in found)
            how = f"{way[0]:>7} {way[1]:>11}" if way is not None else f"{'whole':>19}"
            print(f"{side:>6} {how} {seconds:>9.2f} {memory:>7.0f} {apart[0]:>9.2f} {apart[1]:>9.1f}", flush=True)


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
    add("--tile", type=int, default=32, help="latents along a side of a tile")
    args = parser.parse_args()
    machine = describe_machine()
    print(f"torch {machine['torch']}, {pick_device(args.device)}, {torch.get_num_threads()} threads")
    if args.decode:
        report_decoding(args.model, args.sides, args.tile, args.device)
        return
    for name in args.recipe:
        report_recipe(name, args.preset, args.device, args.steps, args.tile)


if __name__ == "__main__":
    main()
