"""Body of POST /v1/responses. Nothing is stored: each request carries its whole conversation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from draftsmith.server.openai.fields import Count, EngineRequest, Penalty, wrong_field
from draftsmith.server.openai.formats import Schema, SchemaName
from draftsmith.server.openai.tools import MAX_TOOLS, FunctionName, hold_to_schemas

_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


class ResponseTool(BaseModel):
    """A function that the model may call. OpenAI's other tools run on its own servers."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Field(max_length=10_000)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(BaseModel):
    """`text.format`: like `response_format`, but the schema's fields stand beside its type."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    name: SchemaName | None = None
    description: str | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> TextFormat:
        given = {self.name is not None, self.schema_ is not None}
        if given != {self.type == "json_schema"}:
            raise ValueError("'name' and 'schema' go with type 'json_schema', and only with it")
        return self


class TextOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(EngineRequest):
    """OpenAI's fields, as far as they make sense without a store."""

    dropped: ClassVar[frozenset[str]] = EngineRequest.dropped - {"metadata"}
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "background": (False,),
        "conversation": (),
        "context_management": ([],),
        "logit_bias": ({},),
        "max_tool_calls": (),
        "min_p": (0, 0.0),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "store": (False,),
        "stream_options": ({},),
        "vllm_xargs": ({},),
    }

    input: Any
    instructions: Annotated[str, Field(max_length=1 << 20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    max_output_tokens: Count | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Literal["disabled"] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None

    @field_validator("input")
    @classmethod
    def _input_is_text(cls, given: Any) -> Any:
        """A string, or messages, calls and outputs of calls, all of text."""
        if isinstance(given, str):
            return given
        if not isinstance(given, list) or not given or len(given) > 2048:
            raise ValueError("must be a string or a list of 1 to 2048 items")
        for item in given:
            kind = item.get("type", "message") if isinstance(item, dict) else None
            if kind not in _ITEMS:
                raise ValueError(f"only items of the types {', '.join(_ITEMS)} are supported")
            parts = item.get("content")
            for part in parts if isinstance(parts, list) else []:
                if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
                    raise ValueError("only text is supported: a string, or parts of text")
        return given

    @model_validator(mode="after")
    def _tool_choice_is_possible(self) -> ResponsesRequest:
        names = [one.name for one in self.tools or []]
        choice = self.tool_choice
        if isinstance(choice, dict):
            named = choice.get("type") == "function" and choice.get("name") in names
            if not named or set(choice) != {"type", "name"}:
                raise wrong_field("tool_choice", "must name a function that is among 'tools'")
        elif choice not in (None, "none", "auto") and not (choice == "required" and names):
            raise wrong_field("tool_choice", 'must be "none", "auto", or "required" with \'tools\'')
        return self

    def for_engine(self) -> dict[str, Any]:
        body = super().for_engine()
        hold_to_schemas(body.get("tools", []))  # what OpenAI's service does by default here
        for tool in body.get("tools", []):
            tool.setdefault("parameters", None)  # vLLM wants it named, if only as null
        return {**body, "store": False}
