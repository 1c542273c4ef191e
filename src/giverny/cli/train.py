"""giverny train: a recipe becomes a model."""

from __future__ import annotations

import math
import shlex
import signal
from pathlib import Path
from time import monotonic
from typing import Any

import click

from .voice import Voice, seconds, speaks

INTERRUPTED, PAUSED = 130, 75  # exit status, as shells and sysexits.h have it


@click.command("train")
@click.argument("recipe")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one entry, such as denoiser.loop.batch=64.")
@click.option(
    "--budget", default=None, metavar="TIME", help="Time for all stages together, such as 30m.  [default: the recipe's]"
)
@click.option("--preset", default=None, metavar="NAME", help="The recipe's settings of that name, such as gpu.")
@click.option(
    "--pause-after", default=None, metavar="TIME", help="Stop after so long as Ctrl-C would, for machines lent by the hour."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Run folder.  [default: runs/<name of the recipe>]")
@click.option("--resume", is_flag=True, help="Go on where the run folder stands; start if there is nothing.")
@click.option("--dry-run", is_flag=True, help="Say steps, seconds, memory and disk from a short probe; train nothing.")
@click.option("--device", default="auto", show_default=True)
@speaks
def command(
    recipe: str,
    settings: tuple[str, ...],
    budget: str | None,
    preset: str | None,
    pause_after: str | None,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    device: str,
    voice: Voice,
) -> None:
    """Train RECIPE, a TOML file or the name of one that ships. Ctrl-C stops after the current step; --resume goes on.

    Exit status 75 says that it has paused (--pause-after) and wants to be called again with --resume.

    \b
    giverny train fashion-mnist --dry-run
    giverny train own-pictures --set data.source=my/pictures --budget 30m
    giverny train wardrobe --preset gpu --pause-after 9m --resume
    torchrun --nproc-per-node 2 -m giverny train fashion-mnist
    """
    from ..assembly import load_recipe, probe_training, train

    until = monotonic() + seconds(pause_after) if pause_after else math.inf
    checked: Any = load_recipe(recipe, settings, preset)
    time = seconds(budget) if budget else None
    if dry_run:
        rows = probe_training(checked, time, device)
        voice.table(rows, ["stage", "parameters", "steps", "seconds a step", "time", "memory", "disk"])
        return
    run = out or Path("runs") / checked.name
    bars: dict[str, Any] = {}
    with voice.progress("preparing", None) as move, polite_stop() as stopped:
        for told in train(checked, run, time, resume, device):
            report = told.report
            if report is None:
                voice.event("stage", stage=told.stage, happened=told.happened)
                voice.say(f"{told.stage}: {told.happened}")
                continue
            bars["last"] = report
            shown = " ".join(f"{k} {v:.4g}" for k, v in report.values.items() if k in ("loss", "error", "above_least"))
            move(report.step, total=report.total, text=f"{told.stage} {shown}")
            if report.note or report.step == 1:
                voice.event(
                    "step",
                    stage=told.stage,
                    step=report.step,
                    total=report.total,
                    seconds=report.seconds,
                    **report.values,
                )
                voice.say(f"{told.stage}: step {report.step} of {report.total}, {report.seconds:.0f} s, {report.note or shown}")
            if stopped() or monotonic() > until:
                break
        else:
            voice.event("trained", model=run / "model", report=run / "report.html")
            voice.say(f"model in {run / 'model'}, report in {run / 'report.html'}")
            return
    voice.event("stopped" if stopped() else "paused", run=run)
    given = {"--preset": preset, "--budget": budget, "--pause-after": pause_after}
    options = [part for name, value in given.items() if value is not None for part in (name, value)]
    changed = [part for setting in settings for part in ("--set", setting)]
    again = shlex.join(["giverny", "train", recipe, *changed, *options, "--out", str(run), "--resume"])
    voice.say(f"stopped; everything is saved. Go on with: {again}")
    raise SystemExit(INTERRUPTED if stopped() else PAUSED)


class polite_stop:
    """The first Ctrl-C asks for a stop after the current step; the second stops at once."""

    def __enter__(self) -> Any:
        self.asked = False
        self.before = signal.signal(signal.SIGINT, self._ask)
        return lambda: self.asked

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self.before)
