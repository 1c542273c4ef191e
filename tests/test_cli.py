"""The command line as a person or a program uses it, on the shipped model and on tiny ones."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from giverny.base.picture import read_provenance
from giverny.cli import COMMANDS, cli
from giverny.cli.voice import Voice, seconds
from giverny.painters.diffusion.knobs import DiffusionKnobs

pytestmark = pytest.mark.xdist_group("contract")


@pytest.fixture
def tiny(tiny_runs):
    return str(tiny_runs["diffusion"])


def run(*args, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert code in (None, result.exit_code), result.output
    return result


def events(*args, code=0):
    return [json.loads(line) for line in run(*args, "--json", code=code).stdout.splitlines()]


def test_every_command_has_help_and_json():
    for name in COMMANDS:
        text = run(name, "--help").output
        assert "--json" in text and len(text) > 100


def test_unknown_command_names_the_nearest():
    assert "paint" in run("pain", code=2).output


def test_paint_writes_pictures_sheet_and_trace(tiny, tmp_path):
    out = tmp_path / "out"
    run("paint", "a red circle", "a blue square", "-n", 2, "--seed", 5, "-m", tiny, "-o", out, "--trace", "--steps", 3)
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert [n for n in names if re.fullmatch(r"\d{5}\.png", n)] == [f"{i:05d}.png" for i in range(4)]
    assert "sheet-00000.png" in names and "sheet-00000-evolution.png" in names
    assert [n for n in names if n.startswith("trace/") and n.endswith(".png")] == [f"trace/{i:05d}.png" for i in range(4)]
    told = read_provenance(out / "00003.png")
    assert told.request.prompt == "a blue square" and told.request.seed == 6 and told.knobs["steps"] == 3
    with Image.open(out / "00000.png") as image:
        assert image.size == (16, 16) and "Steps: 3" in image.text["parameters"]


def test_a_second_run_replaces_nothing(tiny, tmp_path):
    run("paint", "a ring", "--seed", 1, "-m", tiny, "-o", tmp_path)
    first = (tmp_path / "00000.png").read_bytes()
    run("paint", "a ring", "--seed", 2, "-m", tiny, "-o", tmp_path)
    assert (tmp_path / "00000.png").read_bytes() == first
    assert {p.name for p in tmp_path.glob("*.png")} == {"00000.png", "00001.png", "sheet-00000.png", "sheet-00001.png"}


def test_empty_prompt_and_negative_paint(tiny, tmp_path):
    run("paint", "", "--negative", "a red circle", "--seed", 1, "-m", tiny, "-o", tmp_path)
    assert read_provenance(tmp_path / "00000.png").request.negative == "a red circle"


def test_other_sizes_paint_and_odd_ones_are_named(tiny, tmp_path):
    run("paint", "a ring", "--size", "24x16", "--seed", 1, "-m", tiny, "-o", tmp_path)
    with Image.open(tmp_path / "00000.png") as image:
        assert image.size == (24, 16)
    output = run("paint", "a ring", "--size", "17x16", "-m", tiny, "-o", tmp_path, code=2).output
    assert "divisible by 2" in output and "16 x 16" in output
    assert "28x28" in run("paint", "a ring", "--size", "big", "-m", tiny, "-o", tmp_path, code=2).output


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--sampler", "eulr"], "euler"),
        (["--set", "guidanse=2"], "guidance"),
        (["-m", "fashion-mnst"], "fashion-mnist"),
        (["--backend", "fast"], "packed"),
        (["--device", "cuda:9"], "cpu"),
        (["--precision", "float16"], "bfloat16"),
        (["--guidance-from", "0.9", "--guidance-to", "0.1"], "guidance"),
    ],
)
def test_wrong_settings_are_one_sentence_with_the_nearest(flags, word, tiny, tmp_path):
    model = [] if "-m" in flags else ["-m", tiny]
    output = run("paint", "a ring", *model, "-o", tmp_path, *flags, code=2).output
    assert word in output and "Traceback" not in output


def test_errors_speak_json_too(tmp_path):
    (told,) = events("paint", "a ring", "-m", "no-such-model", "-o", tmp_path, code=2)
    assert told["event"] == "error" and told["wanted"] and "no-such-model" in told["given"]


def test_knobs_are_flags():
    text = run("paint", "--help").output
    for name in DiffusionKnobs.model_fields:
        assert "--" + name.replace("_", "-") in text


def test_every_backend_paints_the_same(tiny, tmp_path):
    for backend in ("plain", "packed"):
        run("paint", "a red circle", "--seed", 3, "-m", tiny, "-o", tmp_path / backend, "--backend", backend)
    plain, packed = (np.asarray(Image.open(tmp_path / b / "00000.png")).astype(int) for b in ("plain", "packed"))
    assert abs(plain - packed).max() <= 1
    assert read_provenance(tmp_path / "packed" / "00000.png").backend == "packed"


def test_reproduce_finds_the_same_picture_and_names_what_differs(tiny, tmp_path):
    run("paint", "a red circle", "-n", 3, "--seed", 8, "-m", tiny, "-o", tmp_path)
    told = events("reproduce", tmp_path / "00001.png", "-m", tiny)[-1]
    assert told["same"] is True and not told["differs"]
    changed = read_provenance(tmp_path / "00001.png").model_copy(update={"fingerprint": "0" * 16})
    pixels = np.asarray(Image.open(tmp_path / "00001.png")).copy()
    pixels[0, 0] ^= 255
    from giverny.base.contracts import Picture

    Picture(pixels, changed).save(tmp_path / "other.png")
    told = events("reproduce", tmp_path / "other.png", "-m", tiny, code=1)[-1]
    assert told["same"] is False and told["pixels"] == 1 and "fingerprint" in told["differs"]
    Image.new("RGB", (4, 4)).save(tmp_path / "foreign.png")
    assert "giverny" in run("reproduce", tmp_path / "foreign.png", code=2).output


def test_reproduce_refuses_what_a_family_does_not_follow(monkeypatch, tmp_path):
    import giverny.assembly as assembly
    from giverny.base.contracts import Picture, Toward

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    entry = EntryPoint("classgan", "one_file_painter:PAINTER", "giverny.painters")
    monkeypatch.setattr("giverny.assembly.opening.entry_points", lambda group: [entry] if group == "giverny.painters" else [])
    for _ in assembly.train({"family": "classgan", "name": "gan"}, tmp_path / "gan"):
        pass
    run("paint", "a red circle", "--seed", 3, "-m", tmp_path / "gan", "-o", tmp_path)
    assert events("reproduce", tmp_path / "00000.png", "-m", tmp_path / "gan")[-1]["same"] is True
    told = read_provenance(tmp_path / "00000.png")
    request = told.request.model_copy(update={"toward": Toward(prompt="a blue square", share=0.5)})
    pixels = np.asarray(Image.open(tmp_path / "00000.png"))
    Picture(pixels, told.model_copy(update={"request": request})).save(tmp_path / "between.png")
    said = run("reproduce", tmp_path / "between.png", "-m", tmp_path / "gan", code=2).output
    assert "toward" in said and "classgan" in said


def test_models_lists_shows_and_adds(tiny, tmp_path):
    listed = {row["name"]: row for row in events("models")}
    assert "fashion-mnist" in listed and listed["fashion-mnist"]["licence"]
    run("models", "add", tiny, "--name", "mine")
    assert "mine" in {row["name"] for row in events("models")}
    assert "--replace" in run("models", "add", tiny, "--name", "mine", code=2).output
    run("models", "add", tiny, "--name", "mine", "--replace")
    assert events("models", "show", "mine")[0]["family"] == "diffusion"
    run("paint", "a ring", "-m", "mine", "-o", tmp_path)
    assert "equal" in run("reproduce", tmp_path / "00000.png").output  # found by the name it was given


def test_data_lists_with_licence_and_says_where_to_get():
    rows = {row["name"]: row for row in events("data")}
    assert rows["fashion-mnist"]["licence"].startswith("MIT") and len(rows) >= 6
    assert all(row["licence"] for row in rows.values())
    assert events("data", "show", "fashion-mnist")[0]["files"]
    assert "fashion-mnist" in run("data", "show", "fashion-mnst", code=2).output


def test_doctor_names_device_threads_precision_backends():
    (told,) = events("doctor")
    for key in ("devices", "threads", "backends", "models", "torch", "cpu_capability"):
        assert told[key]
    assert set(told["backends"].split(", ")) <= {"packed", "plain"} and "plain" in told["backends"]


def test_train_dry_run_says_what_it_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_tiny(tmp_path)
    rows = events("train", recipe, "--dry-run")
    assert [r["stage"] for r in rows] == ["autoencoder", "text", "denoiser", "decoder"]
    assert all(r["steps"] == 10 and r["seconds a step"] > 0 and r["memory"] and r["disk"] for r in rows)
    assert not (tmp_path / "runs").exists()


def write_tiny(folder, **changes):
    from giverny.assembly import family
    from giverny.base.recipe import to_toml

    path = folder / "tiny.toml"
    path.write_text(to_toml(family("diffusion").tiny().model_copy(update=changes)))
    return path


def test_train_makes_a_model_and_a_report(tmp_path):
    recipe = write_tiny(tmp_path)
    told = events("train", recipe, "--out", tmp_path / "run", "--set", "denoiser.loop.steps=4")
    assert told[-1]["event"] == "trained"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "tiny-diffusion" in page and not re.search(r"""(src|href)=["']?(https?:|//)""", page)
    assert "steps = 4" in (tmp_path / "run" / "recipe.toml").read_text()
    assert "--resume" in run("train", recipe, "--out", tmp_path / "run", code=2).output
    again = events("train", recipe, "--out", tmp_path / "run", "--set", "denoiser.loop.steps=4", "--resume")
    assert [e["happened"] for e in again if e["event"] == "stage"] == ["reused"] * 4


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    times = iter([0.0, 10.0, 31.0, 31.0, 40.0, 70.0, 70.0])
    monkeypatch.setattr("giverny.cli.voice.monotonic", lambda: next(times))
    with Voice(True).progress("looking", 8) as move:
        move(1)
        move(2, text="looking closely")
        move(3)
        move(1234567, total=None)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == ["looking closely: 2 of 8", "looking: 1,234,567"]


