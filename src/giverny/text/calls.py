"""What a prompt calls up beside words: `<lora:name:0.8>` and its kin, as AUTOMATIC1111 reads them (modules/extra_networks.py,
extensions-builtin/Lora/extra_networks_lora.py). They are taken out of the text. One whose numbers are none stays in it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_CALL = re.compile(r"<(\w+):([^>]+)>")
LORA = ("lora", "lyco")  # the second is what an extension had for the same files


@dataclass(frozen=True)
class AdapterCall:
    """One adapter asked for.

    kind: "lora" for `lora` and `lyco`; others, such as "hypernet", as they were written. text, image: how strongly it acts on
    the text tower and on the denoiser. rank: dynamic rank of a LyCORIS file; None: the file's own.
    """

    kind: str
    name: str
    text: float = 1.0
    image: float = 1.0
    rank: int | None = None


def extract(prompt: str) -> tuple[str, tuple[AdapterCall, ...]]:
    """The prompt without calls, and the calls in their order.

    `<lora:name:text:image:rank>`; what is left out is 1, and image is text. The last three may be named instead: te=, unet=,
    dyn=.
    """
    calls: list[AdapterCall] = []

    def taken(found: re.Match[str]) -> str:
        call = _read(found[1], found[2].split(":"))
        if call is None:
            return found[0]
        calls.append(call)
        return ""

    return _CALL.sub(taken, prompt), tuple(calls)


def _read(kind: str, items: list[str]) -> AdapterCall | None:
    named = dict(pair for item in items if len(pair := item.split("=")) == 2)
    name, *places = [item for item in items if item.count("=") != 1] or [""]
    given = dict(zip(("te", "unet", "dyn"), places, strict=False)) | named
    try:
        text = float(given.get("te", 1.0))
        image = float(given.get("unet", text))
        rank = int(given["dyn"]) if "dyn" in given else None
    except ValueError:
        return None
    if not name or not (math.isfinite(text) and math.isfinite(image)):
        return None
    return AdapterCall("lora" if kind in LORA else kind, name, text, image, rank)
