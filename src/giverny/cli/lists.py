"""Files beside a prompt on the command line: lists of prompts, and saved styles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .voice import Voice


def lines_of(prompts: tuple[str, ...], listed: Path | None, painter: Any, voice: Voice) -> list[Any]:
    """What is to be painted, `lists.Listed`: these prompts, then those of a file."""
    from ..pipelines.lists import Listed, read_list

    lines = [Listed(prompt=prompt) for prompt in prompts]
    if listed is None:
        return lines
    found = read_list(listed, painter.knobs)
    if found.passed_over:
        voice.say(f"note: {listed}: columns that are no settings are passed over: {', '.join(found.passed_over)}")
    return [*lines, *found.lines]


def in_styles(requests: list[Any], names: tuple[str, ...], style_file: Path | None) -> list[Any]:
    """The requests with saved styles around their words, whose names they keep."""
    from ..assembly.places import styles_file
    from ..text.styles import read_styles, styled

    if not names:
        return requests
    known = read_styles(style_file or styles_file())
    made = []
    for request in requests:
        prompt, negative = styled(request.prompt, request.negative, known, names)
        made.append(request.model_copy(update={"prompt": prompt, "negative": negative, "styles": names}))
    return made
