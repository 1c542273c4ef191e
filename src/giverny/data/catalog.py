"""Named sets: what they hold, whose they are, where they come from, and how to open them.

A set is looked for in the folder named by the environment variable GIVERNY_DATA (`$GIVERNY_DATA/<name>/`), then in the
user's cache; where a public address is known it is fetched into the cache, checked against its published checksum, and
only then given its name. What lies under GIVERNY_DATA is the user's own and taken as it is: the readers notice damage.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from urllib.request import Request, urlopen

from ..base.contracts import Frozen, Source
from ..base.errors import InputError, choose, nearest
from ..base.files import atomic_path
from . import captions as words
from .arrays import find_idx, open_idx
from .captions import Captions
from .cifar import is_cifar, open_cifar
from .crops import part_of
from .folders import Kind, open_source
from .named import open_clothing, open_emoji, open_products

VARIABLE = "GIVERNY_DATA"
# Called with (file name, bytes so far, bytes in all or None) as a download goes on.
Progress = Callable[[str, int, int | None], None]


class File(Frozen):
    """One file of a set. checksum: 'sha256:...' or 'md5:...', as published."""

    name: str
    bytes: int
    checksum: str
    url: str | None = None


class DataSet(Frozen):
    """A named set and the facts about it."""

    name: str
    what: str
    count: str  # of pictures
    size: str  # of a picture
    licence: str
    homepage: str
    reader: Literal["idx", "cifar", "clothing", "products", "folder", "emoji", "prepared"]
    files: tuple[File, ...] = ()
    made_from: tuple[str, ...] = ()  # named sets that `giverny data prepare` makes it from; it has no files elsewhere
    splits: tuple[str, ...] = ("train",)
    captions: Captions | None = None  # how its labels are put into words

    @property
    def public(self) -> bool:
        """Whether every file can be fetched."""
        return bool(self.files) and all(file.url for file in self.files)

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the files that are there where the set is."""
        return tuple(f"{split}.zip" for split in self.splits) if self.made_from else tuple(f.name for f in self.files)


def _files(base: str, *facts: tuple[str, int, str]) -> tuple[File, ...]:
    return tuple(File(name=n, bytes=size, checksum=check, url=base + n) for n, size, check in facts)


