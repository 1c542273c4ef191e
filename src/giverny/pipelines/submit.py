"""An archive of paintings for a competition: the story behind `giverny submit`, for any painter.

Pictures are JPEGs without chroma subsampling, of quality 95 unless said otherwise: compression moves FID, and so MiFID.

Painting takes hours. Each picture is written beside the archive as soon as it is done, in a folder `images.parts`, under a name
that hangs on all it was made of; a second run takes what is there, and the archive is written at the end, whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..base.contracts import Done, Failed, Painter, Progress, Request, Start
from ..base.errors import InputError, nearest
from ..base.files import fingerprint
from ..base.recipe import check
from ..base.runtime import interrupts_held_back
from ..base.start import Enclosed
from ..data.catalog import CATALOG, raw_files
from ..data.folders import open_source
from ..data.trees import FolderTree, Tree
from .submit_archive import MONET, Checked, Rules, looked_at, pack, refuse_count
from .walk import able

GROUP = 16  # pictures asked for at once: so many photographs are held in memory
_PART = re.compile(r"[0-9a-f]{16}\.jpg|\.[0-9a-f]{16}\.jpg\..+\.part")  # a part, or what a killed run left of one


@dataclass(frozen=True)
class Photo:
    """A photograph in a folder or in a zip archive."""

    tree: Tree
    name: str  # in the tree

    @property
    def place(self) -> Path:
        """Where it lies; for a photograph in an archive the archive's path goes on inside it."""
        return self.tree.root / self.name

    def read(self) -> Enclosed:
        """The file, under its name in the tree: what is written into pictures tells nothing of folders above.

        Raises InputError where it cannot be read.
        """
        try:
            content = self.tree.read_bytes(self.name)
        except OSError as error:
            raise InputError("a readable picture file", f"{self.place}: {error.strerror or error}") from error
        return Enclosed(name=self.name, sha256=hashlib.sha256(content).hexdigest(), content=content)


@dataclass(frozen=True)
class Piece:
    """A picture of the archive to be: its name there, and the photograph it is made of, or else the seed."""

    name: str
    photo: Photo | None = None
    seed: int = 0

    @property
    def called(self) -> str:
        """What a person knows it by."""
        return str(self.photo.place) if self.photo else f"seed {self.seed}"


@dataclass(frozen=True)
class Told:
    """What became of a piece: "painted", "there" already, "failed" with a reason; "moving" on the way."""

    piece: Piece
    happened: str
    part: Path | None = None  # the picture's file until the archive is written
    reason: str = ""
    share: float = 1.0  # of this piece that is done
    cut: bool = False  # whether its photograph is of another size than the picture


# ---------------------------------------------------------------------------------------------------------------------
# What is painted


def photos_in(places: Iterable[Path]) -> tuple[list[Photo], list[tuple[str, str]]]:
    """(the photographs named, (place, reason) of those that cannot be read).

    A place is a file, a folder or a zip archive with all that lies in it, a folder in an archive (`set.zip/photo_jpg`), or a
    named set of pictures, all parts of it. What is named twice counts once. Folders and archives are looked through, so that a
    damaged file is known before hours of work. Raises InputError where there is nothing.
    """
    found: dict[Path, Photo] = {}
    bad: list[tuple[str, str]] = []
    for place in places:
        root, inside = _rooted(place)
        if root.is_file() and root.suffix.lower() != ".zip":
            found.setdefault(root.resolve(), Photo(FolderTree(root.parent), root.name))
            continue
        source = open_source(root, tolerate=1, kind="plain")
        own = [entry.name for entry in source.entries if entry.name.startswith(inside)]
        lost = [(str(root / name), reason) for name, reason in source.skipped if name.startswith(inside)]
        if not own:
            folders = sorted({PurePosixPath(entry.name).parent.as_posix() for entry in source.entries})
            raise InputError(f"a folder of pictures in {root}", repr(inside.rstrip("/")), nearest(inside, folders))
        bad += lost
        for name in own:
            found.setdefault(root.resolve() / name, Photo(source.tree, name))
    return list(found.values()), bad


