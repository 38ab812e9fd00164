"""Hands a request to the engine and its answer back, byte for byte.

When the client goes away the connection to the engine is closed, which makes vLLM abort the
request. When the engine goes away the client is told so, also in the middle of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

import httpx
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draftsmith.server.errors import ApiError, internal_error
from draftsmith.server.gateway import Gateway, gateway_of

CLIENT_CLOSED = 499  # never sent; for the metrics
_EVENT_END = b"\n\n"
_T = TypeVar("_T")


async def forward(request: Request, body: dict[str, Any], model: str) -> Response:
    """POST `body` to the engine under the request's own path and answer with what it says.

    Raises:
        ApiError: the request may not go to the engine now, or the engine refused it.
    """
    gateway = gateway_of(request)
    client = gateway.admit(model)
    # Our request id stays here: vLLM would use it as its own, and two clients may send the same.
    upstream = client.build_request(
        "POST", request.scope["path"], json=body, headers={"accept-encoding": "identity"}
    )
    try:
        answer = await _unless_gone(
            request.receive, client.send(upstream, stream=bool(body.get("stream")))
        )
    except _ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    except httpx.TransportError as error:
        raise gateway.unavailable() from error
    if answer.status_code != 200:
        await answer.aread()
        await answer.aclose()
        raise await _refusal(gateway, client, answer)
    if not body.get("stream"):
        return Response(answer.content, media_type="application/json")
    return _EventStream(answer, gateway)


class _EventStream(Response):
    """Server-sent events as they come, in whole events, until an end of either side."""

    def __init__(self, upstream: httpx.Response, gateway: Gateway) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self.upstream = upstream
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await _unless_gone(receive, self._pump(send))
        except (_ClientGone, OSError):
            return
        finally:
            with contextlib.suppress(httpx.TransportError):
                await self.upstream.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        held = b""  # an event that is not complete yet: half of one is worse than none
        try:
            async for chunk in self.upstream.aiter_raw():
                whole, end, held = (held + chunk).rpartition(_EVENT_END)
                if end:
                    await send(
                        {"type": "http.response.body", "body": whole + end, "more_body": True}
                    )
        except (httpx.TransportError, httpx.StreamError):
            event = self.gateway.unavailable().event()
            await send({"type": "http.response.body", "body": event, "more_body": True})


class _ClientGone(Exception):
    """The client closed its connection."""


async def _unless_gone(receive: Receive, work: Awaitable[_T]) -> _T:
    """The result of `work`, which is cancelled when the client goes away first.

    Raises:
        _ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _ClientGone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.wait({task, gone})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refusal(gateway: Gateway, client: httpx.AsyncClient, answer: httpx.Response) -> ApiError:
    """vLLM's error in our shape: no integer codes, no echo of the body, no inner names."""
    if answer.status_code >= 500:
        return internal_error() if await _healthy(client) else gateway.unavailable()
    try:
        error = json.loads(answer.content)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = "", None
    code = "invalid_value"
    if "maximum context length" in message or "max_model_len" in message:
        code = "context_length_exceeded"
    # A dump of a validation error quotes the body; a sentence does not.
    if not message or "'input'" in message or "\n" in message:
        message = "The engine does not accept this request."
    return ApiError(answer.status_code, message, code=code, param=param)


async def _healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health", timeout=5.0)).status_code == 200
    except httpx.TransportError:
        return False