_SETS = (
    DataSet(
        name="fashion-mnist",
        what="shop pictures of garments in 10 classes",
        count="60,000 + 10,000",
        size="28x28 grey",
        licence="MIT, copyright 2017 Zalando SE",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        reader="idx",
        files=_files(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
            "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
            (
                "train-images-idx3-ubyte.gz",
                26421880,
                "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                29515,
                "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                4422102,
                "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                5148,
                "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
        splits=("train", "test"),
        captions=words.FASHION_MNIST,
    ),
    DataSet(
        name="mnist",
        what="handwritten digits",
        count="60,000 + 10,000",
        size="28x28 grey",
        licence="CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
        homepage="https://yann.lecun.com/exdb/mnist/",
        reader="idx",
        files=_files(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ("train-images-idx3-ubyte.gz", 9912422, "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte.gz", 28881, "md5:d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte.gz", 1648877, "md5:9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte.gz", 4542, "md5:ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        splits=("train", "test"),
        captions=words.MNIST,
    ),
    DataSet(
        name="cifar10",
        what="small photographs of animals and vehicles in 10 classes",
        count="50,000 + 10,000",
        size="32x32",
        licence="none stated; made by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton for research",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        reader="cifar",
        files=_files(
            "https://www.cs.toronto.edu/~kriz/",
            ("cifar-10-python.tar.gz", 170498071, "md5:c58f30108f718f92721af3b95e74349a"),
        ),
        splits=("train", "test"),
        captions=words.CIFAR10,
    ),
    DataSet(
        name="clothing-cc0",
        what="clothing photographed at home, in 17 classes",
        count="5,096",
        size="longer side 96",
        licence="CC0 1.0",
        homepage="https://github.com/alexeygrigorev/clothing-dataset",
        reader="clothing",
        files=(
            File(
                name="clothing_96.zip",
                bytes=13618564,
                checksum="sha256:a0d878734e27c60ce8c6865fec36945a0ef7f63d02e4f09a479f851547e67205",
            ),
        ),
    ),
    DataSet(
        name="fashion-products",
        what="shop photographs of clothes and accessories with colour, type and wearer",
        count="8,790",
        size="96x96",
        licence="MIT as far as is known (Kaggle: Fashion Product Images, Param Aggarwal); for experiments only",
        homepage="https://www.kaggle.com/datasets/paramaggarwal/fashion-product-images-small",
        reader="products",
        files=(
            File(
                name="fashion_products_96.zip",
                bytes=21629815,
                checksum="sha256:2d97ed6ae0c37c75b6280665e2f5025b6a3c3efe219602bd36ddea009cdf2f67",
            ),
        ),
    ),
    DataSet(
        name="monet-paintings",
        what="paintings by Claude Monet",
        count="240 + 60",
        size="256x256",
        licence="public domain (the painter died in 1926)",
        homepage="https://github.com/UIBER2023/CycleGAN-Photo2Monet",
        reader="folder",
        splits=("train", "test"),
        files=(
            File(
                name="monet_256.zip",
                bytes=4972588,
                checksum="sha256:63c71dae45a96d302e5779deb3168aee66cb114874b47055ea7052f6d87f622e",
            ),
        ),
    ),
    DataSet(
        name="landscape-photos",
        what="crops of 74 landscape photographs",
        count="276 + 69",
        size="256x256",
        licence="CC0 1.0, CC BY-SA 4.0 or LGPL 3.0, photograph by photograph (see sources.csv)",
        homepage="https://github.com/KDE/plasma-workspace-wallpapers",
        reader="folder",
        splits=("train", "test"),
        files=(
            File(
                name="photos_256.zip",
                bytes=10164613,
                checksum="sha256:b08cfc1518a88c437b53a5508decf6263391ad75f210379184381199070f74ff",
            ),
        ),
    ),
    DataSet(
        name="emoji",
        what="emoji with their names",
        count="1,367",
        size="64x64",
        licence="Apache-2.0, Google (Noto Emoji)",
        homepage="https://github.com/googlefonts/noto-emoji",
        reader="emoji",
        files=(
            File(
                name="noto_emoji_64.npz",
                bytes=5279599,
                checksum="sha256:99e44ce1ec09cf6a069af6ef4a1cacf13949c62e578bbf6cdeeba3f8462a0bb0",
            ),
        ),
    ),
    DataSet(
        name="wardrobe",
        what="clothes cut out, recoloured and put into words, from shop and home photographs",
        count="about 20,000",
        size="64x64",
        licence="as fashion-products and clothing-cc0: for experiments only",
        homepage="https://www.kaggle.com/datasets/paramaggarwal/fashion-product-images-small",
        reader="prepared",
        made_from=("fashion-products", "clothing-cc0"),
        splits=("train", "test"),
    ),
    DataSet(
        name="wardrobe-cc0",
        what="the same from photographs at home alone",
        count="about 18,000",
        size="64x64",
        licence="CC0 1.0",
        homepage="https://github.com/alexeygrigorev/clothing-dataset",
        reader="prepared",
        made_from=("clothing-cc0",),
        splits=("train", "test"),
    ),
)

CATALOG: Mapping[str, DataSet] = MappingProxyType({entry.name: entry for entry in _SETS})


def find(entry: DataSet, cache: Path | None = None) -> Path | None:
    """The folder that holds a set on this machine, or None. cache: instead of the user's own cache folder."""
    if named := os.environ.get(VARIABLE):
        root = Path(named).expanduser()
        if not root.is_dir():
            raise InputError(f"{VARIABLE} to name a folder", str(root), "correct or unset the variable")
        here = root / entry.name
        if here.is_dir() and (all((here / n).is_file() for n in entry.needed) if entry.made_from else any(here.iterdir())):
            return here
    folder = (cache or _user_cache()) / entry.name
    return folder if all((folder / name).is_file() for name in entry.needed) else None


def locate(name: str | DataSet, fetch: bool = True, progress: Progress | None = None, cache: Path | None = None) -> Path:
    """The folder that holds a named set, fetched first if need be (into `cache`; default: the user's cache folder).

    Raises InputError where the name is unknown, the set has no public address, the network is out of reach, or what
    came does not match its checksum.
    """
    entry = name if isinstance(name, DataSet) else CATALOG[choose(name, CATALOG, "set")]
    found = find(entry, cache)
    if found:
        return found
    if entry.made_from:
        raise InputError(
            f"the prepared set {entry.name!r}", "none on this machine", f"make it: giverny data prepare {entry.name}"
        )
    own = f"put {', '.join(f.name for f in entry.files)} into $" + f"{VARIABLE}/{entry.name}/ (set the variable first)"
    if not entry.public:
        raise InputError(
            f"the set {entry.name!r} on this machine, since its files have no public address",
            f"neither {VARIABLE} nor the cache holding it",
            f"{own}; its pictures come from {entry.homepage}",
        )
    if not fetch:
        raise InputError(f"the set {entry.name!r} on this machine", "no leave to fetch it", f"allow that, or {own}")
    folder = (cache or _user_cache()) / entry.name
    for file in entry.files:
        if not (folder / file.name).is_file():
            _download(file, folder / file.name, own, progress)
    return folder


def home_of(name: str) -> Path:
    """Where a set that is made on this machine is kept: below GIVERNY_DATA where that is set, else the user's cache."""
    named = os.environ.get(VARIABLE)
    return (Path(named).expanduser() if named else _user_cache()) / name


def _user_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("giverny", appauthor=False) / "data"


def _download(file: File, target: Path, instead: str, progress: Progress | None) -> None:
    """Fetch one file beside its place, check it, then give it its name: a half-written one never counts."""
    assert file.url
    algorithm, _, expected = file.checksum.partition(":")
    digest, done = hashlib.new(algorithm, usedforsecurity=False), 0
    with atomic_path(target) as part, part.open("wb") as out:
        try:
            with urlopen(Request(file.url, headers={"User-Agent": "giverny"}), timeout=30) as answer:
                while (chunk := answer.read(2**18)) and done <= file.bytes:
                    out.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if progress:
                        progress(file.name, done, file.bytes)
        except (OSError, HTTPException) as error:
            raise InputError(f"{file.name} from {file.url}", f"a failure ({error})", f"go online, or {instead}") from error
        if digest.hexdigest() != expected:
            came = f"{done} bytes with {algorithm} {digest.hexdigest()}"
            raise InputError(f"{file.bytes} bytes with {algorithm} {expected} from {file.url}", came, instead)


def open_named(
    name: str | Path,
    split: str = "train",
    *,
    captions: Captions | None = None,
    tolerate: float = 0.05,
    kind: Kind | None = None,
    fetch: bool = True,
    progress: Progress | None = None,
) -> Source:
    """A named set, or one's own pictures by path (folder, zip archive, IDX folder, CIFAR folder or archive).

    A folder that bears a set's name is read as that set. split: "train" or "test"; sets without a test part have
    "train" only. captions: other words for the labels of IDX and CIFAR sets. tolerate, kind: as `open_source`.
    """
    path = Path(name).expanduser()
    if str(name) in CATALOG:
        entry = CATALOG[str(name)]
    elif path.is_dir() and path.resolve().name in CATALOG:
        entry = CATALOG[path.resolve().name]
    elif path.exists():
        return _open_path(path, split, captions, tolerate, kind)
    else:
        raise InputError("a named set or the path of a folder or archive", f"{str(name)!r}", nearest(str(name), CATALOG))
    choose(split, entry.splits, f"split of {entry.name}")
    folder = locate(entry.name, fetch, progress) if str(name) in CATALOG else path
    if entry.reader == "idx":
        return open_idx(folder, split, captions or entry.captions, entry.name)
    if entry.reader == "prepared":
        return open_source(folder / f"{split}.zip", tolerate=tolerate, kind=kind)
    place = _packed(entry, folder)
    match entry.reader:
        case "cifar":
            return open_cifar(place, split, captions or entry.captions, entry.name)
        case "clothing":
            return open_clothing(place, tolerate)
        case "products":
            return open_products(place, tolerate)
        case "emoji":
            return open_emoji(folder / entry.files[0].name)
    found = open_source(place, tolerate=tolerate, kind=kind)
    return part_of(found, split) if len(entry.splits) > 1 else found


def raw_files(name: str) -> Path:
    """The archive or folder of a named set's own files, fetched first if need be."""
    return _packed(CATALOG[name], locate(name))


def _packed(entry: DataSet, folder: Path) -> Path:
    """A set's archive as published, or its folder where its owner has unpacked it."""
    only = folder / entry.files[0].name
    return only if only.is_file() else folder


def _open_path(path: Path, split: str, captions: Captions | None, tolerate: float, kind: Kind | None) -> Source:
    if kind is None and path.is_dir() and find_idx(path, "train"):
        return open_idx(path, split, captions)
    if kind is None and is_cifar(path):
        return open_cifar(path, split, captions)
    if split != "train":
        raise InputError("the split 'train'", f"{split!r} of {path}", "a folder of pictures has one part; open another")
    return open_source(path, tolerate=tolerate, kind=kind)
