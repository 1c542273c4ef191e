"""ComfyUI's graphs: what a picture was made with is found by walking back from the sampler.

A file carries two: `prompt`, {node: {class_type, inputs}} where an input is a value or a link [node, output], and `workflow`,
the same as it is drawn, with a node's values in the order of its widgets. The second is read where the first is missing, for
the nodes of the usual graph. Nodes are known by the names of their inputs rather than by their own, so that samplers and
loaders of extensions are found as well. Nothing raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..base.infotext import Note, Parameters
from .foreign import parameters, sampler_pair, scalar

Graph = Mapping[str, Mapping[str, Any]]  # node -> its inputs, and its class under ""

_TOLD_BY = ("sampler", "sigmas", "noise", "guider")  # parts of a sampler that may be nodes of their own
_TOWARD_WORDS = ("text", "text_g", "string", "value", "conditioning", "conditioning_1", "conditioning_2", "conditioning_to",
                 "conditioning_from")  # fmt: skip
_WIDGETS = {  # of the usual nodes, in order; "" is one that only the page has
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step"),
    "CLIPTextEncode": ("text",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "VAELoader": ("vae_name",),
}


def from_comfy(prompt: Any, workflow: Any = None) -> Parameters | None:
    """Of the graphs in a file, `prompt` before `workflow`; None where neither has a sampler."""
    for graph in (_graph(prompt), _graph(_executable(workflow))):
        samplers = [node for node, inputs in graph.items() if "latent_image" in inputs and _told(graph, node, "steps")]
        if samplers:
            # the first pass is the one that starts from nothing
            first = next((node for node in samplers if _canvas(graph, node)), samplers[0])
            return _of_sampler(graph, first, len(samplers) - 1)
    return None


def _graph(told: Any) -> Graph:
    """What is a node, and nothing else; of each its inputs, and its class under ""."""
    nodes = told.items() if isinstance(told, Mapping) else ()
    return {
        str(name): {**node["inputs"], "": node.get("class_type")}
        for name, node in nodes
        if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
    }


def _executable(workflow: Any) -> Any:
    """A drawn graph in the form of an executable one."""
    if not isinstance(workflow, Mapping) or not isinstance(workflow.get("nodes"), list):
        return None
    links = workflow.get("links")
    ends = {}  # link -> [node, output]
    for link in links if isinstance(links, list) else ():
        if isinstance(link, list) and len(link) >= 3 and isinstance(link[0], int | str):
            ends[link[0]] = [str(link[1]), link[2]]
    made = {}
    for node in workflow["nodes"]:
        if not isinstance(node, Mapping):
            continue
        inputs: dict[str, Any] = {}
        values, names = node.get("widgets_values"), _WIDGETS.get(str(node.get("type")), ())
        if isinstance(values, list):
            inputs |= {name: value for name, value in zip(names, values, strict=False) if name}
        for slot in node["inputs"] if isinstance(node.get("inputs"), list) else ():
            if isinstance(slot, Mapping) and isinstance(slot.get("link"), int | str) and slot["link"] in ends:
                inputs[str(slot.get("name"))] = ends[slot["link"]]
        made[str(node.get("id"))] = {"class_type": node.get("type"), "inputs": inputs}
    return made


def _linked(graph: Graph, value: Any) -> tuple[str, int] | None:
    """(node, output) that an input is linked to; None where it is a value."""
    if isinstance(value, list) and len(value) == 2 and str(value[0]) in graph:
        return str(value[0]), value[1] if isinstance(value[1], int) else 0
    return None


def _upstream(graph: Graph, node: str, names: tuple[str, ...]) -> Iterator[str]:
    """A node and, nearest first, all before it along inputs of these names."""
    waiting, seen = [node], {node}
    while waiting:
        here = waiting.pop(0)
        yield here
        for name in names:
            link = _linked(graph, graph[here].get(name))
            if link and link[0] not in seen:
                seen.add(link[0])
                waiting.append(link[0])


def _told(graph: Graph, node: str, *names: str, along: tuple[str, ...] = _TOLD_BY) -> str | None:
    """The first value of one of these names in a node or before it; one given by a node of its own is looked up there."""
    for here in _upstream(graph, node, along):
        for name in names:
            value = graph[here].get(name)
            link = _linked(graph, value)
            if link:
                value = next((v for k, v in graph[link[0]].items() if k and scalar(v)), None)
            if scalar(value):
                return scalar(value)
    return None


def _canvas(graph: Graph, sampler: str) -> str | None:
    """ "WxH" of the empty picture a sampler starts from; None where it starts from another picture."""
    link = _linked(graph, graph[sampler].get("latent_image"))
    if link is None:
        return None
    wide, high = (_told(graph, link[0], side, along=()) for side in ("width", "height"))
    return f"{wide}x{high}" if wide and high and "samples" not in graph[link[0]] else None


def _together(graph: Graph, sampler: str) -> str | None:
    """How many pictures are painted at once; None where it is one."""
    link = _linked(graph, graph[sampler].get("latent_image"))
    count = _told(graph, link[0], "batch_size", along=()) if link else None
    return count if count != "1" else None


def _words(graph: Graph, sampler: str, side: str) -> tuple[list[str], str | None]:
    """(texts of one side of guidance, clip skip): back from `positive` or `negative` of the sampler or its guider."""
    starts = (_linked(graph, graph[node].get(side)) for node in _upstream(graph, sampler, _TOLD_BY))
    start = next((link for link in starts if link), None)
    passed = set()
    while start and {"positive", "negative"} <= graph[start[0]].keys():  # a node that both sides pass, such as a ControlNet
        if start in passed:  # no program makes such a graph
            return [], None
        passed.add(start)
        start = _linked(graph, graph[start[0]]["negative" if start[1] == 1 else "positive"])
    texts, skip = [], None
    for node in _upstream(graph, start[0], _TOWARD_WORDS) if start else ():
        if graph[node][""] == "ConditioningZeroOut":
            break
        texts += [t for name in ("text", "text_g", "string", "value") if isinstance(t := graph[node].get(name), str)]
        skip = skip or _told(graph, node, "stop_at_clip_layer", along=("clip",))
    return texts, skip


def _of_sampler(graph: Graph, sampler: str, others: int) -> Parameters:
    notes = [Note(key="", problem=f"{others} more samplers in the graph were not followed")] if others else []
    (positive, skip), (negative, _) = _words(graph, sampler, "positive"), _words(graph, sampler, "negative")
    for side, texts in (("positive", positive), ("negative", negative)):
        if len(texts) > 1:
            notes.append(Note(key="", problem=f"{len(texts)} texts are combined on the {side} side", suggestion=repr(texts)))
    models = list(_upstream(graph, sampler, ("guider", "model")))
    names = (_told(graph, node, "ckpt_name", "unet_name", along=()) for node in models)
    loras = [
        f"{name}: {_told(graph, node, 'strength_model', along=()) or 1}"
        for node in models
        if (name := _told(graph, node, "lora_name", along=()))
    ]
    denoise = _told(graph, sampler, "denoise")
    settings = {
        "Steps": _told(graph, sampler, "steps"),
        **sampler_pair(_told(graph, sampler, "sampler_name"), _told(graph, sampler, "scheduler")),
        "CFG scale": _told(graph, sampler, "cfg"),
        "Seed": _told(graph, sampler, "seed", "noise_seed"),
        "Size": _canvas(graph, sampler),
        "Model": next(filter(None, names), None),
        "VAE": next(filter(None, (_told(graph, n, "vae_name", along=()) for n in graph)), None),
        "Denoising strength": denoise if denoise != "1" else None,
        "Clip skip": skip.removeprefix("-") if skip and skip != "-1" else None,
        "Batch size": _together(graph, sampler),
        "RNG": "CPU",  # ComfyUI draws there, wherever it calculates
        "Loras": ", ".join(loras) or None,
    }
    return parameters("comfyui", next(iter(positive), ""), next(iter(negative), ""), settings, tuple(notes))
