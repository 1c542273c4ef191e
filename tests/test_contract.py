"""What every family of painters must keep, proved on its `tiny`. A new file in `painters` is tested here without a word."""

import dataclasses
import hashlib
import json
import math
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from giverny.assembly import families, family, load_recipe, open_painter, train
from giverny.base.contracts import Done, Failed, Painter, Progress, Request, Started
from giverny.base.errors import InputError
from giverny.base.images import png_bytes
from giverny.base.recipe import to_toml
from giverny.base.runtime import PictureStreams
from giverny.base.start import Enclosed, Start
from giverny.checkpoints.native import read_card, read_weights
from giverny.pipelines.text2image import collect
from giverny.training.log import read_log

FAMILIES = families()
pytestmark = [pytest.mark.parametrize("name", FAMILIES), pytest.mark.xdist_group("contract")]


@pytest.fixture
def painter(name, tiny_runs) -> Painter:
    return open_painter(tiny_runs[name])


def offered(painter, *requests):
    """The requests, each begun with a picture that its seed draws where the painter cannot do without one."""
    if "start" not in getattr(painter, "needs", ()):
        return list(requests)
    size = (painter.size[1], painter.size[0], 3)
    drawn = [png_bytes(np.random.default_rng(r.seed).integers(0, 256, size, dtype=np.uint8)) for r in requests]
    files = [Enclosed(name="drawn.png", sha256=hashlib.sha256(png).hexdigest(), content=png) for png in drawn]
    return [r.model_copy(update={"start": Start(picture=f, strength=1.0)}) for r, f in zip(requests, files, strict=True)]


def ask(painter, *requests):
    requests = offered(painter, *requests)
    return [p.pixels for p in collect(painter.paint(requests), requests)]


def request(seed, prompt="a red circle", **changes):
    return Request(prompt=prompt, seed=seed, id=f"{prompt}/{seed}/{changes}", **changes)


def test_recipe_survives_its_own_toml(name, tmp_path):
    tiny = family(name).tiny()
    (tmp_path / "tiny.toml").write_text(to_toml(tiny))
    assert load_recipe(tmp_path / "tiny.toml") == tiny


def test_opens_in_under_a_second(name, tiny_runs):
    open_painter(tiny_runs[name])  # what is imported once per process
    began = time.process_time()
    open_painter(tiny_runs[name])
    assert time.process_time() - began < 1.0


def test_is_a_painter(painter, name):
    assert isinstance(painter, Painter) and painter.family == name
    assert painter.fingerprint and painter.name


def test_events_tell_the_whole_story(painter):
    events = list(painter.paint(offered(painter, request(1), request(2)), previews=True))
    for wanted in (request(1).id, request(2).id):
        mine = [e for e in events if e.id == wanted]
        assert isinstance(mine[0], Started) and isinstance(mine[-1], Done)
        steps = [e.step for e in mine if isinstance(e, Progress)]
        assert steps == list(range(1, len(steps) + 1))
        assert all(e.preview.dtype == np.uint8 for e in mine if isinstance(e, Progress))