def test_train_pauses_when_told_and_goes_on_until_done(tmp_path):
    recipe = write_tiny(tmp_path)
    recipe.write_text(recipe.read_text() + "\n[presets.short.denoiser.loop]\nsteps = 3\n")
    command = ("train", recipe, "--preset", "short", "--pause-after", "0.01s", "--out", tmp_path / "run", "--resume", "--json")
    codes, told = [], []
    while not codes or (codes[-1] == 75 and len(codes) < 60):
        result = run(*command, code=None)
        codes.append(result.exit_code)
        told += [json.loads(line) for line in result.stdout.splitlines()]
    assert codes[-1] == 0 and len(codes) > 3, "each call does a step and leaves"
    assert sum(e["event"] == "paused" for e in told) == len(codes) - 1
    assert told[-1]["event"] == "trained" and "steps = 3" in (tmp_path / "run" / "recipe.toml").read_text()
    said = run(*command[:-1], "--set", "name=other", "--out", tmp_path / "other", code=75).output
    assert "--preset short --pause-after 0.01s" in " ".join(said.split()) and "name=other" in said


def test_train_names_wrong_keys_all_at_once(tmp_path):
    recipe = write_tiny(tmp_path)
    wrong = ("denoiser.loop.learning_rat=1e-3", "data.chanels=1", "text.loop.batch=0")
    output = run("train", recipe, *(word for pair in wrong for word in ("--set", pair)), code=2).output
    assert "learning_rate" in output and "channels" in output and "text.loop.batch" in output


