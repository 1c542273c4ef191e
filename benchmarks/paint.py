"""Painting speed beside the diffusers pipeline: the same network, the same weights, steps and precision, in one run.

    python benchmarks/paint.py [--model NAME] [--steps 20] [--runs 15] [--cold]

Each lives in a process of its own, as its users run it, and they paint in turn (A B A B ...), so that a machine whose speed
drifts drifts for all; minima and medians are printed. diffusers is given its text vectors ready-made (prompt_embeds); our
time includes reading the words. Ratios are of equal precision, float32 or bfloat16. All guide at every step, but for one:
giverny as the model's card has it, where guidance may rest while noise is highest and serve for several steps.
Pictures have the model's own size, rounded up where a side is not divisible by 8, as the peer's pipeline wants it: 28 x 28
is painted as 32 x 32. The pipeline holds a KL autoencoder and a U-Net that attends to the words; other models are refused.
What diffusers' own networks lack is added to them in as many operations as it takes: a pooled text vector is handed to the
U-Net as its class embedding, an autoencoder's patches and straight path follow its decoder.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from giverny.assembly import family, find_model
from giverny.autoencoders.kl import KLRecipe
from giverny.base.contracts import Request
from giverny.base.errors import InputError
from giverny.base.recipe import check
from giverny.base.runtime import describe_machine
from giverny.checkpoints.native import read_card
from giverny.denoisers.unet import UNetRecipe
from giverny.painters.diffusion.recipe import ModelRecipe
from giverny.pipelines.text2image import collect

PROMPT = "a red dress"
OWN = "giverny, its own guidance"
COARSE = ", bfloat16"  # of the networks, the sampler stays exact; of all, for diffusers
CONTESTANTS = ("giverny", OWN, "giverny (plain backend)", "diffusers", "giverny" + COARSE, OWN + COARSE, "diffusers" + COARSE)


def held_by_peer(recipe: ModelRecipe) -> tuple[UNetRecipe, KLRecipe]:
    """The networks of a model that a StableDiffusionPipeline can hold. Raises InputError for any other."""
    net, autoencoder = recipe.denoiser, recipe.autoencoder
    if not isinstance(net, UNetRecipe) or not net.cross:
        given = f"{net.family!r} with conditioning {net.conditioning!r}"
        raise InputError("a model whose denoiser is a U-Net with cross-attention", given)
    if not isinstance(autoencoder, KLRecipe):
        given = "none" if autoencoder is None else repr(autoencoder.family)
        raise InputError("a model with a KL autoencoder", given, "diffusers' VQModel does not fit into its pipeline.")
    return net, autoencoder


def peer(parts: Any) -> Any:
    """A StableDiffusionPipeline around diffusers' own networks, filled with our weights."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

    net, kl = held_by_peer(parts.recipe)
    straight, patch = parts.autoencoder.straight, kl.patch

    class Told(UNet2DConditionModel):  # type: ignore[misc]
        pooled: Any = None  # of the words, one row for each of the batch

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, class_labels=self.pooled, **kwargs)

    class Whole(AutoencoderKL):  # type: ignore[misc]
        def decode(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            pixels = torch.nn.functional.pixel_shuffle(super().decode(z, return_dict=False)[0], patch)
            if straight is not None:
                pixels = pixels + torch.nn.functional.pixel_shuffle(straight.outward(z), straight.factor)
            return (pixels,)

    heads = tuple(net.heads_at(i) for i in range(len(net.channels)))
    unet = Told(
        in_channels=net.in_channels, out_channels=net.out_channels,
        block_out_channels=net.channels, layers_per_block=net.blocks, attention_head_dim=heads,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in net.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in net.attention[::-1]),
        cross_attention_dim=net.context_width, norm_num_groups=net.groups, transformer_layers_per_block=net.depth,
        class_embed_type="projection" if net.additive else None,
        projection_class_embeddings_input_dim=net.pooled_width if net.additive else None,
    )  # fmt: skip
    unet.load_state_dict(parts.network.state_dict())
    vae = Whole(
        in_channels=kl.picture_channels * patch**2, out_channels=kl.picture_channels * patch**2,
        latent_channels=kl.latent_channels,
        block_out_channels=kl.channels, layers_per_block=kl.blocks, norm_num_groups=kl.groups,
        down_block_types=("DownEncoderBlock2D",) * len(kl.channels),
        up_block_types=("UpDecoderBlock2D",) * len(kl.channels), mid_block_add_attention=kl.middle_attention,
        scaling_factor=parts.recipe.scale.scale,
    )  # fmt: skip
    vae.load_state_dict({k: v for k, v in parts.autoencoder.state_dict().items() if not k.startswith("straight.")})
    scheduler = DPMSolverMultistepScheduler(prediction_type="v_prediction", trained_betas=None)
    pipe = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=None, tokenizer=None, unet=unet.eval(), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.vae_scale_factor = kl.factor
    return pipe


