"""The request bodies of chat and plain completions."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from draftsmith.server.openai.fields import Count, GenerationRequest, wrong_field
from draftsmith.server.openai.tools import (
    MAX_TOOLS,
    FunctionTool,
    ToolCall,
    check_tool_choice,
    hold_to_schemas,
)

MAX_SEQUENCES = 64
"""Prompts times `n` in one request of plain completions."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# What the call that renders the template takes beside the template's own variables: a request
# that could set these would render another template or make the server do other work.
_TEMPLATE_CALL = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
_PROMPT_FORMS = "must be a string, a list of strings, a list of token ids or a list of such lists"


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Any
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @field_validator("prompt")
    @classmethod
    def _prompt_has_a_form(cls, prompt: Any) -> Any:
        if isinstance(prompt, str):
            return prompt
        if not isinstance(prompt, list) or not prompt:
            raise ValueError(_PROMPT_FORMS)
        strings = all(isinstance(one, str) for one in prompt)
        lists = all(isinstance(one, list) and one and _are_token_ids(one) for one in prompt)
        if not (strings or lists or _are_token_ids(prompt)):
            raise ValueError(_PROMPT_FORMS)
        return prompt

    @model_validator(mode="after")
    def _not_too_many(self) -> CompletionRequest:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        if (len(self.prompt) if several else 1) * (self.n or 1) > MAX_SEQUENCES:
            raise wrong_field("n", f"times the prompts must be at most {MAX_SEQUENCES}")
        return self


class Message(BaseModel):
    """One message. Keys beyond these are dropped: clients send answers back as they came."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any = None
    name: Annotated[str, Field(max_length=200)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=200)] | None = None

    @field_validator("content")
    @classmethod
    def _content_is_text(cls, content: Any) -> Any:
        if content is None or isinstance(content, str):
            return content
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise ValueError("only text is supported: a string, or parts of type 'text'")
            if not isinstance(part.get("text"), str):
                raise ValueError("a part of type 'text' needs a string 'text'")
        return content

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("'content' is missing")
        return self


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_completion_tokens: Count | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=16)] | None = None
    """Variables of the target's chat template, such as `enable_thinking`."""
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _logprobs_belong_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise wrong_field("top_logprobs", "needs 'logprobs': true")
        return self

    @model_validator(mode="after")
    def _tools_belong_together(self) -> ChatRequest:
        check_tool_choice(self.tool_choice, [one.function.name for one in self.tools or []])
        return self

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_variables_are_harmless(cls, given: dict[str, Any] | None) -> Any:
        for name, value in (given or {}).items():
            if name in _TEMPLATE_CALL or not _VARIABLE.fullmatch(name):
                raise ValueError(f"'{name[:64]}' is not a variable of a chat template")
            plain = value is None or isinstance(value, bool | int | float | str)
            if not plain or (isinstance(value, str) and len(value) > 1000):
                raise ValueError(f"'{name}' must be a number, a truth value or a short string")
        return given

    def for_engine(self) -> dict[str, Any]:
        body = super().for_engine()
        if not self.tools:  # vLLM refuses an empty list; OpenAI's clients send one
            body.pop("tools", None)
            body.pop("tool_choice", None)
        elif self.tool_choice not in (None, "none", "auto"):
            hold_to_schemas(one["function"] for one in body["tools"])
        return body


def _are_token_ids(values: list[Any]) -> bool:
    return all(type(one) is int and 0 <= one < 1 << 31 for one in values)
