"""giverny choose: measure the checkpoints of a run, and take the best of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .voice import Voice, speaks


@click.command("choose")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--by", default="KID", show_default=True, help="The score that decides, such as FID, MiFID or 'judged all'.")
@click.option("--against", "reference", default=None, metavar="DATA", help="Real pictures.  [what the recipe learns to paint]")
@click.option("--split", default="train", show_default=True, help="Part of a named set that is the reference.")
@click.option(
    "--features", default="auto", show_default=True, help="What looks: inception, vgg, pixels, clip:MODEL, or a judge."
)
@click.option("--judge", default=None, metavar="MODEL", help="A classifier that says whether pictures show what they ought to.")
@click.option("--prompt", default=None, help="What pictures ought to show, such as 'a painting'.  [the recipe's prompts]")
@click.option("--measures", "kinds", default="kid,fid,mifid", show_default=True, help="Which, by commas.")
@click.option("--dry-run", is_flag=True, help="Measure, and leave the run's model as it is.")
@click.option("--device", default="auto", show_default=True)
@speaks
def command(
    run: Path,
    by: str,
    reference: str | None,
    split: str,
    features: str,
    judge: str | None,
    prompt: str | None,
    kinds: str,
    dry_run: bool,
    device: str,
    voice: Voice,
) -> None:
    """Measure the checkpoints of RUN, a training with loop.checkpoints, and make the best of them its model. Translators are
    given the pictures that the run held out. What is found lies in checkpoints.json and on the run's page.

    \b
    giverny choose runs/monet-cyclegan --features monet-a --judge monet-b --prompt "a painting"
    """
    from ..assembly.choosing import Run

    opened = Run(run, device)
    wanted = tuple(filter(None, (kind.strip() for kind in kinds.split(","))))
    looked = []
    with voice.progress("measuring", None) as move:
        telling = lambda text, done, total: move(done, text=text, total=total)  # noqa: E731
        for one in opened.look(by, reference, split, features, judge, prompt, wanted, telling):
            looked.append(one)
            voice.event("checkpoint", step=one.step, scores={score.name: score.value for score in one.scores})
    choice = opened.chosen(looked, by)
    if not voice.as_json:
        voice.table([_row(one, one is choice.best) for one in looked], ["", "step", *(s.name for s in looked[0].scores)])
    mean, spread = choice.late
    voice.say(f"best {by} at step {choice.best.step}; over the last third of the run {mean:.4g} ± {spread:.2g}")
    for told in choice.foretold[:3]:
        voice.say(f"{told.quantity} goes with it: rank correlation {told.rho:.2f} over {told.rows} checkpoints, p {told.p:.2g}")
    if not dry_run:
        voice.say(f"taken: {opened.take(choice)}")
    voice.event("chosen", step=choice.best.step, by=by, value=choice.best.value(by), taken=not dry_run)


def _row(one: Any, best: bool) -> dict[str, Any]:
    return {"": "*" if best else "", "step": one.step, **{score.name: f"{score.value:.4g}" for score in one.scores}}