def test_train_on_ones_own_folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(12):
        Image.new("RGB", (20, 24), (20 * i, 0, 255 - 20 * i)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a red field" if i > 5 else "a blue field")
    recipe = write_tiny(tmp_path)
    run("train", recipe, "--set", f"data.source={pictures}", "--out", tmp_path / "run")
    run("paint", "a red field", "-m", tmp_path / "run", "-o", tmp_path / "out")
    assert (
        "missing"
        in run("train", recipe, "--set", f"data.source={tmp_path / 'missing'}", "--out", tmp_path / "x", code=2).output
    )


@pytest.mark.parametrize("text", ["", "abc", "0", "-5", "1x", "1h2"])
def test_times_that_are_none(text):
    from giverny.base.errors import InputError

    if text == "1h2":
        assert seconds(text) == 3602
    else:
        with pytest.raises(InputError):
            seconds(text)
    assert seconds("1.5h") == 5400 and seconds("90") == 90 and seconds("1h30m") == 5400 and seconds("30m") == 1800


def test_ctrl_c_stops_a_training_and_it_goes_on(tmp_path):
    recipe = write_tiny(tmp_path)
    command = [sys.executable, "-m", "giverny", "train", str(recipe), "--out", str(tmp_path / "run"), "--json"]
    command += ["--set", "denoiser.loop.steps=100000", "--set", "denoiser.loop.save_every=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for line in process.stdout:
        if '"denoiser"' in line and '"step"' in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and '"stopped"' in rest
    states = list((tmp_path / "run" / "stages" / "denoiser" / "state").glob("state-*.safetensors"))
    assert states and not list((tmp_path / "run").rglob("*.part"))
    step = int(states[-1].stem.split("-")[1])
    again = [*command[:-4], "--set", f"denoiser.loop.steps={step + 3}", "--set", "denoiser.loop.save_every=100000", "--resume"]
    out = subprocess.run(again, check=True, capture_output=True, text=True).stdout
    assert '"trained"' in out


def test_ctrl_c_stops_painting_and_leaves_whole_files(tiny, tmp_path):
    command = [
        sys.executable,
        "-m",
        "giverny",
        "paint",
        "a ring",
        "-n",
        "4000",
        "--steps",
        "50",
        "-m",
        tiny,
        "-o",
        str(tmp_path),
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "stopped" in rest
    for path in Path(tmp_path).glob("*.png"):
        with Image.open(path) as image:
            image.load()
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".part"]


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are made with pty")
def test_progress_on_a_terminal_before_its_total_is_known():
    import pty

    program = (
        "from giverny.cli.voice import Voice\n"
        "with Voice(False).progress('[x] a', None) as move: move(1); move(2, total=3, text='b')"
    )
    leader, follower = pty.openpty()
    done = subprocess.run([sys.executable, "-c", program], stderr=follower, stdout=subprocess.PIPE, timeout=120)
    os.close(follower)
    said = os.read(leader, 65536).decode()
    assert done.returncode == 0, said
    assert "2/3" in said
