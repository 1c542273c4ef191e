"""How other programs than A1111's write down how a picture was made, brought to A1111's keys.

InvokeAI: chunk `invokeai_metadata` (version 3 on), before that `sd-metadata`. NovelAI: chunks Software, Description and
Comment; its clip skip 2 and ENSD 31337 as A1111 reads them (modules/images.py). Fooocus: JSON where A1111 has its text
(modules/meta_parser.py). ComfyUI's graphs: `comfy.py`. Values are taken where they are of the type they should be, and
nothing raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..base.infotext import Dialect, Note, Parameters, sampler_label, schedule_label
from .plausible import doubts

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")  # how InvokeAI 2 marks what to move away from
_HEX = re.compile(r"[0-9a-f]{8,64}")
# Names that fold to nothing A1111 has.
_SAMPLERS = {"kdpm_2": "DPM2", "kdpm_2_a": "DPM2 a", "k_dpmpp_2": "DPM++ 2M", "pndm": "PLMS", "ddim_v3": "DDIM"}


def as_json(text: str) -> Any:
    """The value of a JSON text; None of a text that is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def scalar(value: Any) -> str | None:
    """A word or number as infotext writes it; None for anything else, an empty word too."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and value == value and abs(value) < 2**53 and value == int(value):
        value = int(value)
    return str(value).encode("utf-8", "replace").decode().strip() or None


def parameters(
    dialect: Dialect, prompt: Any, negative: Any, told: Mapping[str, Any], notes: tuple[Note, ...] = ()
) -> Parameters:
    """Parameters of what a program told under A1111's keys; what is no word or number is left out."""
    settings = {key: text for key, value in told.items() if (text := scalar(value)) is not None}
    return Parameters(
        prompt=scalar(prompt) or "",
        negative=scalar(negative) or "",
        settings=settings,
        dialect=dialect,
        notes=(*notes, *doubts(settings)),
    )


def sampler_pair(name: Any, schedule: Any = None) -> dict[str, str]:
    """Sampler and, where it is said, schedule, under A1111's names. A "_k" at the end of an InvokeAI name is Karras."""
    text = scalar(name) or ""
    if not schedule and text.endswith("_k"):
        text, schedule = text[:-2], "karras"
    label = {"Sampler": _SAMPLERS.get(text, sampler_label(text))} if text else {}
    spacing = scalar(schedule)
    if spacing == "ddim_uniform":
        spacing = "ddim"
    return {**label, **({"Schedule type": "Normal" if spacing == "normal" else schedule_label(spacing)} if spacing else {})}


def _size(told: Mapping[str, Any]) -> str | None:
    wide, high = scalar(told.get("width")), scalar(told.get("height"))
    return f"{wide}x{high}" if wide and high else None


def _part(value: Any, *names: str) -> Any:
    """The first of these entries that a mapping has; None of anything that is no mapping."""
    return next((value[name] for name in names if value.get(name)), None) if isinstance(value, Mapping) else None


def from_invokeai(told: Any) -> Parameters | None:
    """Of `invokeai_metadata`. Its clip_skip counts the layers left out, A1111's the layer from the end."""
    if not isinstance(told, Mapping) or "positive_prompt" not in told:
        return None
    model, vae, skip = told.get("model"), told.get("vae"), told.get("clip_skip")
    hashed = scalar(_part(model, "hash", "model_hash")) or ""
    settings = {
        "Steps": told.get("steps"),
        **sampler_pair(told.get("scheduler")),
        "CFG scale": told.get("cfg_scale"),
        "Seed": told.get("seed"),
        "Size": _size(told),
        "Model hash": hashed if _HEX.fullmatch(hashed) else None,
        "Model": _part(model, "model_name", "name") or model,
        "VAE": _part(vae, "model_name", "name") or vae,
        "Denoising strength": told.get("strength"),
        "Clip skip": skip + 1 if isinstance(skip, int) and skip > 0 else None,
        "RNG": {"cpu": "CPU", "cuda": "GPU"}.get(str(told.get("rand_device"))),
        "Loras": _loras(told.get("loras")),
        "Version": f"InvokeAI {told['app_version']}" if scalar(told.get("app_version")) else None,
    }
    return parameters("invokeai", told.get("positive_prompt"), told.get("negative_prompt"), settings)


