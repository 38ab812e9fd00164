"""The inference routes of OpenAI's API that this server offers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from draftsmith.server.errors import ApiError
from draftsmith.server.gateway import Gateway, gateway_of
from draftsmith.server.openai.fields import GenerationRequest
from draftsmith.server.openai.proxy import forward
from draftsmith.server.openai.schemas import ChatRequest, CompletionRequest

router = APIRouter(prefix="/v1")


@router.get("/models")
async def list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model(gateway_of(request))]}


@router.get("/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    """Ids may hold slashes. They are compared, never joined to a path."""
    gateway = gateway_of(request)
    gateway.check_model(model)
    return _model(gateway)


@router.post("/completions")
async def complete(request: Request, body: CompletionRequest) -> Response:
    return await _generate(request, body)


@router.post("/chat/completions")
async def chat(request: Request, body: ChatRequest) -> Response:
    return await _generate(request, body)


async def _generate(request: Request, body: GenerationRequest) -> Response:
    gateway = gateway_of(request)
    gateway.check_model(body.model)
    field = body.refused_with_draft()
    if field is not None and gateway.settings.draft is not None:
        raise ApiError(
            400,
            f"'{field}' cannot be honoured while a draft model speculates: leave it out.",
            code="unsupported_with_speculation",
            param=field,
        )
    return await forward(request, body.for_engine(), body.model)


def _model(gateway: Gateway) -> dict[str, Any]:
    settings = gateway.settings
    draft = None
    if settings.draft is not None:
        draft = {
            "version": gateway.draft_version,
            "method": "draft_model",
            "num_speculative_tokens": settings.num_speculative_tokens,
        }
    return {
        "id": settings.served_model_name,
        "object": "model",
        "created": gateway.created,
        "owned_by": "draftsmith",
        "draft": draft,
    }
