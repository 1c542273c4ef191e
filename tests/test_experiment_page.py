"""The report of an experiment: one whole page at any moment, whose every number is that of the table beside it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from scipy import stats

from giverny.base.contracts import Picture, Provenance, Request, Score
from giverny.base.images import png_bytes
from giverny.base.picture import write_picture
from giverny.base.recipe import to_toml
from giverny.checkpoints.native import Card, write_card
from giverny.compare.cells import Table
from giverny.compare.curves import CELL_INKS, cell_style, draw_cells, elapsed, words
from giverny.compare.experiment import Told, run_experiment, survey
from giverny.compare.experiment_page import brief, lines_of, plot_of, write_experiment_page
from giverny.compare.statistics import mean_interval
from giverny.compare.units import picture_path
from giverny.training.log import RunLog
from test_experiment import BASE, HALF, RATE, SCALE, Toy, read, run
from test_report import HOSTILE, Page

SHADE = """
[[axis]]
name = "shade"
values.dark = { knobs = ["shade=40"] }
values.light = { knobs = ["shade=160"] }
values.white = { knobs = ["shade=255"] }
"""


class Studio(Toy):
    """The toy with curves, a model's card and real pictures, `side` pixels high and a tint of its own for each."""

    side = 8

    def settle(self, cell: Any) -> Any:
        kept = tuple(knob for knob in cell.knobs if not knob.startswith("shade"))
        shade = [int(knob.partition("=")[2]) for knob in cell.knobs if knob.startswith("shade")]
        settled = super().settle(cell.model_copy(update={"knobs": kept}))
        return type(settled)(settled.model, {**settled.knobs, "shade": (shade or [80])[-1]}, settled.instruments)

    def train(self, training: Any, seed: int, budget: float, folder: Path) -> Any:
        place = folder / "stages" / "climb"
        place.mkdir(parents=True, exist_ok=True)
        log = RunLog(place)
        try:
            for step in super().train(training, seed, budget, folder):
                log.write(step, {"train/error": training["rate"] / step, "valid/error": 2 * training["rate"] / step})
                yield step
        finally:
            log.close()
        machine = {"device": "cpu", "threads": 1, "hours": seed, "stages": {"climb": {"steps": int(budget)}}}
        write_card(folder / "model", Card(family="toy", name="n", size=(8, 8), recipe={}, training=machine))

    def paint(self, model: Path, prompts: Any, knobs: Any, seeds: Any, folder: Path) -> Any:
        for number in super().paint(model, prompts, knobs, seeds, folder):
            pixels = np.random.default_rng(seeds[number]).integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)
            pixels[: self.side // 2] = knobs["shade"]
            told = Provenance(
                request=Request(prompt=prompts[number], seed=seeds[number]), knobs=dict(knobs), painter="toy", model="toy",
                fingerprint="f", versions={"giverny": "9.9.9"}, device="cpu", precision="float32", backend="plain", threads=1,
                batch=1,
            )  # fmt: skip
            write_picture(picture_path(folder, number), Picture(pixels, told))
            yield number

    def measure(self, pictures: Path, prompts: Any, seeds: Any, instruments: Any) -> list[Score]:
        told = {"n": len(seeds), "features": "toy", "floor": 0.25, "floor_of_95_percent": 1 / 3, "floor_kind": "a word"}
        return [s.model_copy(update={"conditions": told}) for s in super().measure(pictures, prompts, seeds, instruments)]


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path / "log")


def page_of(table: Table, folder: Path) -> Page:
    page = Page(write_experiment_page(table, folder / "store", folder / "out")).check()
    assert page.tags.count("html") == page.tags.count("body") == page.tags.count("h1") == 1
    assert all(name != "alt" or value for name, value in page.attributes)
    assert page.tags.count("img") == sum(name == "alt" for name, _ in page.attributes)
    assert sum(tag == "th" for tag in page.tags) == sum(name == "scope" for name, _ in page.attributes)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert str(folder) not in page.text  # paths of the machine are nobody's business
    return page


def shown(page: Page) -> list[list[tuple[float, str]]]:
    """[(exact number, what is read)] of the table, cell by cell."""
    table = page.html[page.html.index('<table class="answer">') : page.html.index('<section id="dots"')]
    found = re.compile(r'<data value="([^"]*)">([^<]*)</data>')
    return [[(float(exact), text) for exact, text in found.findall(part)] for part in table.split("<tbody>")[1:]]