def test_same_seed_same_picture_and_other_seed_another(painter):
    first, again, other = ask(painter, request(1))[0], ask(painter, request(1))[0], ask(painter, request(2))[0]
    assert first.dtype == np.uint8 and first.shape == (painter.size[1], painter.size[0], 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_picture_is_independent_of_its_batch(painter):
    wanted = [request(s, p) for s, p in ((1, "a red circle"), (2, "a blue square"), (3, ""), (4, "a ring"))]
    together = ask(painter, *wanted)
    for one, picture in zip(wanted, together, strict=True):
        alone = ask(painter, one)[0].astype(int)
        assert abs(alone - picture.astype(int)).max() <= 1  # float32 to within 1e-4, so at most a rounding apart
    streams = PictureStreams([7, 8, 9]).normal((4, 8, 8))
    assert torch.equal(streams[1], PictureStreams([8]).normal((4, 8, 8))[0])  # noise is equal to the bit


def test_two_requests_at_once_equal_one_after_the_other(painter):
    wanted = [request(5, "a red circle"), request(6, "a blue square")]
    alone = [ask(painter, w)[0] for w in wanted]
    interleaved = [painter.paint(offered(painter, w)) for w in wanted]
    done = {}
    while interleaved:
        for stream in list(interleaved):
            event = next(stream, None)
            if event is None:
                interleaved.remove(stream)
            elif isinstance(event, Done):
                done[event.id] = event.artifact.pixels
    for w, pixels in zip(wanted, alone, strict=True):
        assert np.array_equal(done[w.id], pixels)
    results = {}
    threads = [threading.Thread(target=lambda w=w: results.__setitem__(w.id, ask(painter, w)[0])) for w in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for w, pixels in zip(wanted, alone, strict=True):
        assert np.array_equal(results[w.id], pixels)


def test_closing_cancels(painter):
    stream = painter.paint(offered(painter, request(1)))
    next(stream)
    stream.close()
    assert list(stream) == []
    ask(painter, request(1))  # and nothing is left behind


def test_a_bad_request_fails_alone(painter):
    bad = [request(1, knobs={"no_such_knob": 1}), request(2, size=(3, 3)), request(3)]
    events = list(painter.paint(offered(painter, *bad)))
    failed = {e.id: e.reason for e in events if isinstance(e, Failed)}
    assert set(failed) == {bad[0].id, bad[1].id}
    assert "no_such_knob" in failed[bad[0].id] and all(len(reason) > 20 for reason in failed.values())
    assert [e.id for e in events if isinstance(e, Done)] == [bad[2].id]


def test_what_a_painter_needs_it_can_follow_and_says_it_misses(painter):
    needs = getattr(painter, "needs", frozenset())
    assert needs <= getattr(painter, "can", frozenset())
    (last,) = (e for e in painter.paint([request(1)]) if isinstance(e, Done | Failed))
    assert isinstance(last, Failed) == bool(needs)
    assert not needs or "picture" in last.reason


def test_saved_and_opened_elsewhere_it_paints_the_same(painter, name, tiny_runs, tmp_path):
    shutil.copytree(tiny_runs[name] / "model", tmp_path / "moved")
    moved = open_painter(tmp_path / "moved")
    assert moved.fingerprint == painter.fingerprint
    assert np.array_equal(ask(moved, request(9))[0], ask(painter, request(9))[0])


def test_in_bfloat16_it_paints_nearly_the_same(painter, name, tiny_runs):
    coarse = open_painter(tiny_runs[name] / "model", precision="bfloat16")
    exact, rough = ask(painter, request(9))[0].astype(float), ask(coarse, request(9))[0].astype(float)
    assert np.abs(exact - rough).mean() < 0.05 * 255


def test_a_damaged_model_folder_is_refused(name, tiny_runs, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_runs[name] / "model", folder)
    weights = folder / "weights.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-100])
    with pytest.raises(InputError, match="weights"):
        open_painter(folder)
    weights.write_bytes(good)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"unknown": 1}))
    with pytest.raises(InputError, match="card"):
        open_painter(folder)
    (folder / "card.json").unlink()
    with pytest.raises(InputError, match="model"):
        open_painter(folder)


def test_losses_are_finite_and_logged(name, tiny_runs):
    logs = sorted((tiny_runs[name] / "stages").glob("*/metrics.jsonl"))
    assert logs
    for log in logs:
        losses = [v for record in read_log(log) for k, v in record.items() if k.endswith("loss")]
        assert losses and all(math.isfinite(v) for v in losses)


def test_stopped_and_resumed_it_becomes_the_same_model(name, tiny_runs, tmp_path):
    whole = read_weights(tiny_runs[name] / "model", read_card(tiny_runs[name] / "model"))
    run = tmp_path / "run"
    told = train(family(name).tiny(), run)
    stages = {e.stage for e in train_until(told, 7)}
    assert len(stages) >= 1
    for _ in range(5):  # stopped again and again, a few steps further each time
        train_until(train(family(name).tiny(), run, resume=True), 7)
    for _ in train(family(name).tiny(), run, resume=True):
        pass
    again = read_weights(run / "model", read_card(run / "model"))
    for network, tensors in whole.items():
        for key, value in tensors.items():
            assert torch.equal(value, again[network][key]), f"{network}.{key}"


def train_until(told, steps):
    """Pull `steps` reports, then stop as Ctrl-C does."""
    seen = []
    for event in told:
        seen.append(event)
        if sum(e.report is not None for e in seen) >= steps:
            break
    told.close()
    return seen


def test_card_says_what_it_is(name, tiny_runs):
    card = read_card(tiny_runs[name] / "model")
    assert card.family == name and card.licence and card.data["pictures"] > 0
    assert card.parameters and card.training["stages"] and card.training["device"]
    for note in card.training["stages"].values():
        assert note["steps"] > 0 and note["seconds"] > 0


def test_provenance_is_complete(painter):
    asked = offered(painter, request(3, size=painter.size))
    made = collect(painter.paint(asked), asked)[0]
    told = made.provenance
    assert told.fingerprint == painter.fingerprint and told.request.seed == 3 and told.batch == 1
    assert set(told.knobs) == set(painter.knobs.model_fields)
    assert dataclasses.is_dataclass(made) and made._repr_png_().startswith(b"\x89PNG")
