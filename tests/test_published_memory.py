"""Opening a half-precision file on a CPU holds the weights once, in the precision they run in, and no second copy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from published_twins import UNETS, single_file, write_twin

pytestmark = pytest.mark.xdist_group("diffusers")
MEASURE = """
import json, re, sys, threading, time
from pathlib import Path
from giverny.assembly import open_painter
from giverny.base.contracts import Done, Request
from giverny.painters.diffusion.published import Reading

def held():  # not the mapped file, whose pages the system takes back when it wants them
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def paint(file, folder):
    reading = Reading(configs=Path(folder), words=Path(folder) / "tokenizer")
    painter = open_painter(Path(file), "cpu", sys.argv[1], reading=reading)
    request = Request(prompt="a red cat", size=(8 * painter.step,) * 2, knobs={"steps": 2})
    assert isinstance(list(painter.paint([request]))[-1], Done)
    return sum(v.nbytes for network in painter.parts.networks().values() for v in network.parameters())

paint(*sys.argv[2:4])  # all that is imported on the way
before, most, done = held(), 0, False

def watch():
    global most
    while not done:
        most = max(most, held())
        time.sleep(0.001)

watching = threading.Thread(target=watch)
watching.start()
weights = paint(*sys.argv[4:6])
done = True
watching.join()
print(json.dumps([most - before, weights]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="wants Linux to tell what is held")
def test_peak_of_a_half_precision_file_is_its_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(UNETS, "large", {**UNETS["sd1"], "channels": (128, 256, 256, 256)})
    files = []
    for kind in ("sd1", "large"):
        theirs = write_twin(tmp_path / kind, kind, 1)
        file = tmp_path / f"{kind}.safetensors"
        save_file({n: v.half().contiguous() for n, v in single_file(kind, *theirs).items()}, file)
        files += [str(file), str(tmp_path / kind)]
    stored = Path(files[2]).stat().st_size
    assert stored > 90 * 2**20
    for precision, size in (("float32", 4), ("bfloat16", 2)):
        told = subprocess.run([sys.executable, "-c", MEASURE, precision, *files], capture_output=True, text=True)
        assert told.returncode == 0, told.stderr[-2000:]
        most, weights = json.loads(told.stdout.splitlines()[-1])
        assert abs(weights - stored * size / 2) < 0.01 * weights
        assert 0.9 * weights < most < 1.3 * weights, (precision, most / weights)