def expected(folder: Path, measure: Sequence[str], seeds: int) -> list[list[float]]:
    """The same numbers from the file beside the page."""
    lines = list(csv.DictReader(io.StringIO((folder / "out" / "table.csv").read_text("utf-8"))))
    cells = []
    for at in range(0, len(lines), seeds):
        rows, numbers = lines[at : at + seeds], []
        floors = [{k: v for k, v in json.loads(row[f"{measure[0]} conditions"] or "{}").items() if k.startswith("floor")}
                  for row in rows]  # fmt: skip
        for name in measure:
            values = [float(row[name]) for row in rows if row[name]]
            if values:
                numbers += [fmean(values)] + ([stdev(values)] if len(values) > 1 else []) + [0.25, 1 / 3]
        spent = ("training seconds", "painting seconds")
        numbers += [fmean(known) for kind in spent if (known := [float(row[kind]) for row in rows if row[kind]])]
        for row, floor in zip(rows, floors, strict=True):
            for name in measure:
                if row[name]:
                    numbers += [float(row[f"{name}{part}"]) for part in ("", " low", " high")]
                    numbers += [value for value in floor.values() if not isinstance(value, str)]
            numbers += [float(row[kind]) for kind in spent if row[kind]]
        cells.append(numbers)
    return cells


# -- what the page says -------------------------------------------------------------------------------------------------


def test_every_number_is_that_of_the_table_beside_it(studio: Studio, tmp_path: Path) -> None:
    axis = RATE + 'values.burnt = ["burn=2"]\n'
    table = run(studio, BASE.replace('["height"]', '["spread", "height"]') + axis + HALF, tmp_path)
    page = page_of(table, tmp_path)
    found, wanted = shown(page), expected(tmp_path, ["spread", "height"], 3)
    assert [[exact for exact, _ in cell] for cell in found] == wanted and len(wanted) == 4
    assert [len(cell) for cell in found] == [2 * 4 + 2 + 3 * (2 * 5 + 2)] * 2 + [0] + [2 * 4 + 2 + 3 * (2 * 5 + 2)]
    assert all(text in (words(exact), elapsed(exact), brief(exact)) for cell in found for exact, text in cell)
    assert Table.model_validate_json((tmp_path / "out" / "table.json").read_text("utf-8")) == table


def test_the_answer_comes_first_and_nothing_is_hidden(studio: Studio, tmp_path: Path) -> None:
    table = run(studio, BASE + RATE + HALF, tmp_path)
    page = page_of(table, tmp_path)
    assert page.text.index("Two rates") < page.text.index("Does a higher rate") < page.text.index("What may be said")
    for said in [table.instrument, *(v.sentence for v in (*table.verdicts, *table.controls))]:
        assert said in page.text and page.text.index(said) < page.text.index("each seed")
    assert 'class="worth prose able"' in page.html and "not finished" not in page.text and "Missing" not in page.text
    assert all(row.fingerprint in page.text for row in table.rows)
    assert re.sub(r"\s+", " ", to_toml(table.experiment)).strip() in page.text
    assert "floor of 95 percent 0.3333" in page.text


def test_conditions_are_told_apart_into_what_differs_and_what_is_shared(studio: Studio, tmp_path: Path) -> None:
    page = page_of(run(studio, BASE + RATE + SCALE, tmp_path), tmp_path)
    differ, shared = page.text[page.text.index("What differs") :].split("What all share")
    assert "training.rate 1.0 1.0 2.0 2.0" in differ and "knobs.scale 1 3 1 3" in differ
    for entry in ("training.noise 0.1", "painted by.versions.giverny 9.9.9", "trained by.device cpu", "height.features toy",
                  "height.floor_kind a word", "budget 4.0"):  # fmt: skip
        assert entry in shared and entry not in differ, entry
    assert "floor 0.25" not in differ + shared


def test_curves_of_all_cells_share_a_chart_and_cells_of_one_training_a_line(studio: Studio, tmp_path: Path) -> None:
    page = page_of(run(studio, BASE + RATE + SCALE, tmp_path), tmp_path)
    part = page.html[page.html.index('<section id="learning"') : page.html.index('<section id="pictures"')]
    assert re.findall(r"<figcaption><b>([^<]*)</b>", part) == ["error, training", "error, validation"]
    assert "rate=one, scale=small and 1 more, of the same training" in page.text
    chart = part[part.index("<svg aria-hidden", part.index("<figcaption>")) : part.index("</figure>")]
    assert len(re.findall(r"stroke: var\(--cell0\)", chart)) == len(re.findall(r"stroke: var\(--cell1\)", chart)) == 3
    assert "stroke-dasharray" in chart and "#0103" not in page.html
    style = page.html[: page.html.index("</style>")]
    assert all(style.count(f"{name}:") == 2 for name in CELL_INKS.values())  # light and dark


