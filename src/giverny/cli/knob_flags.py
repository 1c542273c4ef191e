"""Command-line flags drawn from a painter's Knobs: name, type, range and help text are written once, in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import annotated_types
import click
from pydantic.fields import FieldInfo

from ..base.knobs import Knobs


def _type(field: FieldInfo) -> click.ParamType:
    if get_origin(field.annotation) is Literal:
        return click.Choice([str(a) for a in get_args(field.annotation)])
    if field.annotation is bool:
        return click.BOOL
    low = next((m.ge for m in field.metadata if isinstance(m, annotated_types.Ge)), None)
    high = next((m.le for m in field.metadata if isinstance(m, annotated_types.Le)), None)
    if field.annotation is int:
        return click.IntRange(low, high)  # type: ignore[arg-type]
    if field.annotation is float:
        return click.FloatRange(low, high)  # type: ignore[arg-type]
    return click.STRING


def knob_flags(knobs: type[Knobs]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add one flag per field; a flag that is not given stays None, and the model's own default holds."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(knobs.model_fields.items()):
            text = f"{field.description}.  [default: the model's own, else {field.default}]"
            flag = "--" + name.replace("_", "-")
            function = click.option(flag, name, type=_type(field), default=None, help=text)(function)
        return function

    return add