def _loras(told: Any) -> str | None:
    """Names and weights, "name: 0.8, ..."."""
    found = []
    for each in told if isinstance(told, list) else []:
        model = _part(each, "model", "lora")
        name = _part(model, "model_name", "name")
        if scalar(name):
            found.append(f"{name}: {scalar(_part(each, 'weight')) or 1}")
    return ", ".join(found) or None


def from_old_invokeai(told: Any) -> Parameters | None:
    """Of `sd-metadata`, InvokeAI 2: the negative prompt stands in brackets within the prompt."""
    image = _part(told, "image")
    if not isinstance(image, Mapping):
        return None
    prompt = image.get("prompt")
    if isinstance(prompt, list):
        prompt = ", ".join(filter(None, (scalar(_part(each, "prompt")) for each in prompt)))
    text = scalar(prompt) or ""
    hashed = (scalar(told.get("model_hash")) or "")[:10]
    settings = {
        "Steps": image.get("steps"),
        **sampler_pair(image.get("sampler")),
        "CFG scale": image.get("cfg_scale"),
        "Seed": image.get("seed"),
        "Size": _size(image),
        "Model hash": hashed if _HEX.fullmatch(hashed) else None,
        "Model": told.get("model_weights"),
        "Denoising strength": image.get("strength"),
        "Version": f"InvokeAI {told['app_version']}" if scalar(told.get("app_version")) else None,
    }
    negative = ", ".join(part.strip() for part in _BRACKETS.findall(text))
    return parameters("invokeai", _BRACKETS.sub("", text), negative, settings)


def from_novelai(words: Mapping[str, str], size: tuple[int, int]) -> Parameters | None:
    """Of the chunks of a NovelAI file. size: (width, height) of the picture."""
    told = as_json(words.get("Comment", ""))
    if words.get("Software") != "NovelAI" or not isinstance(told, Mapping):
        return None
    settings = {
        "Steps": told.get("steps"),
        **sampler_pair(told.get("sampler"), told.get("noise_schedule")),
        "CFG scale": told.get("scale"),
        "Seed": told.get("seed"),
        "Size": f"{size[0]}x{size[1]}",
        "Model": words.get("Source", "NovelAI"),
        "Denoising strength": told.get("strength"),
        "Clip skip": 2,
        "ENSD": 31337,
    }
    return parameters("novelai", words.get("Description") or told.get("prompt"), told.get("uc"), settings)


def from_fooocus(told: Any) -> Parameters | None:
    """Of Fooocus' own scheme. Its styles add words to the prompt; the prompt given here is the one that was typed."""
    if not isinstance(told, Mapping) or not {"prompt", "base_model"} & told.keys():
        return None
    size = re.findall(r"\d+", scalar(told.get("resolution")) or "")
    words = told.get("full_prompt")
    full = ", ".join(filter(None, map(scalar, words))) if isinstance(words, list) else ""
    notes = (Note(key="", problem="styles made more of the words", suggestion=f"in full: {full!r}"),) if full else ()
    settings = {
        "Steps": told.get("steps"),
        **sampler_pair(told.get("sampler"), told.get("scheduler")),
        "CFG scale": told.get("guidance_scale"),
        "Seed": told.get("seed"),
        "Size": "x".join(size) if len(size) == 2 else None,
        "Model hash": told.get("base_model_hash"),
        "Model": told.get("base_model"),
        "VAE": told.get("vae"),
        "Clip skip": told.get("clip_skip"),
        "Sharpness": told.get("sharpness"),
        "Styles": told.get("styles"),
        "Refiner": None if told.get("refiner_model") in ("None", "") else told.get("refiner_model"),
        "Version": told.get("version"),
    }
    return parameters("fooocus", told.get("prompt"), told.get("negative_prompt"), settings, notes)
