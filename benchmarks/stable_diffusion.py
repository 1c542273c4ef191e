"""Stable Diffusion 1.5 at full size beside the diffusers pipeline: seconds a step, peak memory, cold start.

    python benchmarks/stable_diffusion.py [--size 256] [--steps 4] [--runs 5] [--only speed memory cold] [--folder PLACE]

The checkpoint has the real architecture (1.07 billion parameters, 4.3 GB) and random weights: seconds and bytes do not depend
on what a network has learnt. It is written once by diffusers, into PLACE, or anew into a folder that is removed. Its words
are as many as CLIP's, and made up.

speed: each contestant lives in a process of its own and they paint in turn (A B A B ...), one picture guided at every step,
by Euler's method. A step lasts from one report of progress to the next; the first of each painting, which waits for the
words, is left out. memory: the most that a process has held while it opened the model and painted, files mapped into it
included. cold: from starting Python until the model is open, and to the end of the first step, in turn; the files are in the
system's cache for all.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice, pairwise, product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

NAMES = ("giverny float32", "diffusers float32", "giverny bfloat16", "diffusers bfloat16")
RACES = NAMES[:2], NAMES[1:]  # not all at once, since each holds its weights
PROMPT = "a painting of a garden"
COLD_RUNS = 3
MERGES = 49152 - 256 - 2

Moments = Callable[[int], list[float]]  # steps -> when each of them was done, by the clock


def write_words(folder: Path) -> None:
    """As many words as CLIP has, made up of pairs of letters."""
    from giverny.text.vocabulary import byte_letters, of_merges

    letters = byte_letters()
    pairs = list(islice(product((*letters, *(x + "</w>" for x in letters)), repeat=2), MERGES))
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(of_merges(pairs).symbols()[0], ensure_ascii=False), "utf-8")
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(p) for p in pairs) + "\n", "utf-8")


def write_model(folder: Path) -> None:
    """A diffusers folder of the architecture of Stable Diffusion 1.5."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    write_words(folder / "words")
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the other defaults are those of this model
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
        )
    )
    noise = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False,
        set_alpha_to_one=False, prediction_type="epsilon",
    )  # fmt: skip
    words = CLIPTokenizer.from_pretrained(folder / "words")
    StableDiffusionPipeline(vae, text, words, unet, noise, None, None, requires_safety_checker=False).save_pretrained(folder)


def contestant(name: str, folder: Path, size: int) -> Moments:
    """Opens the model; the result paints one picture."""
    import torch

    program, precision = name.split()
    if program == "giverny":
        from giverny.assembly import open_painter
        from giverny.base.contracts import Failed, Progress, Request

        painter = open_painter(folder, "cpu", precision)
        knobs = {"sampler": "euler", "guidance": 7.0}

        def ours(steps: int) -> list[float]:
            moments = []
            request = Request(prompt=PROMPT, seed=1, size=(size, size), id="one", knobs={**knobs, "steps": steps})
            with closing(painter.paint([request])) as events:
                for event in events:
                    if isinstance(event, Failed):
                        raise SystemExit(event.reason)
                    if isinstance(event, Progress):
                        moments.append(time.monotonic())
            return moments

        return ours
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, precision), safety_checker=None)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)

    def theirs(steps: int) -> list[float]:
        moments: list[float] = []

        def note(pipe: Any, step: int, time_of: Any, told: dict[str, Any]) -> dict[str, Any]:
            moments.append(time.monotonic())
            return told

        pipe(PROMPT, height=size, width=size, num_inference_steps=steps, guidance_scale=7.0, callback_on_step_end=note)
        return moments

    return theirs


def serve(pipe: Connection, name: str, folder: Path, size: int, steps: int) -> None:
    """A process of its own: paint once per message, answer with the seconds of each step but the first."""
    paint = contestant(name, folder, size)
    paint(2)
    pipe.send([])
    while pipe.recv():
        pipe.send([after - before for before, after in pairwise(paint(steps))])


def speed(names: Sequence[str], folder: Path, size: int, steps: int, runs: int) -> None:
    context, ends, processes = get_context("spawn"), {}, []
    for name in names:
        ends[name], far = context.Pipe()
        processes.append(context.Process(target=serve, args=(far, name, folder, size, steps), daemon=True))
        processes[-1].start()
        far.close()  # so that a contestant that dies is heard of
        ends[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs):
        for name, end in ends.items():
            time.sleep(0.05)  # threads of the one before stop looking for work
            end.send(True)
            seconds[name] += end.recv()
    for end, process in zip(ends.values(), processes, strict=True):
        end.send(False)
        process.join()
    show("seconds a step", seconds)


def memory(names: Sequence[str], folder: Path, size: int) -> None:
    show("GiB at most", {name: fresh("peak", name, folder, size) for name in names})


def cold(names: Sequence[str], folder: Path, size: int) -> None:
    opened: dict[str, list[float]] = {name: [] for name in names}
    first: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(COLD_RUNS):
        for name in names:
            began = time.monotonic()  # of one clock for all processes of a machine
            moments = fresh("cold", name, folder, size)
            opened[name].append(moments[0] - began)
            first[name].append(moments[1] - began)
    show("seconds from a cold start to an open model", opened)
    show("seconds from a cold start to the first step", first)


def fresh(what: str, name: str, folder: Path, size: int) -> list[float]:
    """Asked of a new Python: [GiB at most] after two steps ("peak"), or [when the model was open, when the first step was done]
    by the clock ("cold")."""
    command = [sys.executable, __file__, "--ask", what, name, "--folder", str(folder), "--size", str(size)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: list[float] = json.loads(said.splitlines()[-1])
    return found


def answer(what: str, name: str, folder: Path, size: int) -> list[float]:
    paint = contestant(name, folder, size)
    if what == "cold":
        return [time.monotonic(), paint(1)[0]]
    paint(2)
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]


def show(title: str, values: dict[str, list[float]]) -> None:
    print(f"\n{title:44} {'minimum':>8} {'median':>8}   diffusers float32, bfloat16 / this (minima)")
    least = {name: min(found) for name, found in values.items()}
    for name, found in values.items():
        theirs = (least.get(f"diffusers {precision}") for precision in ("float32", "bfloat16"))
        ratios = "  ".join(f"{other / least[name]:8.2f}" if other else f"{'':8}" for other in theirs)
        print(f"{name:44} {least[name]:>8.2f} {statistics.median(found):>8.2f}   {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, default=None, help="where the checkpoint is, or is to be")
    add("--size", type=int, default=256)
    add("--steps", type=int, default=4)
    add("--runs", type=int, default=5)
    add("--only", nargs="+", choices=("speed", "memory", "cold"), default=["speed", "memory", "cold"])
    add("--ask", nargs=2, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        print(json.dumps(answer(*args.ask, args.folder, args.size)))
        return
    from giverny.base.runtime import describe_machine

    machine = describe_machine()
    print(f"torch {machine['torch']}, {machine['cpu_capability']}, {args.size} x {args.size}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "model"
        if not (folder / "model_index.json").is_file():
            write_model(folder)
        if "speed" in args.only:
            for names in RACES:
                speed(names, folder, args.size, args.steps, args.runs)
        if "memory" in args.only:
            memory(NAMES, folder, args.size)
        if "cold" in args.only:
            cold(NAMES, folder, args.size)


if __name__ == "__main__":
    main()
