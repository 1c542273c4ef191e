"""The machine: devices and precisions by what they can do, random streams, threads, memory, interrupts.

One random stream per picture, always drawn on the CPU in float32 and converted afterwards: a picture's noise then
depends on its seed alone, not on its batch, device or precision.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, choose
from .streams import stream

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def devices() -> list[str]:
    """Names of what torch can compute on here, the fastest kind first, "cpu" last."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    if torch.xpu.is_available():
        found += [f"xpu:{i}" for i in range(torch.xpu.device_count())]
    return [*found, "cpu"]


def pick_device(name: str = "auto") -> torch.device:
    """The device to work on. name: "auto" (the fastest kind there is) or one such as "cuda", "cuda:1", "mps", "cpu".

    Raises InputError, listing what is there, for a name unknown to torch and for a device that is missing.
    """
    here = devices()
    if name == "auto":
        return torch.device(here[0])
    wanted = name if ":" in name else f"{name}:0"
    if name not in here and wanted not in here:
        raise InputError("a device of this machine", repr(name), f"there is: {', '.join(here)}; or say 'auto'")
    return torch.device(name)


def pick_precision(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """The number format to compute in. wanted: "auto", "float32", "bfloat16", "float16" or "float64".

    "auto" is bfloat16 on CUDA devices that calculate in it, float32 elsewhere. Raises InputError where the device
    cannot do what was asked for.
    """
    native = device.type == "cuda" and (bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0))
    if wanted == "auto":
        return torch.bfloat16 if native else torch.float32
    precision = PRECISIONS[choose(wanted, PRECISIONS, "precision (or 'auto')")]
    if precision == torch.float16 and device.type == "cpu":
        reason = "processors calculate float16 slowly, and it overflows where the others do not"
        raise InputError("float32 or bfloat16 on the CPU", wanted, reason)
    if precision == torch.bfloat16 and device.type == "cuda" and not native:
        raise InputError("a precision that the GPU calculates in", wanted, "use float32 or float16")
    if precision == torch.float64 and device.type == "mps":
        raise InputError("a precision that the GPU calculates in", wanted, "use float32, or the CPU")
    return precision


class PictureStreams:
    """Random numbers of B pictures, one stream each. seeds: whole numbers from 0 to 2^63 - 1.

    Each `normal` is the next draw of every stream, so the first is the initial noise and later ones feed a sampler.
    torch draws fewer than 16 numbers by another formula: ask for a picture's whole tensor, never for a part.
    toward: per picture None, or (another seed, share 0..1): every draw then lies that share of the way from the stream's
    own draw to the other seed's, as one vector along the sphere (`slerp`). Shares 0 and 1 are the two streams to the bit.
    source: of the numbers, one of `streams.SOURCES`.
    """

    def __init__(
        self, seeds: Sequence[int], toward: Sequence[tuple[int, float] | None] | None = None, source: str = "cpu"
    ) -> None:
        if not seeds:
            raise ValueError("streams want one seed or more")
        if toward is not None and len(toward) != len(seeds):
            raise ValueError(f"{len(seeds)} streams want as many entries in `toward`, given {len(toward)}")
        self.seeds, self.source = tuple(seeds), source
        self.toward = tuple(toward or (None,) * len(seeds))
        self._streams = [stream(seed, source) for seed in self.seeds]
        self._others = {i: (stream(other[0], source), other[1]) for i, other in enumerate(self.toward) if other}

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Unit noise, float32 (B, *shape) on the CPU. Convert it after the draw."""
        shape = tuple(shape)
        drawn = [own.normal(shape) for own in self._streams]
        for i, (toward, share) in self._others.items():
            other = toward.normal(shape)
            # in float64, so that the order of the sums, which may change with the number of threads, leaves no trace
            drawn[i] = slerp(drawn[i].double().flatten(), other.double().flatten(), share).float().view(shape)
        return torch.stack(drawn)

    def again(self) -> PictureStreams:
        """For a second pass over the same pictures: the same streams, further on."""
        return self


def slerp(start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
    """Between vectors along the sphere: sin((1 - s) w) / sin w * start + sin(s w) / sin w * end (Shoemake 1985, section 3.3).

    start, end: (..., D) of one dtype, each row a vector. share: s, a number or (...), 0 to 1; the ends come back to the bit.
    w is the angle between the two directions; the weights apply to the vectors as they are, so that unit noise stays unit
    noise: uncorrelated, the squared weights sum to 1. Rows that are parallel or opposite to within 1e-6 go in a straight line.
    """
    share = torch.as_tensor(share, dtype=start.dtype, device=start.device).expand(start.shape[:-1])
    u, v = (torch.nn.functional.normalize(x, dim=-1) for x in (start, end))
    angle = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))  # unlike acos, exact for the smallest angles too
    sine = angle.sin()
    straight = sine < 1e-6
    sine = torch.where(straight, 1, sine)
    near = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
    far = torch.where(straight, share, (share * angle).sin() / sine)
    return near[..., None] * start + far[..., None] * end


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits that depends on all parts and their order: the start of a named stream."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class seeded:
    """Initial weights from a named seed; torch's global generator is put back afterwards."""

    def __init__(self, *parts: int | str) -> None:
        self.seed = derive_seed(*parts)
        self._fork = torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads within the block (None: as many as before). Raises InputError below 1."""
    if count is not None and count < 1:
        raise InputError("1 thread or more", str(count))
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(device: torch.device | None = None) -> int:
    """The most bytes this process has held so far: of a CUDA device's memory, else of main memory; 0 where the system does not
    tell."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB


