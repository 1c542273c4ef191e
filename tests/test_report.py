"""The report of a training run: one page, whole at any moment, asking for nothing, and safe whatever lies in the folder."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from giverny import assembly
from giverny.base.contracts import Score
from giverny.base.errors import InputError
from giverny.base.images import png_bytes
from giverny.checkpoints.native import Card, write_card
from giverny.compare import curves, report
from giverny.compare.report import write_report
from giverny.data.toy import ToyShapes
from giverny.training.log import RunLog

ADDRESSES = {"src", "srcset", "href", "xlink:href", "data", "action", "formaction", "poster", "background", "ping", "manifest"}
EMPTY = {"meta", "img", "br", "link", "input", "hr", "source", "base", "embed"}
HOSTILE = "</title><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>\"'&$x^2$ \\frac {{ 7 * 7 }}"


class Page(HTMLParser):
    """A page taken apart: elements, addresses, text that is seen; notes tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text("utf-8")
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.addresses: list[str] = []
        self.images: list[str] = []
        self.words: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(self.html)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.addresses += [value or "" for name, value in attrs if name in ADDRESSES]
        self.images += [value or "" for name, value in attrs if tag == "img" and name == "src"]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def check(self) -> Page:
        """What must hold of every page."""
        assert self.html.startswith("<!doctype html>") and not self.open and not self.unbalanced
        assert all(address.startswith(("data:image/", "#")) for address in self.addresses), self.addresses
        assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(self.tags)
        assert not [name for name, _ in self.attributes if name.startswith("on")]
        styles = re.findall(r"<style.*?</style>", self.html, re.DOTALL) + [v for n, v in self.attributes if n == "style"]
        for style in styles:
            assert "@import" not in style and all(where.startswith("#") for where in re.findall(r"url\(['\"]?(.)", style))
        policy = next(value for name, value in self.attributes if name == "content" and "default-src" in value)
        assert "default-src 'none'" in policy
        return self


def page_of(run: Path) -> Page:
    return Page(write_report(run)).check()


def add_stage(
    run: Path, name: str = "only", records: Mapping[int, Mapping[str, float]] | None = None, previews: int = 0, side: int = 12
) -> Path:
    """A stage's folder as the loop leaves it, without its state."""
    folder = run / "stages" / name
    (folder / "previews").mkdir(parents=True)
    log = RunLog(folder)
    for step, values in (records if records is not None else {1: {"train/loss": 2.0}, 2: {"train/loss": 1.0}}).items():
        log.write(step, dict(values))
    log.close()
    noise = np.random.default_rng(0)
    for step in range(1, previews + 1):
        pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
        (folder / "previews" / f"{step * 5:07d}.png").write_bytes(png_bytes(pixels))
    return folder