def test_losses_that_foretell_the_score_have_a_section(studio: Studio, tmp_path: Path) -> None:
    page = page_of(run(studio, BASE + RATE + HALF, tmp_path), tmp_path)
    assert "Does a loss foretell height?" in page.text
    found = page.html[page.html.index('<section id="losses">') : page.html.index('<section id="pictures">')]
    assert re.search(r"climb: train/error</th><td[^>]*>9</td>", found), "over nine trainings"
    assert "climb: train/error" in found and "climb: valid/error" in found and found.count("<data") >= 2
    (tmp_path / "few").mkdir()
    few = page_of(run(studio, BASE, tmp_path / "few"), tmp_path / "few")
    assert "foretell" not in few.text


def test_neighbouring_cells_differ_in_dashes_for_those_who_see_grey() -> None:
    styles = [cell_style(place) for place in range(40)]
    assert len(set(styles)) == 40 and all(a[1] != b[1] for a, b in zip(styles, styles[1:], strict=False))
    lines = [(place, [(step, 1.0 + place / step) for step in range(1, 100)]) for place in range(12)]
    assert draw_cells(lines, "a", False) == draw_cells(lines, "a", False)


def test_dots_lie_where_their_values_are_and_intervals_are_students(studio: Studio, tmp_path: Path) -> None:
    table = run(studio, BASE.replace("[0, 1, 2]", "[0, 1, 2, 3]") + RATE + SCALE + HALF, tmp_path)
    lines = lines_of(table)
    plot = plot_of("height", lines)
    assert plot is not None and len(plot.strips) == 5 and plot.base == plot.strips[0].mean
    places = [(value, place) for strip in plot.strips for _, value, place in strip.dots]
    (v0, p0), (v1, p1) = min(places), max(places)
    for value, place in [*places, *plot.ticks, *((s.summary.mean, s.mean) for s in plot.strips)]:
        assert 0 <= place <= 100 and place == pytest.approx(p0 + (value - v0) / (v1 - v0) * (p1 - p0), abs=2e-3)
    for strip in plot.strips:
        values = list(strip.summary.values.values())
        wanted = stats.t.interval(0.95, 3, fmean(values), stats.sem(values))
        assert strip.summary.interval == pytest.approx(wanted, rel=1e-9)
        assert strip.ends is not None and strip.ends[0] <= strip.mean <= strip.ends[1]
    page = page_of(table, tmp_path)
    assert page.html.count("<circle") == 5 * 4 and page.html.count('class="strip base"') == 1
    assert mean_interval([1.0]) is None and mean_interval([2.0, 2.0]) is None


def test_an_interval_of_two_seeds_leaves_room_for_the_dots(studio: Studio, tmp_path: Path) -> None:
    table = run(studio, BASE.replace("[0, 1, 2]", "[0, 1]").replace("rate=2", "rate=1") + SCALE, tmp_path)
    plot = plot_of("height", lines_of(table))
    assert plot is not None and any(any(strip.beyond) for strip in plot.strips)
    places = [place for strip in plot.strips for _, _, place in strip.dots]
    assert max(places) - min(places) > 40
    assert "‹" in page_of(table, tmp_path).text


# -- any state of an experiment -----------------------------------------------------------------------------------------


def test_a_cell_that_failed_has_its_reason_in_place_of_numbers(studio: Studio, tmp_path: Path) -> None:
    axis = RATE + 'values.burnt = ["burn=2"]\nvalues.broken = ["burn=badly"]\nvalues.misspelt = ["raet=2"]\n'
    page = page_of(run(studio, BASE + axis, tmp_path), tmp_path)
    assert "seeds 0, 1, 2: training: wanted a value that stays small; given 2 at step 2" not in page.text  # units differ
    assert "seed 0: training: wanted a value that stays small; given 2 at step 2 in training" in page.text
    assert "seeds 0, 1, 2: training: ZeroDivisionError: float division by zero" in page.text
    assert "seeds 0, 1, 2: settings: wanted a known setting; given 'raet'" in page.text
    assert "finished, 9 of 15 rows without numbers" in page.text
    assert "training.noise 0.1" in page.text.split("What all share")[1]  # a cell that never began differs in nothing there
    assert page.html.count('class="strip base"') == 1 and page.html.count("<circle") == 6


