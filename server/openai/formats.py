"""`response_format`: free text, any JSON, or JSON that a schema describes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_SCHEMA_CHARS = 1 << 16
"""A schema is compiled to a grammar, inside the engine: its size bounds what that costs."""


def _not_huge(schema: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
        raise ValueError(f"is longer than {MAX_SCHEMA_CHARS} characters")
    return schema


Schema = Annotated[dict[str, Any], AfterValidator(_not_huge)]
SchemaName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class JsonSchema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: SchemaName
    description: str | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The field `response_format` of chat and plain completions."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("'json_schema' goes with type 'json_schema', and only with it")
        return self