def add_card(run: Path, **changes: Any) -> None:
    write_card(run / "model", Card(family="diffusion", name="n", size=(16, 16), recipe={}).model_copy(update=changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the smallest recipe, trained for real."""
    run = tmp_path_factory.mktemp("trained") / "run"
    for _ in assembly.train(assembly.family("diffusion").tiny(), run, source=ToyShapes(count=64, size=16)):
        pass
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """One's own copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("cache", "weights.safetensors")))


# -- what the page says -----------------------------------------------------------------------------------------------


def test_a_finished_run_tells_its_conditions(trained: Path) -> None:
    card = json.loads((trained / "model" / "card.json").read_text())
    page = Page(trained / "report.html").check()  # as training itself has left it
    for words in ("toy", "64 pictures", "held out for validation", "Trained on cpu", f"torch {card['training']['torch']}"):
        assert words in page.text, words
    for stage, note in card["training"]["stages"].items():
        assert f"{stage}, {note['steps']} steps of {note['batch']} examples in" in page.text
    assert "Final samples" in page.text and "not finished" not in page.text and "Missing" not in page.text
    assert "licence: not on record" in page.text and "Apache-2.0" in page.text
    assert page.text.index("autoencoder finished") < page.text.index("text finished") < page.text.index("denoiser finished")


def test_curves_pictures_and_the_whole_recipe_are_on_the_page(trained: Path) -> None:
    page = Page(trained / "report.html")
    assert page.tags.count("svg") == page.tags.count("figure") - 3 and page.tags.count("svg") > 10  # three large previews
    for title in ("error", "psnr", "learning rate", "seconds per step", "norm"):
        assert f" {title} " in page.text, title
    assert 'alt="Preview of stage denoiser, step 10"' in page.html
    assert re.sub(r"\s+", " ", (trained / "recipe.toml").read_text()).strip() in page.text
    assert len(set(page.images)) == len(page.images) == len(list(trained.glob("stages/*/previews/*.png")))


def test_a_run_stopped_half_way_is_told_as_far_as_it_went(tmp_path: Path) -> None:
    told = assembly.train(assembly.family("diffusion").tiny(), tmp_path / "run", source=ToyShapes(count=64, size=16))
    for event in told:
        if event.stage == "text" and event.report and event.report.step == 3:
            break
    told.close()
    page = Page(tmp_path / "run" / "report.html").check()
    assert "not finished: saved at step 3 of 10" in page.text and "not begun" in page.text
    assert "No model yet" in page.text and "Newest samples" in page.text
    assert "Device, threads and versions are not on record before the run is finished" in page.text


def test_the_learning_rate_is_shown_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[only.loop]\nlearning_rate = 0.004\n")
    add_stage(tmp_path, records={s: {"train/loss": 1 / s, "train/rate": 1 / s} for s in range(1, 6)})
    assert "learning rate last 0.0008, highest 0.004" in page_of(tmp_path).text


def test_a_rate_of_unknown_height_is_not_called_a_learning_rate(tmp_path: Path) -> None:
    add_stage(tmp_path, records={1: {"train/rate": 1.0, "train/critic.loss": 1.0}, 2: {"train/rate": 0.5}})
    page = page_of(tmp_path)
    assert "learning rate (1: its full height) last 0.5, highest 1" in page.text and "critic.loss" in page.text


def test_training_and_validation_share_a_chart_and_a_loss_is_not_drawn_twice(tmp_path: Path) -> None:
    values = {s: {"train/loss": 4 / s, "train/error": 4 / s, "valid/error": 5 / s} for s in range(1, 6)}
    add_stage(tmp_path, records=values)
    page = page_of(tmp_path)
    assert page.tags.count("svg") == 1 and "error train 0.8 validation 1" in page.text


def test_skipped_updates_are_counted_where_the_run_has_counted_them(tmp_path: Path) -> None:
    folder = add_stage(tmp_path, records={10: {"train/loss": 1.0, "train/skipped": 1.0}})
    (folder / "done.json").write_text(
        json.dumps({"steps": 1234, "seconds": 754.0, "batch": 8, "precision": "bfloat16", "skipped": 17})
    )
    page = page_of(tmp_path)
    assert "1,234 8 12.6 min ? bfloat16 17 finished" in page.text
    assert page.tags.count("svg") == 1


def test_scores_come_with_their_conditions(tmp_path: Path) -> None:
    score = Score(
        name="kid", value=0.0123456, interval=(0.011, 0.0141), conditions={"n": 10000, "features": "inception", "seeds": [0, 1]}
    )
    add_card(tmp_path, scores=(score,), licence="CC0", training={"device": "cuda:0"})
    page = page_of(tmp_path)
    assert "kid 0.01235 0.011 to 0.0141 n 10,000, features inception, seeds 0, 1" in page.text
    assert "Trained on cuda:0." in page.text and "Licence of the weights: CC0." in page.text


def test_eight_previews_are_chosen_evenly_with_the_first_and_the_last(tmp_path: Path) -> None:
    add_stage(tmp_path, previews=22)
    page = page_of(tmp_path)
    assert [int(step) for step in re.findall(r"</?[^>]*>step (\d+)</summary>", page.html)] == [5, 20, 35, 50, 65, 80, 95]
    assert "Stage only, step 110" in page.text and "8 of 22" in page.text and len(page.images) == 8


# -- what may be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("recipe.toml", "No recipe (recipe.toml)"),
        ("model", "No model yet"),
        ("stages", "denoiser – – – – – – not begun"),
        ("stages/text", "text – – – – – – not begun"),
        ("stages/text/metrics.jsonl", "text: no curves"),
        ("stages/text/done.json", "not finished: saved at step 10 of 10"),
        ("stages/text/state", "Whether there was a time budget is not on record"),
        ("stages/denoiser/previews", "No previews of this stage"),
    ],
)
def test_a_missing_part_is_named(run: Path, part: str, said: str) -> None:
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said in page_of(run).text


@pytest.mark.parametrize(
    "junk", [b"", b"[[[" * 40000, b"\xff\xfe\x00junk", b"3\n", b'{"step": '], ids=["empty", "deep", "bytes", "3", "cut"]
)
def test_damaged_files_are_named_and_stop_nothing(run: Path, junk: bytes) -> None:
    files = ["recipe.toml", "model/card.json", "stages/text/metrics.jsonl", "stages/text/done.json"]
    files += [
        "stages/denoiser/previews/0000005.png",
        "stages/text/state/state-00000010.safetensors",
        "stages/text/state/state-00000005.safetensors",
    ]
    for name in files:
        assert (run / name).is_file()
        (run / name).write_bytes(junk)
    page = page_of(run)
    for said in (
        "The model's card cannot be read",
        "text: no readable state",
        "denoiser: a preview cannot be read",
        "text: no curves",
    ):
        assert said in page.text, said
    assert str(run) not in page.text  # paths of the machine are nobody's business
    assert "step 10" in page.text and page.tags.count("svg") > 5  # the other stages are there


