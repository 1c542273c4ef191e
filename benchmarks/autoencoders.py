"""What kind of autoencoder is worth its training time: each of several trained equally long, then judged on new pictures.

    python benchmarks/autoencoders.py --data runs/data/wardrobe --minutes 5                 # six of them: half an hour
    python benchmarks/autoencoders.py --data runs/data/wardrobe --minutes 5 --only "kl straight" "kl critic"

All have the encoder and decoder of a recipe (by default `wardrobe`) and train as its first stage does. What differs is how
latents are kept (KL: numbers, VQ: codes that learn by averages), whether a straight path runs beside the networks, and how
many places there are. A code says far less than a place's numbers: codebooks are therefore also tried at 16 x 16 places,
with patches half as large, whose steps take longer. A run that was stopped goes on when it is called again.

PSNR is that of the mean squared error over all pictures, pixel values from 0 to 1, without noise on the latents. A
codebook's perplexity says how many codes, evenly used, would say as much; it ought to be above 0.3 of the codebook. Since
most of a picture is white ground, it is also told of the places alone where there is something.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import log2
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from giverny.assembly import load_recipe
from giverny.autoencoders.vq import Codes, VQAutoencoder
from giverny.base.contracts import Source, StageJob
from giverny.base.errors import InputError, choose
from giverny.base.files import atomic_write
from giverny.base.images import png_bytes, to_pixels
from giverny.base.runtime import pick_device
from giverny.base.sheet import grid
from giverny.base.ssim import ssim
from giverny.data.catalog import open_named
from giverny.data.loader import Loader
from giverny.painters.diffusion.recipe import Autoencoder, DiffusionRecipe
from giverny.painters.diffusion.stages import DiffusionWorkshop
from giverny.pipelines.train import read_artefact, read_note, stage_folder, train_stages
from giverny.training.log import read_log
from giverny.training.parallel import World

STAGE = "autoencoder"
GATE = 0.3  # share of the codebook that a perplexity ought to exceed
GROUND = 250 / 127.5 - 1  # a pixel lighter than this in every channel is the white that things lie on
SHOWN = 12  # pictures on the sheet
BATCH = 64
NET, NOT_STRAIGHT = f"{STAGE}.network", f"{STAGE}.network.straight=false"


def codebook(codes: int, width: int, *more: str) -> tuple[str, ...]:
    """Settings of a codebook whose codes have so many numbers; the denoiser's channels have to agree."""
    sizes = {f"{NET}.codes": codes, f"{NET}.latent_channels": width,
             "denoiser.network.in_channels": width, "denoiser.network.out_channels": width}  # fmt: skip
    return (f"{NET}.family=vq", *(f"{key}={value}" for key, value in sizes.items()), *more)


VARIANTS: dict[str, tuple[str, ...]] = {  # what is other than in the recipe
    "kl straight": (),
    "kl": (NOT_STRAIGHT,),
    "vq straight": codebook(2048, 8),
    "vq": codebook(2048, 8, NOT_STRAIGHT),
    "vq 16x16 straight": codebook(1024, 4, f"{NET}.patch=2"),
    "vq 16x16": codebook(1024, 4, f"{NET}.patch=2", NOT_STRAIGHT),
}
FURTHER = {  # only where they are named
    "kl critic": (f"{STAGE}.critic.picture_channels=3", f"{STAGE}.critic.channels=[32, 64, 128]"),
    "kl perceptual": (f"{STAGE}.objective.perceptual=0.1",),
}


@dataclass
class OnlyAutoencoder:
    """Of a diffusion model's workshop the autoencoder's stage; the CLIP that it may look with is that of another run."""

    inner: DiffusionWorkshop
    clip: Path | None

    def shares(self) -> dict[str, float]:
        return {STAGE: 1.0}

    def jobs(self) -> Iterator[StageJob]:
        for job in self.inner.jobs():
            if job.name == STAGE:
                yield job
                return
            found = read_artefact(stage_folder(self.clip, job.name), job.identity) if self.clip is not None else None
            if found is None:
                wanted = "a run with a finished CLIP of this recipe and data, for the perceptual term"
                raise InputError(wanted, str(self.clip or "none"), "Name it with --clip.")
            job.keep(found)


def train(
    recipe: DiffusionRecipe, source: Source, run: Path, seconds: float | None, clip: Path | None, device: torch.device
) -> Autoencoder:
    """The trained autoencoder; told as it goes."""
    workshop = DiffusionWorkshop(recipe, source, run / "cache", World(), device)
    only: Any = OnlyAutoencoder(workshop, clip)
    with closing(train_stages(only, run, seconds, True, World(), device)) as told:
        for event in told:
            if event.report is None or event.report.note:
                at = event.report
                note = f"step {at.step} of {at.total}, {at.seconds:.0f} s, {at.note}" if at is not None else event.happened
                print(f"  {note}", flush=True)
    assert workshop.autoencoder is not None
    return workshop.autoencoder


