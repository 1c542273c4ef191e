"""giverny measure: how good a model's pictures are, or those of a folder, beside real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from .voice import Voice, speaks


@click.command("measure")
@click.argument("what", metavar="MODEL|FOLDER")
@click.option(
    "--against", "reference", required=True, metavar="DATA", help="Real pictures: a named set, a folder or an archive."
)
@click.option("--split", default="test", show_default=True, help="Part of a named set that is the reference.")
@click.option(
    "-n", "count", type=click.IntRange(2), default=None, help="Pictures to paint, or to take of a folder.  [500, or all]"
)
@click.option(
    "--features", default="auto", show_default=True, help="What looks: inception, vgg, pixels, clip:MODEL, or a judge."
)
@click.option("--resizer", default="clean", show_default=True, help="How pictures come to its size; moves the numbers.")
@click.option(
    "--measures",
    "kinds",
    default="kid,fid,manifold,diversity,nearest",
    show_default=True,
    help="Which, by commas; also mifid, checkerboard.",
)
@click.option(
    "--words", default="auto", show_default=True, metavar="MODEL", help="Whose CLIP says how well words fit; 'none': nobody's."
)
@click.option("--judge", default=None, metavar="MODEL", help="A classifier that says whether pictures show what was asked for.")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    default=None,
    help="Prompts to paint, with categories.  [captions of DATA]",
)
@click.option(
    "--from", "given", default=None, metavar="DATA", help="Pictures that the model's begin from, such as photographs."
)
@click.option(
    "--strength", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="With --from: how much is painted anew."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first picture; the k-th has seed + k."
)
@click.option("--most", type=click.IntRange(2), default=None, help="Pictures of the reference to look at.  [all]")
@click.option(
    "--set", "settings", multiple=True, metavar="KNOB=VALUE", help="A setting of the painter other than the model's own."
)
@click.option(
    "--pairs",
    is_flag=True,
    help="Two folders: PSNR, SSIM, edges, change and, with its weights, LPIPS of pictures of one name.",
)
@click.option(
    "-o", "out", type=click.Path(path_type=Path), default=None, help="Write all scores with their conditions as JSON."
)
@click.option(
    "--sheet", type=click.Path(path_type=Path), default=None, help="Draw pictures above the reference pictures nearest to them."
)
@click.option("--card", is_flag=True, help="Put the scores on the model's card.")
@click.option("--device", default="auto", show_default=True)
@speaks
def command(
    what: str,
    reference: str,
    split: str,
    count: int | None,
    features: str,
    resizer: str,
    kinds: str,
    words: str,
    judge: str | None,
    prompts: Path | None,
    given: str | None,
    strength: float,
    seed: int,
    most: int | None,
    settings: tuple[str, ...],
    pairs: bool,
    out: Path | None,
    sheet: Path | None,
    card: bool,
    device: str,
    voice: Voice,
) -> None:
    """Measure a MODEL's pictures, or those of a FOLDER, against real ones. Every number comes with what it was measured under.

    \b
    giverny measure wardrobe --against wardrobe -n 1000
    giverny measure my/painted --against my/photographs --features inception --resizer pytorch
    giverny measure wardrobe --against wardrobe --prompts prompts.tsv --judge wardrobe-a
    giverny measure monet --against monet-paintings --from landscape-photos --measures kid,mifid
    """
    from ..assembly import open_measuring
    from ..base.errors import InputError
    from ..base.recipe import override

    work = open_measuring(
        what, reference, split, features, resizer, words, judge, prompts, count, seed, override({}, settings), device, given,
        strength,
    )  # fmt: skip
    if card and work.folder is None:
        raise InputError("a model, whose card takes the scores", f"{what}, a folder of pictures")
    for note in work.notes:
        voice.say(note)
        voice.event("note", text=note)
    with voice.progress("looking", None) as move:
        found = work.run(
            tuple(filter(None, (kind.strip() for kind in kinds.split(",")))), most, seed, pairs,
            lambda text, done, total: move(done, text=text, total=total),
        )  # fmt: skip
    rows = [_row(score) for score in found.scores]
    for score in found.scores:
        voice.event("score", **score.model_dump(mode="json"))
    if not voice.as_json:
        voice.table(rows, ["score", "value", "95 % interval", "floor", "n", "reference", "seen by"])
        if found.categories:
            voice.table(list(found.categories), list(found.categories[0]), "By category")
        for score in found.scores:
            if "histogram" in score.conditions:
                voice.table(_bars(score.conditions["histogram"]), ["change", "pictures", ""], "How far pictures changed")
                if named := ", ".join(score.conditions["named"]):
                    voice.say(
                        f"Untouched to the eye (changed by {score.conditions['up_to']} at most), least of all first: {named}"
                    )
        for note in dict.fromkeys(str(s.conditions["note"]) for s in found.scores if "note" in s.conditions):
            voice.say(f"Note: {note}.")
    if out is not None:
        from ..base.files import atomic_write

        kept = {"scores": [s.model_dump(mode="json") for s in found.scores], "categories": list(found.categories)}
        atomic_write(out, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        voice.say(f"all conditions in {out}")
    if sheet is not None:
        work.draw(found).save(sheet)
        voice.event("sheet", file=sheet)
        voice.say(f"nearest reference pictures in {sheet}")
    if card:
        work.put_on_card(found.scores)


def _bars(steps: list[list[float]], width: int = 40) -> list[dict[str, Any]]:
    """[from, to, how many] of each step of a histogram -> rows of a table with bars."""
    most = max(count for _, _, count in steps)
    return [
        {"change": f"{low:g} to {high:g}", "pictures": int(count), "": "█" * math.ceil(width * count / most)}
        for low, high, count in steps
    ]


def _row(score: Any) -> dict[str, Any]:
    told = score.conditions
    ends = "" if score.interval is None else "{:.4g} to {:.4g}".format(*score.interval)
    floor = told.get("floor_high", told.get("floor"))
    return {
        "score": score.name, "value": f"{score.value:.4g}", "95 % interval": ends,
        "floor": "" if floor is None else f"{floor:.4g}", "n": told.get("n"), "reference": told.get("n_reference", ""),
        "seen by": told.get("features", told.get("clip", told.get("judge", ""))),
    }  # fmt: skip
