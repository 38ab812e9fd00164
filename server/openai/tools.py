"""Tools in chat requests: what a client offers the model, and the calls it sends back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from draftsmith.server.openai.fields import wrong_field

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
MAX_TOOLS = 128
_CHOICES = ("none", "auto", "required")


class Function(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: FunctionName
    description: Annotated[str, Field(max_length=10_000)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(BaseModel):
    """One entry of `tools`. OpenAI's other kinds run on its own servers."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: Function


class CalledFunction(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    name: FunctionName
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _are_json(cls, arguments: str) -> str:
        try:
            given = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise ValueError("must be a JSON object, as a string")
        return arguments or "{}"


class ToolCall(BaseModel):
    """A call that the model made in an earlier turn."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: Annotated[str, Field(min_length=1, max_length=200)]
    type: Literal["function"]
    function: CalledFunction


def check_tool_choice(choice: Any, names: Sequence[str]) -> None:
    """Complains, as pydantic does, unless `choice` can be made among tools of these `names`."""
    if choice is None or (choice == "none" and isinstance(choice, str)):
        return
    if not names:
        raise wrong_field("tool_choice", "needs 'tools'")
    if isinstance(choice, str) and choice in _CHOICES:
        return
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if name is None or choice.get("type") != "function" or set(choice) != {"type", "function"}:
        reason = 'must be "none", "auto", "required" or {"type": "function", "function": {...}}'
        raise wrong_field("tool_choice", reason)
    if name not in names:
        raise wrong_field("tool_choice", "names a function that is not among 'tools'")


def hold_to_schemas(functions: Iterable[dict[str, Any]]) -> None:
    """Make vLLM write arguments by each function's schema, where the client did not say.

    Otherwise the arguments of a forced call may be any JSON, such as a bare number.
    """
    for function in functions:
        if function.get("strict") is None:
            function["strict"] = True
            function["parameters"] = function.get("parameters") or {"type": "object"}
