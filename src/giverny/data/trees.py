"""A folder or a zip archive seen as the same thing: names and bytes.

Names are relative, with forward slashes, sorted. Archives are read in place and never unpacked, so no name inside one
can reach a file outside it. Hidden files and what operating systems leave behind are not listed.
"""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from ..base.errors import InputError

LARGEST = 512 * 2**20  # bytes of one file inside an archive; more is taken for a decompression bomb


class Tree(Protocol):
    """Named files. `read_bytes` may be called from several threads and raises OSError with a reason it can state."""

    root: Path

    def names(self) -> list[str]: ...

    def read_bytes(self, name: str) -> bytes: ...


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


class FolderTree:
    """The files below a folder. Links to files are followed, links to folders are not (they may form a circle)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        found = []
        for folder, _, files in os.walk(self.root):
            found += [(Path(folder) / file).relative_to(self.root).as_posix() for file in files]
        return sorted(filter(_visible, found))

    def read_bytes(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


class ZipTree:
    """The files inside a zip archive.

    One handle serves all threads under a lock: unpacking a picture's bytes takes a fraction of decoding it. A forked
    process opens its own handle, because a shared one would share its position in the file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._handle: zipfile.ZipFile | None = None
        self._owner = -1
        with self._lock:
            self._names = sorted({i.filename for i in self._archive().infolist() if not i.is_dir()})

    def _archive(self) -> zipfile.ZipFile:
        if self._handle is None or self._owner != os.getpid():
            try:
                self._handle, self._owner = zipfile.ZipFile(self.root), os.getpid()
            except (zipfile.BadZipFile, OSError) as error:
                raise InputError("a zip archive", f"{self.root} ({error})", "it may be damaged or cut short") from error
        return self._handle

    def names(self) -> list[str]:
        return [name for name in self._names if _visible(name)]

    def read_bytes(self, name: str) -> bytes:
        with self._lock:
            archive = self._archive()
            info = archive.getinfo(name)
            if info.file_size > LARGEST:
                raise OSError(f"{info.file_size} bytes unpacked, more than {LARGEST}")
            try:
                return archive.read(info)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise OSError(f"damaged inside the archive: {error}") from error
            except (RuntimeError, NotImplementedError) as error:  # a password, or a compression Python cannot undo
                raise OSError(f"cannot be unpacked: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])  # type: ignore[misc]


def open_tree(path: str | Path) -> FolderTree | ZipTree:
    """The folder or zip archive at `path`. Raises InputError where there is neither."""
    root = Path(path).expanduser()
    if root.is_dir():
        return FolderTree(root)
    if root.is_file():
        return ZipTree(root)
    raise InputError("a folder or a zip archive of pictures", f"{root}, which does not exist", "check the path")