def test_a_folder_where_a_file_belongs_stops_nothing(tmp_path: Path) -> None:
    for name in ("recipe.toml", "model/card.json", "stages/a/metrics.jsonl", "stages/a/done.json", "stages/a/previews/1.png"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "stages" / "a" / "state").write_text("no folder")
    assert "a: a preview cannot be read" in page_of(tmp_path).text


def test_an_empty_folder_has_a_page_and_no_folder_has_none(tmp_path: Path) -> None:
    assert "nothing has been trained in this folder" in page_of(tmp_path).text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]
    with pytest.raises(InputError, match="run folder"):
        write_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


GOOD = '{"step": 3, "train/loss": 2.5}'
BIG = "1" + "0" * 400
ODD_LOGS = {
    "not finite": ['{"step": 1, "train/loss": NaN}', '{"step": 2, "train/loss": Infinity}', GOOD],
    "not numbers": ['{"step": 1, "a": "x", "b": [1], "c": true, "d": null, "e": {"f": 1}}', GOOD],
    "far apart": ['{"step": 1, "train/loss": -1e308, "n": 1e-320}', '{"step": 2, "train/loss": 1e308, "n": 1e308}', GOOD],
    "huge whole numbers": [f'{{"step": 1, "train/loss": {BIG}}}', f'{{"step": {BIG}, "a": 1}}', GOOD],
    "odd steps": ['{"step": -5, "train/loss": 1}', '{"step": 0.5, "train/loss": 2}', GOOD],
    "no steps": ['{"train/loss": 9}', '{"step": "7", "train/loss": 9}', '{"step": true, "train/loss": 9}', GOOD],
    "out of order": [GOOD, '{"step": 2, "train/loss": 3}', '{"step": 2, "train/loss": 4}'],
    "not records": [GOOD, "3", "null", '"x"', "[]", "", "{"],
    "odd names": ['{"step": 1, "": 1, "/": 2, "train/": 3, "valid/": 4, "a/b/c": 5, "\\u0000\\ud800$": 6}', GOOD],
    "no change": [GOOD, GOOD, '{"step": 6, "train/loss": 2.5, "zero": 0}', '{"step": 7, "zero": 0}'],
}


@pytest.mark.parametrize("lines", ODD_LOGS.values(), ids=ODD_LOGS)
def test_odd_numbers_in_a_log_stop_nothing(tmp_path: Path, lines: list[str]) -> None:
    folder = add_stage(tmp_path)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = page_of(tmp_path)
    assert "loss train 2.5" in page.text and "svg" in page.tags


def test_hostile_words_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    recipe = {"title": HOSTILE, "name": HOSTILE, "family": HOSTILE, "licence": HOSTILE, "prompts": [HOSTILE, 3]}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe | {"data": {"source": HOSTILE, "size": [HOSTILE, 2]}}))
    (tmp_path / "stages").mkdir()
    folder = add_stage(tmp_path, name="<b>&'\"$x", records={s: {f"train/{HOSTILE}": s, HOSTILE: s} for s in (1, 2)}, previews=1)
    shutil.copy(folder / "previews" / "0000005.png", folder / "previews" / "<i onload=x>'\".png")
    (folder / "done.json").write_text(json.dumps({"precision": HOSTILE, "steps": HOSTILE, "skipped": [HOSTILE]}))
    unfinished = page_of(tmp_path)
    assert unfinished.text.count(re.sub(r"\s+", " ", HOSTILE)) >= 7 and "49" not in re.findall(r"\d+", unfinished.text)
    score = Score(name=HOSTILE, value=1, conditions={HOSTILE: HOSTILE})
    words = {"name": HOSTILE, "title": HOSTILE, "licence": HOSTILE, "prompts": (HOSTILE,), "parameters": {HOSTILE: 1}}
    facts = {
        "data": {"name": HOSTILE, "licence": HOSTILE, "pictures": HOSTILE},
        "training": {"device": HOSTILE, "threads": HOSTILE, "torch": HOSTILE},
    }
    add_card(tmp_path, scores=(score,), **words, **facts)
    assert page_of(tmp_path).text.count(re.sub(r"\s+", " ", HOSTILE)) >= 14


