"""Whether a loss foretells a score: ranks as SciPy has them, what is left within cells, and the section of the page."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from scipy import stats

from giverny.base.contracts import Score
from giverny.compare.cells import Row, Table
from giverny.compare.losses import LAST, foretellers, last_of, spearman
from test_experiment import BASE, RATE, read


def test_ranks_are_those_of_scipy() -> None:
    for _ in range(20):
        count = random.randint(5, 40)
        a = [random.choice([random.gauss(0, 1), float(random.randint(0, 3))]) for _ in range(count)]  # with ties
        b = [x + random.gauss(0, 1) for x in a]
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def write_log(run: Path, stage: str, **series: list[float]) -> None:
    folder = run / "stages" / stage
    folder.mkdir(parents=True)
    records = zip(*series.values(), strict=True)
    lines = [{"step": i, **{f"train/{k}": v for k, v in zip(series, record, strict=True)}} for i, record in enumerate(records)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def table_of(folder: Path, values: dict[str, list[tuple[float, float]]]) -> Table:
    """values: cell -> (what the loss ended at, the score) for each seed."""
    folder.mkdir(exist_ok=True)
    seeds = list(range(len(next(iter(values.values())))))
    recipe = read(BASE.replace("seeds = [0, 1, 2]", f"seeds = {seeds}") + RATE, folder)
    rows = []
    for cell, pairs in values.items():
        for seed, (loss, value) in enumerate(pairs):
            name = f"{cell}-{seed}"
            write_log(folder / "training" / name / "work", "climb", loss=[9.0, *[loss] * LAST], rate=[1.0] * (LAST + 1))
            score = Score(name=recipe.primary or "", value=value, conditions={})
            rows.append(Row(label=cell, values={"rate": cell}, seed=seed, scores=(score,), training=name))
    return Table(experiment=recipe, rows=tuple(rows), instrument="", controls=(), verdicts=())


def test_a_loss_that_orders_cells_and_nothing_within_them_is_told_as_that(tmp_path: Path) -> None:
    """Cells far apart in both; within a cell the seeds' order is turned round."""
    values = {cell: [(10.0 * k + s, 10.0 * k - s) for s in range(4)] for k, cell in enumerate(("a", "b", "c"))}
    (told,) = foretellers(table_of(tmp_path, values), tmp_path)
    flat = [pair for pairs in values.values() for pair in pairs]
    theirs = stats.spearmanr([x for x, _ in flat], [y for _, y in flat])
    assert told.quantity == "climb: train/loss" and told.rows == 12  # the rate is a setting, no loss
    assert told.rho == pytest.approx(theirs.statistic) and told.rho > 0.7
    assert told.p == pytest.approx(theirs.pvalue, rel=1e-9)  # one quantity: nothing to correct
    assert told.within == pytest.approx(-1)


def test_trainings_count_once_and_each_quantity_over_those_that_logged_it(tmp_path: Path) -> None:
    values = {"a": [(float(i), float(i)) for i in range(6)], "b": [(10.0 + i, -float(i)) for i in range(6)]}
    table = table_of(tmp_path, values)
    painted_again = [row.model_copy(update={"label": "c", "scores": (row.scores[0].model_copy(update={"value": 99.0}),)})
                     for row in table.rows]  # fmt: skip
    assert foretellers(table.model_copy(update={"rows": (*table.rows, *painted_again)}), tmp_path) == foretellers(
        table, tmp_path
    )
    for seed in range(6):  # another family of models, with a log of its own
        write_log(tmp_path / "training" / f"b-{seed}" / "work", "other", error=[float(seed)] * LAST)
    told = {one.quantity: one for one in foretellers(table, tmp_path)}
    assert {name: one.rows for name, one in told.items()} == {"climb: train/loss": 12, "other: train/error": 6}
    assert told["other: train/error"].rho == -1


def test_too_few_rows_and_what_does_not_vary_say_nothing(tmp_path: Path) -> None:
    few = table_of(tmp_path / "few", {"a": [(1.0, 1.0), (2.0, 2.0)], "b": [(3.0, 3.0), (4.0, 4.0)]})
    assert foretellers(few, tmp_path / "few") == []
    same = table_of(tmp_path / "same", {"a": [(1.0, float(i)) for i in range(6)]})
    assert foretellers(same, tmp_path / "same") == []
    alone = table_of(tmp_path / "alone", {c: [(float(i), float(i * i))] for i, c in enumerate("abcdef")})
    (told,) = foretellers(alone, tmp_path / "alone")
    assert (told.rho, told.p, told.within) == (1.0, 2 / 720, None)  # one order of six, or its reverse


def test_the_last_records_are_averaged(tmp_path: Path) -> None:
    write_log(tmp_path, "one", loss=[100.0, 1, 2, 3, 4, 5], skipped=[0.0] * 6)
    write_log(tmp_path, "two", loss=[7.0])
    assert last_of(tmp_path) == {"one: train/loss": 3.0, "two: train/loss": 7.0}
