"""Bodies of POST /tokenize and POST /detokenize, which are vLLM's routes and not OpenAI's."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from draftsmith.server.openai.fields import ShallowRequest, TokenId
from draftsmith.server.openai.schemas import Message
from draftsmith.server.openai.tools import MAX_TOOLS, FunctionTool


class TokenizeRequest(ShallowRequest):
    """A `prompt`, or `messages` that the chat template renders."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("it needs 'prompt' or 'messages', and not both")
        return self


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)]
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]
