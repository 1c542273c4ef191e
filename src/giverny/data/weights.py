"""Published weights of networks that look at pictures: where they lie, whose they are, how they are known.

They are looked for as data sets are: under GIVERNY_DATA (`$GIVERNY_DATA/<name>/`), then in the user's cache, then at their
public address.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from ..base.errors import choose
from ..base.tensors import read_tensors
from .catalog import DataSet, File, Progress, find, locate

_FID = "https://github.com/mseitzer/pytorch-fid"
_LPIPS = "https://github.com/richzhang/PerceptualSimilarity"
_MINILM = "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2"

_ENTRIES = (
    DataSet(
        name="inception-2015-12-05",
        what="Inception v3 as published with TensorFlow, with which FID is defined",
        count="1 network",
        size="95.6 MB",
        licence="Apache-2.0",
        homepage=_FID,
        reader="folder",
        files=(
            File(
                name="pt_inception-2015-12-05-6726825d.pth",
                bytes=95628359,
                checksum="sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                url=f"{_FID}/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
            ),
        ),
    ),
    DataSet(
        name="vgg16",
        what="VGG16 trained on ImageNet",
        count="1 network",
        size="553 MB",
        licence="CC BY 4.0 (Oxford), BSD-3-Clause (torchvision)",
        homepage="https://pytorch.org/vision/stable/models/vgg.html",
        reader="folder",
        files=(
            File(
                name="vgg16-397923af.pth",
                bytes=553433881,
                checksum="sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                url="https://download.pytorch.org/models/vgg16-397923af.pth",
            ),
        ),
    ),
    DataSet(
        name="lpips-vgg",
        what="LPIPS 0.1: how much each channel of VGG16 counts",
        count="1 network",
        size="7 kB",
        licence="BSD-2-Clause",
        homepage=_LPIPS,
        reader="folder",
        files=(
            File(
                name="vgg.pth",
                bytes=7289,
                checksum="sha256:a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
                url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
                "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth",
            ),
        ),
    ),
    DataSet(
        name="all-minilm-l6-v2",
        what="a BERT of 6 layers taught to compare sentences: a text encoder that has never seen a picture",
        count="1 network",
        size="90.9 MB",
        licence="Apache-2.0",
        homepage=_MINILM,
        reader="folder",
        files=tuple(
            File(name=name, bytes=size, checksum=f"sha256:{digest}", url=f"{_MINILM}/resolve/main/{name}")
            for name, size, digest in (
                ("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            )
        ),
    ),
)

WEIGHTS: Mapping[str, DataSet] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def at_hand(name: str) -> bool:
    """Whether they are on this machine."""
    return find(WEIGHTS[choose(name, WEIGHTS, "published weights")]) is not None


def weights_of(name: str, progress: Progress | None = None) -> dict[str, Tensor]:
    """Tensors by the names they were published under. name: of `WEIGHTS`, or the path of a file."""
    path = Path(name).expanduser()
    if not path.is_file():
        entry = WEIGHTS[choose(name, WEIGHTS, "published weights (or the path of a file)")]
        path = locate(entry, progress=progress) / entry.files[0].name
    return read_tensors(path)