def _rooted(place: Path) -> tuple[Path, str]:
    """(a file, folder or archive, the start of names in it that are meant). Raises InputError where there is none."""
    if place.exists():
        return place, ""
    if (entry := CATALOG.get(str(place))) and entry.reader == "folder":
        return raw_files(entry.name), ""
    for above in place.parents:
        if above.is_file() and above.suffix.lower() == ".zip":
            return above, f"{place.relative_to(above).as_posix()}/"
    sets = [name for name, entry in CATALOG.items() if entry.reader == "folder"]
    raise InputError(
        "photographs: a file, a folder, a zip archive (or a folder in one) or a named set",
        f"{place}, which is not there",
        nearest(str(place), sets),
    )


def pieces_of(photos: Iterable[Photo]) -> list[Piece]:
    """A piece of each photograph, called like its file; letters that archives cannot be sure of become _, and two of one name,
    whether in capitals or not, are told apart by a number."""
    pieces, taken = [], set()
    for photo in photos:
        stem = re.sub(r"[^\w.-]", "_", PurePosixPath(photo.name).stem)
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        pieces.append(Piece(f"{name}.jpg", photo))
    return pieces


def drawn(count: int) -> list[Piece]:
    """Pieces painted from noise, of seed 0 and on."""
    return [Piece(f"{seed:05d}.jpg", seed=seed) for seed in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Painting


@dataclass(frozen=True)
class _Plan:
    """How pieces are painted."""

    side: int  # of a picture of the archive
    size: tuple[int, int]  # asked of the painter
    strength: float
    knobs: dict[str, Any]
    quality: int

    def request(self, piece: Piece, file: Enclosed | None) -> Request:
        """Of a photograph its content is the seed, so that painters that draw by chance draw for each its own."""
        start = Start(picture=file, strength=self.strength) if file else None
        seed = int(file.sha256[:8], 16) if file else piece.seed
        return Request(id=piece.name, seed=seed, start=start, size=self.size, knobs=self.knobs)

    def key(self, painter: Painter, request: Request) -> str:
        """16 hex digits that hang on all a picture is made of, and not on what its photograph is called."""
        begun = [request.start.picture.sha256, float(self.strength)] if request.start else []
        return fingerprint([painter.fingerprint, request.seed, begun, self.side, self.size, self.knobs, self.quality])


def parts_of(out: Path) -> Path:
    """The folder beside an archive where its pictures are kept until it is written."""
    return out.with_suffix(".parts")


def submit(
    painter: Painter,
    pieces: Sequence[Piece],
    out: Path,
    rules: Rules = MONET,
    strength: float = 1.0,  # of photographs: 0 as they are, 1 all of the translation
    knobs: Mapping[str, Any] | None = None,
    quality: int = 95,
    size: tuple[int, int] | None = None,  # asked of the painter, where its knobs enlarge; None: as the rules say
    keep: bool = False,  # the parts, once the archive is written
) -> Generator[Told | Checked, None, None]:
    """Paint what is not there yet, then write the archive and say at last how it keeps the rules, which it does.

    Closing this stops within a step; what is done stays in `parts_of(out)`. That folder is taken away once the archive holds a
    picture of every piece; where some failed it stays, so that they alone are left to do. Raises InputError, before anything is
    painted, for a count that breaks the rules, a painter that cannot, settings that are none, and an archive that is there;
    where the painter paints another size; and as soon as too many pieces have failed.
    """
    of_photos = any(piece.photo for piece in pieces)
    refuse_count(len(pieces), rules)
    _refuse_painter(painter, of_photos)
    check(painter.knobs, dict(knobs or {}), "knobs")
    if out.suffix.lower() != ".zip" or out.exists():
        given = f"{out}, which is there already" if out.exists() else str(out)
        raise InputError("the name of a zip archive to write, such as images.zip", given, "Take another name, or move it away.")
    made: dict[str, Path] = {}
    failed: list[Told] = []
    plan = _Plan(rules.size, size or (rules.size, rules.size), strength, dict(knobs or {}), quality)
    with closing(_painted(painter, pieces, parts_of(out), plan)) as painting:
        for told in painting:
            yield told
            if told.part is not None:
                made[told.piece.name] = told.part
            elif told.happened == "failed":
                failed.append(told)
            if len(pieces) - len(failed) < rules.least:
                break
    if len(made) < rules.least:
        wanted = f"at least {rules.least:,} pictures, as the competition asks"
        given = f"{len(failed):,} of {len(pieces):,} that cannot be painted"
        reason = f" ({failed[0].piece.called}: {failed[0].reason})" if failed else ""
        remedy = f"What is painted stays in {parts_of(out)}: mend or add some, and run the same command again."
        raise InputError(wanted, given + reason, remedy)
    yield pack({piece.name: made[piece.name] for piece in pieces if piece.name in made}, out, rules)
    if not failed and not keep:
        _tidy(parts_of(out))


def _refuse_painter(painter: Painter, of_photos: bool) -> None:
    """Raises InputError where a painter does not begin from what it is to begin from."""
    given = f"{painter.name}, of family {painter.family}"
    if of_photos and "start" not in getattr(painter, "can", frozenset()):
        raise InputError("a model that starts from a picture", given, "One that paints from noise takes -n, not photographs.")
    if not of_photos and "start" in getattr(painter, "needs", frozenset()):
        raise InputError("a model that paints from noise", given, "Name photographs: this one translates them.")


def _painted(painter: Painter, pieces: Sequence[Piece], parts: Path, plan: _Plan) -> Generator[Told, None, None]:
    """What becomes of each piece. A part's name is a fingerprint of the model, the photograph or seed, and the settings."""
    waiting: list[tuple[Request, Told]] = []
    for number, piece in enumerate(pieces, start=1):
        try:
            file = piece.photo.read() if piece.photo else None
        except InputError as error:
            yield Told(piece, "failed", reason=str(error))
        else:
            request = plan.request(piece, file)
            part = parts / f"{plan.key(painter, request)}.jpg"
            cut = file is not None and _is_other(file, plan.side)
            if _is_sound(part, plan.side):
                yield Told(piece, "there", part, cut=cut)
            else:
                waiting.append((request, Told(piece, "painted", part, cut=cut)))
        if waiting and (len(waiting) == GROUP or number == len(pieces)):
            yield from _group(painter, waiting, plan)
            waiting.clear()


def _group(painter: Painter, waiting: Sequence[tuple[Request, Told]], plan: _Plan) -> Generator[Told, None, None]:
    """Paint some requests and write their parts. waiting: with each request what is told once it is painted."""
    meant = {request.id: told for request, told in waiting}
    with closing(able(painter, [request for request, _ in waiting])) as events:
        for event in events:
            told = meant[event.id]
            if isinstance(event, Progress):
                yield Told(told.piece, "moving", share=event.step / (event.total or event.step))
            elif isinstance(event, Failed):
                yield Told(told.piece, "failed", reason=event.reason)
            elif isinstance(event, Done):
                wide, high = event.artifact.size
                if (wide, high) != (plan.side, plan.side):
                    wanted = f"a model and settings that paint {plan.side} x {plan.side} pixels"
                    raise InputError(wanted, f"{wide} x {high}", "Where they enlarge, ask for a smaller size.")
                with interrupts_held_back():  # what is painted is kept
                    event.artifact.save(told.part, plan.quality)
                yield told


def _is_sound(part: Path, size: int) -> bool:
    """Whether a part is there, and undamaged."""
    try:
        return not looked_at(part.read_bytes(), size)[0]
    except OSError:
        return False


def _is_other(file: Enclosed, size: int) -> bool:
    """Whether a photograph is of another size. One that cannot be read is told of when it is painted."""
    with suppress(Exception), Image.open(io.BytesIO(file.content or b"")) as image:
        return image.size != (size, size)
    return False


def _tidy(parts: Path) -> None:
    """Take away the parts, and their folder where nothing else lies in it."""
    for file in parts.iterdir():
        if _PART.fullmatch(file.name):
            file.unlink(missing_ok=True)
    with suppress(OSError):
        parts.rmdir()
