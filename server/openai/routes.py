"""The inference routes: OpenAI's, and vLLM's two for token ids."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from draftsmith.server.engine.supervisor import Supervisor
from draftsmith.server.errors import ApiError
from draftsmith.server.gateway import Gateway, gateway_of, key_of
from draftsmith.server.openai.fields import EngineRequest, GenerationRequest
from draftsmith.server.openai.proxy import Reshape, forward
from draftsmith.server.openai.responses import ResponsesRequest
from draftsmith.server.openai.schemas import ChatRequest, CompletionRequest
from draftsmith.server.openai.shapes import STRICT_HEADER, make_completion_strict
from draftsmith.server.openai.tokens import DetokenizeRequest, TokenizeRequest
from draftsmith.server.traffic.recorder import Recorder

ENGINE_HEADER = "x-draftsmith-engine"
"""Of an answer: `speculative` or `plain`."""
router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model(gateway_of(request))]}


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    """Ids may hold slashes. They are compared, never joined to a path."""
    gateway = gateway_of(request)
    gateway.check_model(model)
    return _model(gateway)


@router.post("/v1/completions")
async def complete(request: Request, body: CompletionRequest) -> Response:
    strict = request.headers.get(STRICT_HEADER, "").lower() == "true"
    return await _generate(request, body, make_completion_strict if strict else None)


@router.post("/v1/chat/completions")
async def chat(request: Request, body: ChatRequest) -> Response:
    return await _generate(request, body)


@router.post("/v1/responses")
async def respond(request: Request, body: ResponsesRequest) -> Response:
    return await _generate(request, body)


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    return await _count_tokens(request, body)


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    return await _count_tokens(request, body)


async def _generate(
    request: Request, body: EngineRequest, reshape: Reshape | None = None
) -> Response:
    gateway = gateway_of(request)
    gateway.check_model(body.model)
    engine, sent = _engine_for(gateway, body), body.for_engine()
    recorder = _recorder(request, body, sent)
    answer = await forward(request, sent, engine, _both(reshape, recorder))
    plain = engine is gateway.plain or not gateway.settings.speculates
    answer.headers[ENGINE_HEADER] = "plain" if plain else "speculative"
    return answer


async def _count_tokens(request: Request, body: TokenizeRequest | DetokenizeRequest) -> Response:
    gateway = gateway_of(request)
    gateway.check_model(body.model)
    return await forward(request, body.model_dump(exclude_unset=True), gateway.supervisor)


def _engine_for(gateway: Gateway, body: EngineRequest) -> Supervisor:
    """The engine that can do what `body` asks for.

    Raises:
        ApiError: 400 when none can; names the field.
    """
    settings, wish = gateway.settings, body.speculation
    wanted = wish is not None and not wish.off and (wish.enabled or wish.num_tokens is not None)
    if not settings.speculates:
        if wanted:
            raise _cannot("speculation", "asks for a draft, and none is served: leave it out.")
        return gateway.supervisor
    if wanted and wish is not None and (wish.num_tokens or 0) > settings.num_speculative_tokens:
        most = f"'num_tokens' is above {settings.num_speculative_tokens}, the server's own K."
        raise ApiError(400, most, code="invalid_value", param="speculation.num_tokens")
    field = body.refused_with_draft()
    if field is not None and (wanted or gateway.plain is None):
        raise _cannot(field, "cannot be honoured while a draft model speculates: leave it out.")
    off = wish is not None and wish.off
    without = field is not None or off or (not wanted and gateway.prefers_plain)
    if gateway.plain is not None and without:
        return gateway.plain
    return gateway.supervisor


def _recorder(request: Request, body: EngineRequest, sent: dict[str, Any]) -> Recorder | None:
    """What keeps the answer, where it may be kept.

    Raises:
        ApiError: 400 where the client asks for it and the server keeps nothing.
    """
    traffic, mode = gateway_of(request).traffic, gateway_of(request).settings.traffic
    if not isinstance(body, GenerationRequest):
        return None
    if traffic is None:
        if body.store:
            reason = "cannot be true: this server keeps no answers."
            raise ApiError(400, f"'store' {reason}", code="unsupported_value", param="store")
        return None
    if body.store is False or (mode == "asked" and not body.store):
        return None
    key = key_of(request)
    return Recorder(traffic, {**sent, "metadata": body.metadata}, None if key is None else key.name)


def _both(first: Reshape | None, second: Reshape | None) -> Reshape | None:
    if first is None or second is None:
        return first or second

    def both(said: dict[str, Any]) -> None:
        first(said)
        second(said)

    return both


def _cannot(field: str, reason: str) -> ApiError:
    return ApiError(400, f"'{field}' {reason}", code="unsupported_with_speculation", param=field)


def _model(gateway: Gateway) -> dict[str, Any]:
    settings = gateway.settings
    draft = None
    if settings.speculates:
        draft = {
            "version": gateway.draft_version,
            "method": settings.speculation_method,
            "num_speculative_tokens": settings.num_speculative_tokens,
        }
    return {
        "id": settings.served_model_name,
        "object": "model",
        "created": gateway.created,
        "owned_by": "draftsmith",
        "draft": draft,
    }
