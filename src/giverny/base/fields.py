"""Finding one's way in the fields of pydantic models: which type lies where, and whose an error is."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def forms_of(annotation: Any) -> list[Any]:
    """The forms a setting may take: the members of a union, NoneType among them, or the one type."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [form for member in get_args(annotation) for form in forms_of(member)]
    return [annotation]


def members_of(annotation: Any) -> list[Any]:
    return [form for form in forms_of(annotation) if form is not type(None)]


def is_model(form: Any) -> bool:
    return isinstance(form, type) and issubclass(form, BaseModel)


def _field(model: type[BaseModel], key: Any) -> FieldInfo | None:
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            return field
    return None


def tags_of(model: type[BaseModel]) -> set[Any]:
    """What pydantic may call a model among the members of a union: its kind (a Literal field's value), or its name."""
    literals = (field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal)
    return {model.__name__, *(str(value) for literal in literals for value in get_args(literal))}


def locate(model: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The dotted path of a pydantic location, and the type that owns its last part.

    Where a union has several members, pydantic puts the chosen member's label into the location; people do not write
    that label, so it is left out of the path.
    """
    path: list[str] = []
    owner: Any = None
    current: Any = model
    for part in loc:
        forms = members_of(current)
        if len(forms) > 1:
            models = [form for form in forms if is_model(form) and str(part) in tags_of(form)]
            current = models[0] if models else next((f for f in forms if str(part).startswith(_label(f))), Any)
            continue
        owner = forms[0] if forms else Any
        path.append(str(part))
        current = part_of(owner, part)
    return path, owner


def _label(form: Any) -> str:
    return getattr(get_origin(form) or form, "__name__", "?").lower()


def part_of(form: Any, key: Any) -> Any:
    """The type of one part of a model, list, tuple or mapping; Any where it has none of its own."""
    if is_model(form):
        field = _field(form, key)
        return field.annotation if field else Any
    arguments = get_args(form)
    if not arguments or get_origin(form) is Literal:
        return Any
    if get_origin(form) is tuple and Ellipsis not in arguments:
        return arguments[key] if isinstance(key, int) and key < len(arguments) else Any
    return arguments[-1] if isinstance(key, str) else arguments[0]