@torch.inference_mode()
def judge(network: Autoencoder, pixels: Tensor, device: torch.device) -> tuple[dict[str, float], Tensor]:
    """What it keeps of pictures (N, C, H, W) in [-1, 1], and its reconstructions, on the CPU."""
    means, again = [], []
    for part in pixels.split(BATCH):
        means.append(network.encode(part.to(device)).mean)
        again.append(network.decode(means[-1]).clamp(-1, 1).cpu())
    made, latents = torch.cat(again), torch.cat(means)
    likeness = torch.cat([ssim(a, b) for a, b in zip(made.split(BATCH), pixels.split(BATCH), strict=True)])
    values = {"psnr": -10 * ((made - pixels) / 2).square().mean().log10().item(), "ssim": likeness.mean().item()}
    if isinstance(network, VQAutoencoder):
        shows = -F.max_pool2d(-pixels.amin(1, keepdim=True), network.recipe.factor) < GROUND  # (N, 1, h, w): not all white
        busy = latents.movedim(1, -1)[shows[:, 0].to(device)][..., None, None]  # (n, D, 1, 1)
        whole, part = (Codes(x, network.quantize) for x in (latents, busy))
        values |= {"perplexity_share": whole.figures()["perplexity_share"].item(),
                   "perplexity_share_of_things": part.figures()["perplexity_share"].item(),
                   "codes_used": whole.indices.unique().numel() / network.recipe.codes}  # fmt: skip
    return values, made


def facts(network: Autoencoder, size: tuple[int, int], run: Path) -> dict[str, Any]:
    """What a latent is, how large the network is, and what its training took."""
    sizes, folder = network.recipe, stage_folder(run, STAGE)
    wide, high = (side // sizes.factor for side in size)
    kept = f"{wide * high * sizes.latent_channels} floats"
    if isinstance(network, VQAutoencoder):
        kept = f"{wide * high * log2(network.recipe.codes):.0f} bits"
    note = read_note(folder) or {}
    times = [record["time/step"] for record in read_log(folder / "metrics.jsonl") if "time/step" in record]
    return {
        "latent": f"{wide}x{high}x{sizes.latent_channels}",
        "kept": kept,
        "parameters": sum(p.numel() for p in network.parameters()),
        **{name: note[name] for name in ("steps", "seconds", "precision", "batch")},
        "seconds_per_step": median(times),
    }


COLUMNS = {"latent": ("latent", ""), "kept": ("kept", ""), "parameters": ("parameters", ",d"), "steps": ("steps", ",d"),
           "seconds_per_step": ("s/step", ".3f"), "psnr": ("PSNR", ".2f"), "ssim": ("SSIM", ".4f"),
           "perplexity_share": ("perplexity", ".1%"), "perplexity_share_of_things": ("of things", ".1%"),
           "codes_used": ("codes used", ".1%")}  # fmt: skip


def report(rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{'':<18}" + "".join(f"{title:>12}" for title, _ in COLUMNS.values()))
    for row in rows:
        values = (f"{row[key]:>12{form}}" if key in row else f"{'-':>12}" for key, (_, form) in COLUMNS.items())
        gate = "" if "perplexity_share" not in row else "  holds" if row["perplexity_share"] > GATE else f"  below {GATE:.0%}"
        print(f"{row['name']:<18}" + "".join(values) + gate)


def main(arguments: Sequence[str] | None = None) -> None:
    known = {**VARIANTS, **FURTHER}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="a prepared set, with train.zip and test.zip")
    add("--minutes", type=float, default=5.0, help="to train each of them for")
    add("--steps", type=int, help="to train each of them for, instead")
    add("--only", nargs="+", default=list(VARIANTS), metavar="NAME", help=f"of: {', '.join(known)}")
    add("--recipe", default="wardrobe", help="whose networks and losses")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the recipe, for all of them")
    add("--clip", type=Path, metavar="RUN", help="a run with a finished CLIP, for kl perceptual")
    add("--out", type=Path, default=Path("runs/autoencoders"), help="where the runs are kept")
    add("--device", default="auto")
    add("--json", type=Path, metavar="FILE", help="write all numbers")
    add("--sheet", type=Path, metavar="FILE.png", help="reconstructions, row by row")
    args = parser.parse_args(arguments)
    device, length = pick_device(args.device), [f"{STAGE}.loop.steps={args.steps}"] if args.steps else []
    place = args.out / (f"{args.steps}-steps" if args.steps else f"{args.minutes:g}-minutes")
    recipes: dict[str, Any] = {
        name: load_recipe(args.recipe, [*args.set, *length, *known[choose(name, known, "variant")]]) for name in args.only
    }
    source, test = (open_named(args.data, split) for split in ("train", "test"))
    data = recipes[args.only[0]].data
    loader = Loader(test, size=data.size, channels=data.channels, batch=1, seed=0, fit=data.fit)
    pixels = loader.pixels_of(np.arange(len(test)))
    shown = np.linspace(0, len(test) - 1, min(SHOWN, len(test))).astype(int)
    pictures, rows = [to_pixels(pixels[shown])], []
    for name, recipe in recipes.items():
        print(name, flush=True)
        run = place / name.replace(" ", "-")
        network = train(recipe, source, run, None if args.steps else args.minutes * 60, args.clip, device)
        values, again = judge(network, pixels, device)
        rows.append({"name": name, **facts(network, data.size, run), **values})
        pictures.append(to_pixels(again[shown]))
        report(rows[-1:])
    report(rows)
    if args.json:
        told = {"data": [source.fingerprint, test.fingerprint], "pictures": len(test), "recipe": args.recipe, "rows": rows}
        atomic_write(args.json, json.dumps(told | {"set": args.set}, indent=2) + "\n")
    if args.sheet:
        beside = ["real", *(f"{row['name']}, {row['psnr']:.1f} dB" for row in rows)]
        cells = [picture for row in pictures for picture in row]
        atomic_write(args.sheet, png_bytes(grid(cells, columns=len(shown), row_labels=beside, scale=None)))


if __name__ == "__main__":
    main()