def test_an_unfinished_experiment_says_what_is_not_run_yet(studio: Studio, tmp_path: Path) -> None:
    text = BASE.replace('["height"]', '["spread", "height"]') + RATE
    recipe = read(text, tmp_path)
    page = page_of(survey(recipe, studio, tmp_path / "store"), tmp_path)  # before anything is done
    assert "not finished: 6 of 6 rows not run yet" in page.text and "seeds 0, 1, 2: not run yet" in page.text
    assert "No pictures yet." in page.text and 'id="dots"' not in page.html and 'id="learning"' not in page.html
    steps = run_experiment(recipe, studio, tmp_path / "store", tmp_path / "out")
    while not (isinstance(event := next(steps), Told) and event.done == 3):
        pass
    steps.close()
    table = survey(recipe, studio, tmp_path / "store")
    page = page_of(table, tmp_path)
    assert "not finished: 3 of 6 rows not run yet" in page.text and "2 of 3 seeds" in page.text and "1 of 3 seeds" in page.text
    assert [[exact for exact, _ in cell] for cell in shown(page)] == expected(tmp_path, ["spread", "height"], 3)
    assert "cannot be told: rate=one has no value at seed 2 (not run yet), and 2 more" in page.text
    assert page.images


def test_the_same_store_gives_the_same_page(studio: Studio, tmp_path: Path) -> None:
    table = run(studio, BASE + RATE + HALF, tmp_path)
    one = page_of(table, tmp_path).html
    again = survey(read(BASE + RATE + HALF, tmp_path), studio, tmp_path / "store")
    assert again == table
    assert [re.sub("Written .*? by", "", text) for text in (one, page_of(again, tmp_path).html)] == [
        re.sub("Written .*? by", "", one)
    ] * 2


def test_a_control_that_is_not_found_worse_is_said_first_and_once(studio: Studio, tmp_path: Path) -> None:
    axis = RATE + 'values.three = ["rate=3"]\n'
    table = run(studio, BASE + axis + '[[control]]\nname = "bad"\noverrides = ["rate=3"]\n', tmp_path)
    page = page_of(table, tmp_path)
    assert "worth here: height cannot judge here: it does not find control bad worse than rate=one" in page.text
    assert 'class="worth prose able"' not in page.html
    assert page.text.count("cannot be told: height cannot judge here") == 1  # of both pairs
    assert "rate=one against rate=two" in page.text and "rate=one against rate=three" in page.text
    assert shown(page)[1]  # the numbers stand there all the same


def test_nothing_measured_nothing_painted_and_one_cell(toy_without_pictures: Toy, tmp_path: Path) -> None:
    bare = re.sub("(measure|primary|better).*\n", "", BASE)
    page = page_of(run(toy_without_pictures, bare + RATE, tmp_path), tmp_path)
    assert "Nothing is measured here" in page.text and "No pictures yet." in page.text and not page.images
    page = page_of(run(toy_without_pictures, BASE, tmp_path), tmp_path)
    assert "There is one cell, and nothing to compare it with." in page.text
    page = page_of(run(toy_without_pictures, bare + RATE.replace("rate=2", "burn=1"), tmp_path), tmp_path)
    assert "wanted a value that stays small" in page.text


@pytest.fixture
def toy_without_pictures(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "log")


# -- pictures -----------------------------------------------------------------------------------------------------------


def part(page: Page) -> str:
    return page.html[page.html.index('<section id="pictures"') : page.html.index('<section id="conditions"')]


def test_cells_stand_side_by_side_with_the_same_noise_in_a_row(studio: Studio, tmp_path: Path) -> None:
    page = page_of(run(studio, BASE + SHADE + HALF, tmp_path), tmp_path)
    columns = re.findall(r'<th scope="col">([^<]*)</th>', part(page))
    assert columns == ["shade=dark", "shade=light", "shade=white", "control half the time"]
    assert re.findall(r'<th scope="row">(\w+)<small>seed (\d+)</small>', part(page)) == [("a", "0"), ("bb", "1"), ("a", "2")]
    assert len(page.images) == 3 * 4 and "12 of 36 painted pictures are on this page; 24 are left out" in page.text
    assert re.findall(r'alt="([^"]*)"', part(page))[4:6] == ["bb: shade=dark", "bb: shade=light"]