tables = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.fixed_dictionaries(dict.fromkeys(("title", "name", "family", "budget", "licence", "prompts"), tables)), tables, tables
)
def test_any_recipe_and_any_note_make_a_page(tmp_path: Path, recipe: dict[str, Any], data: Any, note: Any) -> None:
    folder = tmp_path / "stages" / "only"
    if not folder.exists():
        add_stage(tmp_path, records={})
    (folder / "done.json").write_text(json.dumps(dict.fromkeys(("steps", "seconds", "batch", "precision", "skipped"), note)))
    parts = {"data": data, "only": {"loop": {"batch": note, "learning_rate": note}}, "later": {"loop": data}}
    for odd in ({"source": data, "size": data, "validation": data}, data):
        (tmp_path / "recipe.toml").write_bytes(tomli_w.dumps(recipe | parts | {"data": odd}).encode("utf-8", "surrogatepass"))
        page = page_of(tmp_path)
        assert "later" in page.text
    add_card(
        tmp_path,
        data={"name": note, "pictures": data, "licence": data},
        training={"device": note, "threads": data, "torch": note},
    )
    page_of(tmp_path)
    shutil.rmtree(tmp_path / "model")


# -- size, care and speed ---------------------------------------------------------------------------------------------


def test_a_long_run_with_large_pictures_stays_small(tmp_path: Path) -> None:
    folder = add_stage(tmp_path, previews=9, side=600)  # noise: nothing compresses worse
    lines = [json.dumps({"step": s, **{f"train/{k}": s % 97 / (s + k) for k in range(20)}}) for s in range(1, 5000)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    page = page_of(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.png")) > 8_000_000  # what is to be brought down
    assert len(page.html) < 3_000_000 and len(page.images) == 8
    assert page.tags.count("svg") == 12 and "Not drawn: 12, 13," in page.text


def test_many_stages_stay_one_page(tmp_path: Path) -> None:
    for i in range(30):
        add_stage(tmp_path, f"stage{i:02d}", records={1: {"train/loss": 1.0}}, previews=4)
    page = page_of(tmp_path)
    assert "10 of 30 stages are not shown" in page.text and len(page.html) < 3_000_000 and page.tags.count("svg") == 20


def test_a_persons_own_plotting_style_neither_reaches_the_page_nor_is_lost(tmp_path: Path) -> None:
    add_stage(tmp_path, records={s: {"train/loss": 1 / s, "valid/loss": 2 / s} for s in range(1, 60)})

    def drawn() -> str:
        return "".join(re.findall(r"<svg.*?</svg>", page_of(tmp_path).html, re.DOTALL))

    usual = drawn()
    own = {
        "axes.facecolor": "red",
        "font.size": 40.0,
        "text.usetex": True,
        "svg.fonttype": "path",
        "axes.formatter.use_mathtext": True,
    }
    with matplotlib.rc_context(own):
        before = dict(matplotlib.rcParams)
        assert drawn() == usual
        assert dict(matplotlib.rcParams) == before


def test_drawings_take_the_pages_colours_and_share_no_names(tmp_path: Path) -> None:
    add_stage(tmp_path, records={s: {"train/loss": 1 / s, "valid/loss": 2 / s, "valid/psnr": s} for s in range(1, 6)})
    page = page_of(tmp_path)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert not re.findall(r"#0102\d\d", page.html) and "var(--valid)" in page.html
    style = page.html[: page.html.index("</style>")]
    for name in curves.INKS.values():
        assert style.count(f"{name}:") == 2  # light and dark
    assert "prefers-color-scheme: dark" in style and 'name="viewport"' in page.html


@pytest.mark.parametrize("make", [lambda s: 10.0**-s, lambda s: 1.0 + s / 10], ids=["far apart", "close"])
def test_ticks_are_numbers_in_plain_digits(tmp_path: Path, make: Callable[[int], float]) -> None:
    add_stage(tmp_path, records={s * 1000: {"valid/loss": make(s)} for s in range(1, 5)})
    ticks = re.findall(r"<text[^>]*>([^<]*)</text>", page_of(tmp_path).html)
    assert "step" in ticks and any("," in tick for tick in ticks)
    heights = [float(tick.replace(",", "")) for tick in ticks if tick != "step"]
    assert len(heights) >= 7
    assert any(height in (0.1, 0.01, 0.001) for height in heights) == (make(1) == 0.1)  # a logarithmic axis names decades


def test_the_same_folder_gives_the_same_page(run: Path) -> None:
    pages = [re.sub(r"Written .*? by", "", write_report(run).read_text("utf-8")) for _ in range(2)]
    assert pages[0] == pages[1]


def test_nothing_heavy_is_imported_with_the_module() -> None:
    body = ast.parse(Path(report.__file__).read_text("utf-8")).body
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & {"matplotlib", "jinja2"}
