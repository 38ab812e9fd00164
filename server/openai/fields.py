"""Request fields: which are passed to vLLM, dropped, or refused by name.

A field that would change the answer and cannot be honoured is refused, never ignored; a
misspelt one too. vLLM itself accepts any unknown field in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from draftsmith.server.engine.command import LOOKAHEAD_ARGUMENT
from draftsmith.server.openai.formats import ResponseFormat
from draftsmith.server.openai.speculation import Speculation

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_TOKENS = 1 << 20  # vLLM itself holds the request against the model's context
MAX_NESTING = 32

# Fields of OpenAI's API that say nothing about the answer itself.
_DROPPED = frozenset(
    {
        "metadata",
        "prediction",  # a hint for speed; here the draft model does that
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
# Known fields that cannot be honoured, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "function_call": ("none",),
    "functions": ([],),
    "kv_transfer_params": (),
    "mm_processor_kwargs": (),
    "modalities": (["text"],),
    "moderation": (),
    "prompt_embeds": (),
    "store": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "web_search_options": (),
}

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
LogitBias = dict[
    Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]
]


def wrong_field(name: str, reason: str) -> PydanticCustomError:
    """A complaint about one field, from a place where pydantic would not name it."""
    return PydanticCustomError("wrong_field", "{reason}", {"field": name, "reason": reason})


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class ShallowRequest(BaseModel):
    """A body whose depth is bounded before anything walks through it."""

    @model_validator(mode="before")
    @classmethod
    def _not_too_deep(cls, values: Any) -> Any:
        if nested_deeper_than(values, MAX_NESTING):
            raise ValueError(f"it is nested more than {MAX_NESTING} levels deep")
        return values


class EngineRequest(ShallowRequest):
    """What every body that goes to the engine has in common."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    dropped: ClassVar[frozenset[str]] = _DROPPED
    refused: ClassVar[dict[str, tuple[Any, ...]]] = _REFUSED

    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    speculation: Speculation | None = None
    """Not OpenAI's: how many tokens may be drafted for this request."""

    @model_validator(mode="after")
    def _no_unknown_fields(self) -> EngineRequest:
        for name, value in (self.model_extra or {}).items():
            if name in self.dropped:
                continue
            if name not in self.refused:
                raise wrong_field(name, "is not a field that this server knows")
            if value is not None and value not in self.refused[name]:
                raise wrong_field(name, "is not supported by this server")
        return self

    def for_engine(self) -> dict[str, Any]:
        """The body that vLLM gets: the fields that the client set, but the dropped ones."""
        left_out = {"speculation", *(self.model_extra or {})}
        body = self.model_dump(exclude_unset=True, exclude=left_out, by_alias=True)
        body = {name: value for name, value in body.items() if value is not None}
        if self.speculation is not None and self.speculation.lookahead is not None:
            body["vllm_xargs"] = {LOOKAHEAD_ARGUMENT: self.speculation.lookahead}
        return body

    def refused_with_draft(self) -> str | None:
        """The field, if any, that vLLM cannot honour while it speculates."""
        return None


class GenerationRequest(EngineRequest):
    """What chat and plain completions have in common: OpenAI's fields and vLLM's own."""

    store: bool | None = None
    """Whether the answer may be kept for the next distillation; refused where nothing is kept."""
    metadata: Metadata | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[LogitBias, Field(max_length=300)] | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    response_format: ResponseFormat | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None

    # Sampling of vLLM that OpenAI does not have.
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    bad_words: Annotated[list[str], Field(max_length=64)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(max_length=4096)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _bounds_beyond_types(cls, values: Any) -> Any:
        """Before the types, so that a union's error does not list its branches."""
        if not isinstance(values, dict):
            return values
        stop = values.get("stop")
        stops = [stop] if isinstance(stop, str) else stop
        if stops is not None and not (
            isinstance(stops, list)
            and len(stops) <= MAX_STOPS
            and all(isinstance(one, str) and 0 < len(one) <= 1000 for one in stops)
        ):
            raise wrong_field("stop", f"must be a string or a list of at most {MAX_STOPS} strings")
        if values.get("stream_options") is not None and values.get("stream") is not True:
            raise wrong_field("stream_options", "needs 'stream': true")
        return values

    def for_engine(self) -> dict[str, Any]:
        body = super().for_engine()
        for ours in ("store", "metadata"):
            body.pop(ours, None)
        options = body.get("stream_options")
        if options is not None:
            options.pop("include_obfuscation", None)
        return body

    def refused_with_draft(self) -> str | None:
        if self.min_p:
            return "min_p"
        return "logit_bias" if self.logit_bias else None


def nested_deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects in `value` are nested more than `levels` deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return levels == 0 or any(nested_deeper_than(one, levels - 1) for one in value)
