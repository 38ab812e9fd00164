"""The inference routes: OpenAI's, and vLLM's two for token ids."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from draftsmith.server.engine.interface import Engine
from draftsmith.server.errors import ApiError
from draftsmith.server.gateway import account_of, gateway_of, key_of
from draftsmith.server.openai.fields import EngineRequest, GenerationRequest
from draftsmith.server.openai.proxy import forward
from draftsmith.server.openai.reshape import Reshape, chained, marked_lossy
from draftsmith.server.openai.responses import ResponsesRequest
from draftsmith.server.openai.schemas import ChatRequest, CompletionRequest
from draftsmith.server.openai.shapes import STRICT_HEADER, make_completion_strict
from draftsmith.server.openai.speculation import HEADERS as FIGURE_HEADERS
from draftsmith.server.openai.tokens import DetokenizeRequest, TokenizeRequest
from draftsmith.server.served import Served
from draftsmith.server.traffic.recorder import Recorder

ENGINE_HEADER = "x-draftsmith-engine"
"""Of an answer: `speculative`, `plain` or `remote`."""
router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    models = gateway_of(request).models.values()
    return {"object": "list", "data": [_shown(one) for one in models]}


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    """Ids may hold slashes. They are compared, never joined to a path."""
    return _shown(gateway_of(request).model(model))


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
    model = gateway_of(request).model(body.model)
    engine, sent = _engine_for(model, body), body.for_engine()
    recorder = _recorder(request, body, sent)
    account = account_of(request)
    plain = engine is model.plain or not model.speculates
    account["model"], account["engine"] = model.name, _engine_kind(model, plain=plain)
    if gateway_of(request).settings.log_prompts:
        account |= {name: sent[name] for name in ("prompt", "messages", "input") if name in sent}
    lenience = 1.0 if model.settings is None else model.settings.lenience
    lossy = lenience < 1 and not plain and not (body.speculation and body.speculation.off)
    mark = marked_lossy(lenience) if lossy else None
    answer = await forward(request, sent, model, engine, chained(recorder, reshape, mark))
    answer.headers[ENGINE_HEADER] = account["engine"]
    if lossy:  # also where vLLM gives no figures, and in streams
        answer.headers[FIGURE_HEADERS["lenience"]] = f"{lenience:.4f}"
    return answer


async def _count_tokens(request: Request, body: TokenizeRequest | DetokenizeRequest) -> Response:
    model = gateway_of(request).model(body.model)
    return await forward(request, body.model_dump(exclude_unset=True), model, model.engine)


def _engine_for(model: Served, body: EngineRequest) -> Engine:
    """The engine that can do what `body` asks for.

    Raises:
        ApiError: 400 when none can; names the field.
    """
    wish = body.speculation
    if model.settings is None:
        if wish is not None:
            raise _cannot("speculation", "cannot be steered on another server: leave it out.")
        return model.engine
    wanted = wish is not None and not wish.off and (wish.enabled or wish.num_tokens is not None)
    if not model.speculates:
        if wanted:
            raise _cannot("speculation", "asks for a draft, and none is served: leave it out.")
        return model.engine
    most = model.settings.num_speculative_tokens
    if wanted and wish is not None and (wish.num_tokens or 0) > most:
        reason = f"'num_tokens' is above {most}, the server's own K."
        raise ApiError(400, reason, code="invalid_value", param="speculation.num_tokens")
    field = body.refused_with_draft()
    if field is not None and (wanted or model.plain is None):
        raise _cannot(field, "cannot be honoured while a draft model speculates: leave it out.")
    off = wish is not None and wish.off
    without = field is not None or off or (not wanted and model.prefers_plain)
    if model.plain is not None and without:
        # Lookahead 0 of the other engine answers the same, where no field forbids it.
        away = field is None and model.plain.client is None and model.engine.client is not None
        return model.engine if away else model.plain
    return model.engine


def _engine_kind(model: Served, *, plain: bool) -> str:
    if model.settings is None:
        return "remote"
    return "plain" if plain else "speculative"


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


def _cannot(field: str, reason: str) -> ApiError:
    return ApiError(400, f"'{field}' {reason}", code="unsupported_with_speculation", param=field)


def _shown(model: Served) -> dict[str, Any]:
    draft = None
    if model.settings is not None and model.speculates:
        draft = {
            "version": model.draft_version,
            "method": model.settings.speculation_method,
            "num_speculative_tokens": model.settings.num_speculative_tokens,
            "lenience": model.settings.lenience,
            "lossless": model.settings.lenience == 1,
        }
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "draftsmith",
        "draft": draft,
    }
