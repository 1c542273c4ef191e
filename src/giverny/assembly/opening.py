"""Names of families and models become objects.

A family is a file (or folder) in `giverny/painters` that exports PAINTER; its file name is its name. Packages of others
join through the entry point group `giverny.painters`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.contracts import Family, Painter
from ..base.errors import InputError, nearest
from ..base.runtime import pick_device, pick_precision
from ..checkpoints.native import CARD, Card, read_card
from ..text.space import SharedSpace
from ..text.tokenizer import Tokenizer
from .places import user_models as user_models

if TYPE_CHECKING:
    from ..painters.diffusion.published import Reading

PACKAGE = Path(__file__).parents[1]
DEFAULT_MODEL = "wardrobe"


def families() -> tuple[str, ...]:
    """Names of all kinds of painter: the files of the painters room, and those that other packages bring."""
    return _kinds("painters")


def judges() -> tuple[str, ...]:
    """Names of all kinds of judge: the files of the judges room, and those that other packages bring."""
    return _kinds("judges")


def _kinds(room: str) -> tuple[str, ...]:
    own = [m.name for m in pkgutil.iter_modules([str(PACKAGE / room)])]
    return tuple(sorted({*own, *(e.name for e in entry_points(group=f"giverny.{room}"))}))


def family(name: str) -> Family:
    """Of a painter or of a judge."""
    for room, exported in (("painters", "PAINTER"), ("judges", "JUDGE")):
        if name not in _kinds(room):
            continue
        for entry in entry_points(group=f"giverny.{room}"):
            if entry.name == name:
                return entry.load()
        found: Family = getattr(importlib.import_module(f"..{room}.{name}", __package__), exported)
        return found
    known = (*families(), *judges())
    raise InputError("a known family of painters or judges", repr(name), nearest(name, known))


# -- models -----------------------------------------------------------------------------------------------------------


def model_folders() -> tuple[Path, ...]:
    """Where models are looked for by name: the user's own, then what ships with the package."""
    return (user_models(), PACKAGE / "shelf")


def models() -> dict[str, Path]:
    """Every model that can be opened by name. An earlier place wins over a later one."""
    found: dict[str, Path] = {}
    for place in model_folders():
        for card in sorted(place.glob(f"*/{CARD}")):
            found.setdefault(card.parent.name, card.parent)
    return found


def find_model(name: str | Path = DEFAULT_MODEL) -> Path:
    """The folder of a model: by name, or by path (of a model folder or of a run folder)."""
    known = models()
    if str(name) in known:
        return known[str(name)]
    path = Path(name).expanduser()
    for folder in (path, path / "model"):
        if (folder / CARD).is_file():
            return folder
    raise InputError("a model's name, or the path of its folder or file", repr(str(name)), nearest(str(name), known))


def published_path(model: str | Path) -> Path | None:
    """The path of a Stable Diffusion model of others, where `model` is one and not the name of a model; else None."""
    from ..checkpoints.model_files import is_published

    path = Path(model).expanduser()
    return path if str(model) not in models() and is_published(path) else None


def open_painter(
    model: str | Path = DEFAULT_MODEL,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    reading: Reading | None = None,
) -> Painter:
    """A painter, ready to paint. model: a name from `giverny models`, a folder, or a Stable Diffusion model of others: a
    single file, or a diffusers folder. reading: how such a one is read, where its files do not say."""
    if (path := published_path(model)) is not None:
        from ..painters.diffusion.family import open_published

        place = pick_device(device)
        return _lent(open_published(path, place, pick_precision(place, precision), backend, reading))
    folder = find_model(model)
    card = read_card(folder)
    if card.family in judges():
        raise InputError("a model that paints", f"{folder}, a judge", "Judges are for `giverny measure --judge`.")
    place = pick_device(device)
    painter: Any = family(card.family).open(folder, card, place, pick_precision(place, precision), backend)
    if hasattr(painter, "clips"):  # a painter that a CLIP may lead: whose, one of its knobs says by name
        painter.clips = lambda name: open_clip(name or folder, str(place))
    return _lent(painter)


def _lent(painter: Any) -> Painter:
    """A painter that follows adapters finds them by name."""
    from .adapters import embeddings, find_lora

    if hasattr(painter, "adapters"):
        painter.adapters.lora, painter.adapters.words = find_lora, embeddings
    opened: Painter = painter
    return opened


def open_judge(model: str | Path, device: str = "auto") -> Any:
    """A judge, ready to look. model: a name from `giverny models`, or a folder."""
    folder = find_model(model)
    card = read_card(folder)
    if card.family not in judges():
        wanted = f"a judge (family {', '.join(judges())}), or an instrument such as inception, vgg, pixels or clip:MODEL"
        raise InputError(wanted, f"{folder}, of family {card.family!r}")
    place = pick_device(device)
    return family(card.family).open(folder, card, place)


def open_clip(model: str | Path = DEFAULT_MODEL, device: str = "auto") -> SharedSpace:
    """The CLIP beside a diffusion model, to ask how well words and pictures fit. model: as for `open_painter`.

    Or a published CLIP: a folder in transformers' layout, with tokenizer.json and preprocessor_config.json (of which the
    mean and the deviation are read).
    """
    from ..painters.diffusion import family as diffusion
    from ..painters.diffusion.clips import is_published, published_clip

    place, path = pick_device(device), Path(model).expanduser()
    if is_published(path):
        told = path / "preprocessor_config.json"
        try:
            brought = json.loads(told.read_text("utf-8"))
            mean, deviation = brought["image_mean"], brought["image_std"]
        except (OSError, ValueError, LookupError) as error:
            raise InputError("image_mean and image_std beside the weights", f"{told} ({error})") from error
        clip, made = published_clip(path)
        return SharedSpace(clip, Tokenizer.read(path / "tokenizer.json", made.text.length), place, mean, deviation)
    folder = find_model(model)
    card = read_card(folder)
    if card.family != diffusion.PAINTER.name:
        raise InputError("a diffusion model, which has CLIP beside it", f"{folder}, of family {card.family!r}")
    return diffusion.open_clip(folder, card, place)


def describe_model(folder: Path) -> dict[str, Any]:
    """A card as plain data, with where it lies and how large it is."""
    card: Card = read_card(folder)
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    return {**json.loads(card.model_dump_json()), "folder": str(folder), "bytes": size, "fingerprint": card.fingerprint}
