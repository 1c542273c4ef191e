"""Photographs become paintings: the story behind `giverny translate`, for any painter that starts from a picture.

Files are taken one after the other, so that a folder of any size needs the memory of one picture, and one that cannot be read
does not stop the rest. What is already there, made of the same picture by the same model with the same settings, is left.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.contracts import Done, Failed, Painter, Picture, Progress, Request, Start
from ..base.errors import InputError
from ..base.picture import read_provenance
from ..base.start import enclosed
from ..data.folders import picture_extensions
from .image2image import paint_over


@dataclass(frozen=True)
class Job:
    """A picture file, and where what it becomes is written."""

    file: Path
    target: Path


@dataclass(frozen=True)
class Told:
    """What became of a job: "painted" with its picture, "there" already, "failed" with a reason; "moving" on the way."""

    job: Job
    happened: str
    picture: Picture | None = None
    reason: str = ""
    share: float = 1.0  # of this job that is done


def jobs_for(places: Iterable[Path], out: Path, ending: str = ".png") -> list[Job]:
    """Every file that is named, and every picture in a folder that is, with the folders below it; none of them twice.

    out: a folder, in which folders keep their inner order; or for a single file the name to write. Two that would be written
    to one place are told apart by a number. Raises InputError where a place is not there or a folder has no picture.
    """
    found: dict[Path, tuple[Path, Path]] = {}  # by where it lies: the file as named, and its name below `out`
    for place in places:
        if place.is_dir():
            own = sorted(p for p in place.rglob("*") if p.suffix.lower() in picture_extensions() and p.is_file())
            own = [p for p in own if out.resolve() not in p.resolve().parents]  # not what was made before
            if not own:
                raise InputError("a folder with pictures", f"{place}, in which there is none")
            for file in own:
                found.setdefault(file.resolve(), (file, file.relative_to(place)))
        elif place.is_file():
            found.setdefault(place.resolve(), (place, Path(place.name)))
        else:
            raise InputError("a picture file or a folder of them", f"{place}, which is not there")
    if len(found) == 1 and out.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") and not out.is_dir():
        return [Job(next(iter(found.values()))[0], out)]
    jobs, taken = [], set()
    for file, name in found.values():
        target, number = out / name.with_suffix(ending), 2
        while target in taken:
            target, number = out / name.with_name(f"{name.stem}-{number}").with_suffix(ending), number + 1
        taken.add(target)
        jobs.append(Job(file, target))
    return jobs


def translate(
    painter: Painter,
    jobs: Sequence[Job],
    strength: float = 1.0,  # 0 the picture as it is, 1 all of the translation
    size: tuple[int, int] | None = None,  # width and height; None: the picture's own
    knobs: Mapping[str, Any] | None = None,
    again: bool = False,  # also what is there already
    seed: int = 0,  # how strokes fall, where the painter has them fall by chance
) -> Generator[Told, None, None]:
    """Translate and write, job by job. Closing this stops within a step; the file at work is then not written.

    Raises InputError, before anything is painted, for a painter that starts from no picture.
    """
    if "start" not in getattr(painter, "can", frozenset()):
        raise InputError("a model that starts from a picture", f"{painter.name}, of family {painter.family}")
    for job in jobs:
        try:
            start = Start(picture=enclosed(job.file), strength=strength)
            request = Request(id=str(job.file), seed=seed, start=start, size=size, knobs=knobs or {})
            if not again and is_made(painter, request, job.target):
                yield Told(job, "there")
                continue
            with closing(paint_over(painter, [request])) as events:
                for event in events:
                    if isinstance(event, Progress):
                        yield Told(job, "moving", share=event.step / (event.total or event.step))
                    elif isinstance(event, Failed):
                        yield Told(job, "failed", reason=event.reason)
                    elif isinstance(event, Done):
                        job.target.parent.mkdir(parents=True, exist_ok=True)
                        event.artifact.save(job.target)
                        yield Told(job, "painted", event.artifact)
        except InputError as error:
            yield Told(job, "failed", reason=str(error))


def is_made(painter: Painter, request: Request, target: Path) -> bool:
    """Whether a file says that it was made by this painter, of the same picture, with the same settings."""
    if not target.is_file() or request.start is None:
        return False
    try:
        told = read_provenance(target)
    except InputError:
        return False
    start = told.request.start
    same = start is not None and start.picture.sha256 == request.start.picture.sha256
    same = same and start is not None and start.strength == request.start.strength and told.request.seed == request.seed
    size = request.size is None or told.request.size == request.size
    return same and size and told.fingerprint == painter.fingerprint and dict(told.request.knobs) == dict(request.knobs)
