"""Tensors in files of others, read without running anything: safetensors, and pickles by torch's loader for weights alone.

Files are mapped into memory, not copied: a tensor takes memory once it is looked at, and the system may take that back. A
pickle may say more than tensors (counters, options); of that, what is plain data is read, what training programs are known
to write beside weights is read as `Nothing`, and anything else is refused by name.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import InputError

# What stands beside the weights in checkpoints of training programs: a callback's notes, numbers kept as numpy's.
BESIDE = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    *(f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)


PIECE = 2**27  # bytes of a file that are looked at before it is mapped anew


class Nothing:
    """Stands for what is not read: takes whatever it is given and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:  # callbacks are keys of their notes
        return id(self)


class _Unfilled(TorchFunctionMode):
    """Leaves tensors as they are where `torch.nn.init` would fill them."""

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named = named or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else given[0]
        return function(*given, **named)


@contextmanager
def unfilled() -> Iterator[None]:
    """Networks built under this have tensors without memory, for those of a file to take their place. Nothing is drawn: torch
    would import its compiler to draw numbers that are nowhere, which takes longer than to open most models."""
    with torch.device("meta"), _Unfilled():
        yield


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, mapped; what the header says besides). Raises InputError for a file that is not whole."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(str(path), "pt") as file:
            said = file.metadata() or {}
        return load_file(str(path)), said
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError("a readable safetensors file", f"{path} ({error})", "Copy or fetch it again.") from error


def brought(path: Path, names: Sequence[str], precision: torch.dtype) -> dict[str, Tensor]:
    """Tensors of a safetensors file, numbers with a fraction brought to a precision: copies, where they are of another.

    What is looked at of a file stays in memory as long as it is mapped, so it is mapped anew for every piece.
    """
    from safetensors import safe_open

    left, found = list(dict.fromkeys(names)), dict[str, Tensor]()
    while len(found) < len(left):
        with safe_open(str(path), "pt") as file:
            seen = 0
            for name in left[len(found) :]:
                value = file.get_tensor(name)
                found[name] = value.to(precision) if value.is_floating_point() else value
                seen += value.nbytes
                if seen > PIECE:
                    break
    return found


def read_pickle(path: Path) -> Any:
    """What torch.save wrote, tensors mapped where the file allows it. Raises InputError for what is broken or would run."""
    names: list[str] = []
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            with zipfile.ZipFile(path) as inside:
                names = inside.namelist()
    except Exception as error:  # of a damaged archive, not all are BadZipFile
        raise InputError("a file of tensors alone", f"{path}, which is damaged ({error})", "Copy it again.") from error
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise InputError(
            "a file of tensors alone",
            f"{path}, a TorchScript archive, which is a program",
            "Where you trust it, save torch.jit.load(file).state_dict() as safetensors, and give that.",
        )
    stand_ins: list[Any] = [(Nothing, name) for name in BESIDE]
    try:
        with torch.serialization.safe_globals([nn.ParameterDict, *stand_ins]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a broken or hostile pickle may raise anything; whatever it is, nothing was run
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise InputError(
                "a file of tensors alone",
                f"{path}, which asks to run {asked[1]}",
                "Do not use it, unless you know why; nothing was run. Look for the model as safetensors.",
            ) from error
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}" if str(error).strip() else "damaged"
        raise InputError("a file of tensors alone", f"{path} ({why})", "Copy it again, or save it as safetensors.") from error


def read_tensors(path: Path, precision: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors by name, of a file that holds nothing else. precision: as for `brought`, which a pickle is not. Raises
    InputError."""
    if not path.is_file():
        raise InputError("a file of tensors", f"{path}, which is not there")
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)[0]
        return tensors if precision is None else brought(path, list(tensors), precision)
    found = read_pickle(path)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        inside = f"one of {', '.join(map(str, found))}" if isinstance(found, Mapping) else type(found).__name__
        raise InputError("a state dict: names and tensors", f"{path}, {inside[:200]}", "Save the model's state_dict() alone.")
    return {str(name): value for name, value in found.items()}
