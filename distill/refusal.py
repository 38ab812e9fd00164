"""What is wrong with a recipe, in a sentence that names the field and, if it can, the remedy."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from draftsmith.distill.objectives import REGISTRY, ObjectiveSection
from draftsmith.distill.objectives.objective import DEFAULT


def refusal(error: ValidationError, content: dict[str, Any], model: type[BaseModel]) -> str:
    """The first error as `section.field: what is wrong`, without a full stop.

    Args:
        content: what was validated. model: what it was validated as.
    """
    # A misspelt name is told before the field that it leaves missing.
    misspelt = ("union_tag_invalid", "extra_forbidden")
    first = sorted(error.errors(), key=lambda one: one["type"] not in misspelt)[0]
    where = [str(part) for part in first["loc"]]
    if where[0:1] == ["stages"] and len(where) > 1:
        where[1] = _stage_name(content, int(where[1]))
    if where[:1] == ["objective"] and len(where) > 1:
        del where[1]  # pydantic puts the objective's name before the field's
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":
        where, message = ["objective", "name"], _unknown_objective(content)
    elif first["type"] == "extra_forbidden":
        message = "unknown field" + _suggestion(where, content, model)
    # A rule between sections has no place of its own, and names its fields itself.
    return f"{'.'.join(where)}: {message}" if where else message


def objective_name(value: Any) -> str:
    """The name that an [objective] section asks for, whether it was validated already or not."""
    if isinstance(value, dict):
        return str(value.get("name", DEFAULT))
    return value.name if isinstance(value, ObjectiveSection) else DEFAULT


def _unknown_objective(content: dict[str, Any]) -> str:
    name = objective_name(content["objective"])
    return f"unknown objective '{name}'{_nearest(name, REGISTRY)}; there are " + ", ".join(
        sorted(REGISTRY)
    )


def _suggestion(where: list[str], content: dict[str, Any], model: Any) -> str:
    *sections, field = where
    if sections == ["objective"]:
        return _suggestion_for_objective(field, objective_name(content["objective"]))
    if sections[:1] == ["stages"]:
        del sections[1:]  # a stage's own fields; what its tables say is checked by itself
    for section in sections:
        if section.isdigit():
            continue  # a place in a list
        model = _section_of(model.model_fields[section].annotation)
    return _nearest(field, model.model_fields)


def _section_of(annotation: Any) -> Any:
    """The section that a field holds: itself, `Section | None`, or a list or tuple of them."""
    inside = [one for one in get_args(annotation) if hasattr(one, "model_fields")]
    return inside[0] if inside else annotation


def _stage_name(content: dict[str, Any], index: int) -> str:
    stage = content["stages"][index]
    return str(stage.get("name", index)) if isinstance(stage, dict) else str(index)


def _suggestion_for_objective(field: str, name: str) -> str:
    nearest = _nearest(field, REGISTRY[name].model_fields)
    others = [other for other in REGISTRY if field in REGISTRY[other].model_fields]
    if nearest or not others:
        return f" of {name}{nearest}"
    return f" of {name}; it belongs to name = {' or '.join(map(repr, others))}"


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'" if close else ""