def free_memory(device: torch.device) -> int | None:
    """Bytes that could still be taken on a device, without anything being moved out; None where the system does not tell.

    Of a GPU what its driver calls free, and what torch holds unused. Of main memory what Linux calls available, within the
    limit of the container (cgroup v2), where there is one.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    told = _numbers(Path("/proc/meminfo"))
    free = [told["MemAvailable:"] * 1024] if "MemAvailable:" in told else []
    group = Path("/sys/fs/cgroup")
    most, held = (_numbers(group / name) for name in ("memory.max", "memory.current"))
    if "" in most and "" in held:  # what files have left in memory is given back when it is wanted
        free.append(most[""] - held[""] + _numbers(group / "memory.stat").get("inactive_file", 0))
    return max(0, min(free)) if free else None


def _numbers(file: Path) -> dict[str, int]:
    """{name: number} of a file of the system, "" where a number stands alone; empty where there is no such file."""
    try:
        lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    except OSError:
        return {}
    pairs = [(line[0], line[1]) if len(line) > 1 else ("", line[0]) for line in lines if line]
    return {name: int(number) for name, number in pairs if number.isdecimal()}


@functools.cache
def _own_version() -> str:
    try:
        return metadata.version("giverny")
    except metadata.PackageNotFoundError:  # run from a source folder that was never installed
        return "uninstalled"


def versions() -> dict[str, str]:
    """Versions that a picture can depend on: giverny, torch, python."""
    return {"giverny": _own_version(), "torch": str(torch.__version__), "python": platform.python_version()}


def describe_machine() -> dict[str, Any]:
    """What decides speed and bits here, as plain values for `giverny doctor` and model cards. Memory is in bytes."""
    return {
        **versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "devices": [_describe_device(name) for name in devices()],
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "onednn_bfloat16": torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "precisions": {name: str(pick_precision(torch.device(name))).removeprefix("torch.") for name in devices()},
    }


def _describe_device(name: str) -> dict[str, Any]:
    """Name, and for CUDA what the driver says: model, bytes of memory, capability, native bfloat16."""
    if not name.startswith("cuda"):
        return {"name": name}
    properties = torch.cuda.get_device_properties(name)
    return {
        "name": name,
        "model": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "bfloat16": pick_precision(torch.device(name)) == torch.bfloat16,
    }


def _cores() -> int:
    """Cores this process may use: fewer than the machine has where a scheduler or container pins it."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    """Bytes of main memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, some systems not these names
        return None


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Ctrl-C within the block is heard at its end; a second one at once. Other handlers than Python's own are left alone."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    asked = False

    def hear(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt
