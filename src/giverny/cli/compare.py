"""giverny compare: an experiment becomes a table and a page."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from .train import INTERRUPTED, polite_stop
from .voice import Voice, speaks


@click.command("compare")
@click.argument("experiment", required=False)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change one entry of the file, such as budget=2m.")
@click.option("-m", "--model", default=None, help="Without a file: the model whose settings are varied.")
@click.option("--prompt", "prompts", multiple=True, help="Without a file: what to paint; once for each prompt.")
@click.option("--axis", "axes", multiple=True, metavar="KNOB=A,B,C", help="Without a file: a setting and its values.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0), help="Without a file: once for each seed.  [0]")
@click.option("-n", "each", type=click.IntRange(1), default=1, show_default=True, help="Without a file: pictures of a prompt.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder of the page.  [runs/experiments/<name>]")
@click.option(
    "--store", type=click.Path(path_type=Path), default=None, help="What is trained and painted.  [runs/experiments/store]"
)
@click.option("--report-only", is_flag=True, help="Write the page of what there is; do no work.")
@click.option("--device", default="auto", show_default=True)
@speaks
def command(
    experiment: str | None,
    settings: tuple[str, ...],
    model: str | None,
    prompts: tuple[str, ...],
    axes: tuple[str, ...],
    seeds: tuple[int, ...],
    each: int,
    out: Path | None,
    store: Path | None,
    report_only: bool,
    device: str,
    voice: Voice,
) -> None:
    """Carry out EXPERIMENT, a TOML file or the name of one that ships: cells x seeds, each trained, painted with and measured.

    Nothing is done twice: Ctrl-C stops after the current step, and the same command goes on. Without a file, a grid over the
    settings of one model.

    \b
    giverny compare conditioning
    giverny compare -m wardrobe --prompt "a red dress" --axis guidance=1,3,5 --axis steps=5,10,20
    """
    from ..assembly import Bench, find_recipe
    from ..base.errors import InputError
    from ..compare.cells import read_experiment
    from ..compare.experiment import survey
    from ..compare.experiment_page import write_experiment_page
    from ..compare.grids import grid_of

    if (experiment is None) == (not axes):
        raise InputError("an experiment's file, or --axis with --model and --prompt", "both" if experiment else "neither")
    if experiment is not None:
        path = find_recipe(experiment, "experiments")
        recipe, name = read_experiment(path, settings), path.stem
    else:
        if not model or not prompts:
            raise InputError("--model and --prompt for a grid", "axes alone")
        recipe, name = grid_of(model, prompts, axes, seeds or (0,), each), f"{model}-grid"
    base = Path("runs") / "experiments"
    folder = out or base / re.sub(r"[^\w.-]+", "-", name)
    place = store or base / "store"
    bench = Bench(recipe, device, place / "stages")
    if report_only:
        table = survey(recipe, bench, place)
        voice.say(f"page in {write_experiment_page(table, place, folder)}")
        return
    carry_out(recipe, bench, place, folder, voice)


def carry_out(recipe: Any, bench: Any, place: Path, folder: Path, voice: Voice) -> Any:
    """Run an experiment and write its page; the table. place: the store. Leaves the program where it was stopped early."""
    from ..compare.experiment import Ended, Finished, Planned, Told, Working, run_experiment, survey
    from ..compare.experiment_page import write_experiment_page

    ended: Any = None
    stopped_early = False
    running = closing(run_experiment(recipe, bench, place, folder))
    with voice.progress("beginning", None) as move, polite_stop() as stopped, running as events:
        total = done = 0
        for event in events:
            if isinstance(event, Planned):
                total = event.rows
                voice.event("planned", cells=event.cells, rows=event.rows)
                voice.say(f"{event.cells} cells, {event.rows} rows")
            elif isinstance(event, Working):
                move(done, total=total, text=_at_work(event))
            elif isinstance(event, Finished) and event.fresh:
                voice.event("finished", kind=event.kind, unit=event.unit, seconds=event.seconds)
            elif isinstance(event, Told):
                done = event.done
                _tell(event, voice)
            elif isinstance(event, Ended):
                ended = event.table
            if stopped() and ended is None:
                stopped_early = True
                break
    table = ended if ended is not None else survey(recipe, bench, place)
    page = write_experiment_page(table, place, folder)
    for verdict in (*table.controls, *table.verdicts):
        voice.event("verdict", **verdict.model_dump(mode="json"))
    voice.event("table", csv=folder / "table.csv", page=page)
    judged = [table.instrument, *(verdict.sentence for verdict in table.verdicts)] if recipe.measure else []
    voice.say("\n".join([*judged, f"page in {page}"]))
    if stopped_early:
        voice.event("stopped")
        voice.say("stopped; everything is saved, and the same command goes on")
        raise SystemExit(INTERRUPTED)
    return table


def _at_work(event: Any) -> str:
    report = getattr(event.event, "report", None)
    stage = getattr(event.event, "stage", "")
    return f"{event.kind} {stage} {report.step} of {report.total}" if report is not None else f"{event.kind} {stage}".strip()


def _tell(event: Any, voice: Voice) -> None:
    row = event.row
    voice.event("row", **row.model_dump(mode="json"))
    said = ", ".join(f"{score.name} {score.value:.4g}" for score in row.scores) or row.reason or "painted"
    voice.say(f"{event.done} of {event.total}: {row.label}, seed {row.seed}: {said}")