def painted_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height rounded up to what the peer's pipeline takes."""
    return -(-size[0] // 8) * 8, -(-size[1] // 8) * 8


def contestant(name: str, model: str | None, steps: int, count: int) -> Callable[[], Any]:
    """One painting of `count` pictures, ready to be run again and again. Models are open, nothing else is made before."""
    coarse, name = name.endswith(COARSE), name.removesuffix(COARSE)
    precision = torch.bfloat16 if coarse else torch.float32
    backend = "auto" if name in ("giverny", OWN) else "plain"
    folder = find_model(*([model] if model else []))
    card = read_card(folder)
    painter: Any = family(card.family).open(folder, card, torch.device("cpu"), precision, backend)
    width, height = size = painted_size(card.size)
    if name != "diffusers":
        every_step = {"guidance": 2.0, "guidance_from": 0.0, "guidance_to": 1.0, "guidance_every": 1}
        knobs = {"steps": steps, "sampler": "dpm++ 2m", **({} if name == OWN else every_step)}
        requests = [Request(prompt=PROMPT, seed=i, size=size, id=str(i), knobs=knobs) for i in range(count)]
        return lambda: collect(painter.paint(requests), requests)
    pipe = peer(painter.parts)
    told, untold = (painter.parts.encoder.encode([text]) for text in (PROMPT, ""))
    words, none = told.vectors.to(precision), untold.vectors.to(precision)
    pipe.to(precision)
    if painter.parts.recipe.denoiser.additive:
        pooled = torch.cat([untold.pooled.expand(count, -1), told.pooled.expand(count, -1)])
        pipe.unet.pooled = pooled.to(precision)

    def theirs() -> Any:
        with torch.inference_mode():
            return pipe(
                prompt_embeds=words.expand(count, -1, -1), negative_prompt_embeds=none.expand(count, -1, -1),
                num_inference_steps=steps, guidance_scale=2.0, height=height, width=width, output_type="np",
            )  # fmt: skip

    return theirs


def serve(pipe: Connection, name: str, model: str | None, steps: int, count: int) -> None:
    """A process of its own: paint once per message, answer with the seconds it took."""
    paint = contestant(name, model, steps, count)
    paint()
    pipe.send(0.0)
    while pipe.recv():
        began = time.perf_counter()
        paint()
        pipe.send(time.perf_counter() - began)


def race(names: Sequence[str], model: str | None, steps: int, count: int, runs: int) -> dict[str, list[float]]:
    """Seconds of each contestant's runs, taken in turn."""
    context, ends, workers = get_context("spawn"), {}, []
    for name in names:
        ends[name], far = context.Pipe()
        workers.append(context.Process(target=serve, args=(far, name, model, steps, count), daemon=True))
        workers[-1].start()
        far.close()  # so that a contestant that dies is heard of
        ends[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs):
        for name, end in ends.items():
            time.sleep(0.05)  # threads of the one before stop looking for work
            end.send(True)
            seconds[name].append(end.recv())
    for end in ends.values():
        end.send(False)
    for worker in workers:
        worker.join()
    return seconds


def cold(model: str | None, steps: int) -> list[float]:
    """Seconds of `giverny paint "a red dress" -n 4` as a process of its own."""
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            command = [sys.executable, "-m", "giverny", "paint", PROMPT, "-n", "4", "--steps", str(steps), "-o", folder]
            command += ["-m", model] if model else []
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--cold", action="store_true", help="time the command line from a cold start instead")
    args = parser.parse_args()
    machine = describe_machine()
    print(f"torch {machine['torch']}, {torch.get_num_threads()} threads, {machine['cpu_capability']}, {args.steps} steps")
    if args.cold:
        seconds = cold(args.model, args.steps)
        print(f'giverny paint "{PROMPT}" -n 4, cold: min {min(seconds):.2f} s, median {statistics.median(seconds):.2f} s')
        return
    card = read_card(find_model(*([args.model] if args.model else [])))
    try:
        held_by_peer(check(ModelRecipe, card.recipe, card.name))
    except InputError as error:
        raise SystemExit(str(error)) from error
    width, height = painted_size(card.size)
    print(f"{card.name}, {width} x {height}")
    print(f"{'pictures':>8} {'':26} {'min ms/picture':>15} {'median':>9} {'diffusers / this, minima':>25} {'medians':>8}")
    for count in (1, 4):
        seconds = race(CONTESTANTS, args.model, args.steps, count, args.runs)
        for name, values in seconds.items():
            theirs = seconds["diffusers" + COARSE * name.endswith(COARSE)]
            least, middle = min(theirs), statistics.median(theirs)
            low, mid = min(values), statistics.median(values)
            ours = f"{count:>8} {name:26} {1e3 * low / count:>15.1f} {1e3 * mid / count:>9.1f}"
            print(f"{ours} {least / low:>25.2f} {middle / mid:>8.2f}")


if __name__ == "__main__":
    main()