def test_two_axes_make_a_matrix_of_sheets(studio: Studio, tmp_path: Path) -> None:
    page = page_of(run(studio, BASE + RATE + SHADE, tmp_path), tmp_path)
    assert re.findall(r"<th scope=\"colgroup\" colspan=\"(\d)\"><small>(\w+)</small>", part(page)) == [("2", "rate")]
    assert re.findall(r'<th scope="col">(\w+)</th>', part(page)) == ["one", "two"]
    assert re.findall(r'<th scope="row">(\w+)</th>', part(page)) == ["dark", "light", "white"]
    alts = re.findall(r'alt="([^"]*)"', part(page))
    assert alts == [
        f"3 pictures of rate={rate}, shade={shade}" for shade in ("dark", "light", "white") for rate in ("one", "two")
    ]
    assert "row by row: a · bb · a." in page.text and "18 of 54 painted pictures" in page.text


def test_a_third_axis_makes_sections_and_controls_stand_apart(studio: Studio, tmp_path: Path) -> None:
    table = run(studio, BASE.replace("[0, 1, 2]", "[4]") + RATE + SHADE + SCALE + HALF, tmp_path)
    page = page_of(table, tmp_path)
    assert re.findall(r"<h3>([^<]*)</h3>", part(page)) == ["scale = small", "scale = large", "controls"]
    alts = re.findall(r'alt="([^"]*)"', part(page))
    assert alts[6] == "3 pictures of rate=one, shade=dark, scale=large" and len(alts) == 12 + 3 * 2
    assert alts[12:14] == ["a: rate=one, shade=dark, scale=small", "a: control half the time"]


def test_a_cell_without_pictures_says_why(studio: Studio, tmp_path: Path) -> None:
    table = run(studio, BASE + RATE + 'values.burnt = ["burn=2"]\n', tmp_path)
    picture_path(tmp_path / "store" / "painting" / table.rows[0].painting / "work", 1).unlink()
    page = page_of(table, tmp_path)
    assert len(page.images) == 5 and "no picture" in part(page)
    assert part(page).count("wanted a value that stays small") == 3


def test_large_pictures_stay_one_small_page(studio: Studio, tmp_path: Path) -> None:
    table = run(studio, BASE.replace("[0, 1, 2]", "[0]").replace("pictures = 3", "pictures = 9") + RATE + SHADE, tmp_path)
    noise = np.random.default_rng(0)  # nothing compresses worse
    for row in table.rows:
        for number in range(9):
            path = picture_path(tmp_path / "store" / "painting" / row.painting / "work", number)
            path.write_bytes(png_bytes(noise.integers(0, 256, (300, 300, 3), dtype=np.uint8)))
    page = page_of(table, tmp_path)
    assert sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.png")) > 12_000_000
    assert len(page.html) < 8_000_000 and len(page.images) == 6


# -- what may be wrong --------------------------------------------------------------------------------------------------


def test_a_damaged_store_is_named_and_stops_nothing(studio: Studio, tmp_path: Path) -> None:
    table = run(studio, BASE + RATE, tmp_path)
    first = table.rows[0]
    training, painting = (tmp_path / "store" / kind / getattr(first, kind) for kind in ("training", "painting"))
    (training / "work" / "stages" / "climb" / "metrics.jsonl").write_bytes(b"\xff[[3\nnull\n3\n")
    (training / "work" / "model" / "card.json").write_text("{")
    (training / "unit.json").write_text("[1, 2")
    (painting / "unit.json").unlink()
    picture_path(painting / "work", 0).write_bytes(b"no picture")
    page = page_of(table, tmp_path)
    for said in ("the model's card cannot be read", "a picture cannot be read", "do not say how they were painted"):
        assert said in page.text, said
    assert len(page.images) == 5 and [[exact for exact, _ in cell] for cell in shown(page)] == expected(tmp_path, ["height"], 3)


def test_hostile_words_are_shown_and_never_obeyed(studio: Studio, tmp_path: Path) -> None:
    nasty = HOSTILE.replace("=", ":").replace(",", ";")
    recipe = read(BASE + RATE + HALF, tmp_path)
    axis = recipe.axis[0].model_copy(update={"name": nasty, "values": {nasty: (), "b": ("rate=2",)}})
    control = recipe.control[0].model_copy(update={"name": nasty})
    changed = {"title": HOSTILE, "question": HOSTILE, "prompts": (HOSTILE, ""), "axis": (axis,), "control": (control,)}
    recipe = recipe.model_copy(update=changed)
    told = list(run_experiment(recipe, studio, tmp_path / "store", tmp_path / "out"))
    page = page_of(told[-1].table, tmp_path)
    assert page.text.count(re.sub(r"\s+", " ", HOSTILE)) >= 5 and page.text.count(re.sub(r"\s+", " ", nasty)) >= 10
    assert "\\frac {{ 7 * 7 }}" in page.text and "frac 49" not in page.text
