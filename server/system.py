"""Routes for those who run the server: /health, /ready, /metrics."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from draftsmith.server.engine.interface import Engine, EngineState
from draftsmith.server.errors import ApiError
from draftsmith.server.gateway import gateway_of, page_of

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive; says nothing about the engine."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while requests would be served, else 503 with the reason.

    Every engine of ours must answer. What runs elsewhere counts where nothing runs here: one
    server that is away must not take a gateway with all its models out of traffic.
    """
    gateway = gateway_of(request)
    if gateway.draining:
        return _not_ready("draining", "the server is shutting down", 5)
    ours = [one for model in gateway.models.values() if not model.remote for one in model.engines]
    for engine in ours or gateway.engines:
        client = engine.client
        if client is None:
            return _not_ready(engine.state, _shown_reason(engine), engine.retry_after_s)
        if ours and not await _answers(client):  # it died, and the supervisor has not seen it yet
            reason = "the engine does not answer"
            return _not_ready(EngineState.RESTARTING, reason, engine.retry_after_s)
    return JSONResponse({"status": "ready"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The gateway's metrics and those of all engines."""
    return _exposition(await gateway_of(request).metrics_text())


@router.get("/metrics/plain")
async def plain_metrics(request: Request) -> Response:
    """The metrics of the engine without the draft: the same names, hence a page of its own."""
    plain = gateway_of(request).first.plain
    if plain is None:
        raise ApiError(404, "There is no plain engine: set plain_engine.", code="unknown_url")
    return _exposition(await page_of(plain) or "")


@router.get("/metrics/models/{model:path}")
async def model_metrics(request: Request, model: str) -> Response:
    """The metrics of one model's engine; with several models each has a page."""
    return _exposition(await page_of(gateway_of(request).model(model).engine) or "")


def _shown_reason(engine: Engine) -> str:
    """Without what the log said when it died: anybody may ask."""
    if engine.state in (EngineState.STARTING, EngineState.SUSPENDED):
        return engine.reason
    return f"the engine is {engine.state}"


def _exposition(text: str) -> Response:
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health", timeout=2.0)).status_code == 200
    except httpx.TimeoutException:
        return True  # busy, not dead
    except httpx.TransportError:
        return False


def _not_ready(status: str, reason: str, retry_after_s: int) -> Response:
    content: dict[str, Any] = {"status": status, "reason": reason}
    return JSONResponse(content, 503, {"retry-after": str(retry_after_s)})
