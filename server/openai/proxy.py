"""Hands a request to an engine and its answer back, byte for byte where nothing must change.

When the client goes away the connection to the engine is closed, which makes vLLM abort the
request. When the engine goes away the client is told so, also in the middle of a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import httpx
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draftsmith.server.admission import Slot
from draftsmith.server.engine.interface import Engine
from draftsmith.server.errors import ApiError, internal_error
from draftsmith.server.gateway import (
    Gateway,
    account_of,
    gateway_of,
    is_background,
    key_of,
    trace_of,
)
from draftsmith.server.openai.meter import Meter
from draftsmith.server.openai.reshape import Reshape, accountant, chained, renamed
from draftsmith.server.openai.speculation import figure_headers
from draftsmith.server.served import Served

CLIENT_CLOSED = 499  # never sent; for the metrics
_EVENT_END = b"\n\n"
_DATA = b"data: "
_ERROR_MARK = b'"error"'
_T = TypeVar("_T")


async def forward(
    request: Request,
    body: dict[str, Any],
    model: Served,
    engine: Engine,
    reshape: Reshape | None = None,
) -> Response:
    """POST `body` to `engine`, one of `model`'s, and answer with what it says.

    `reshape` changes the answer, or each event of a stream; without it bytes pass untouched.

    Raises:
        ApiError: the request may not go to the engine now, or the engine refused it.
    """
    gateway = gateway_of(request)
    gateway.check_open()
    gateway.client_of(engine)  # no use to wait for a place in an engine that is not there
    key, background = key_of(request), is_background(request)
    account, arrived = account_of(request), time.perf_counter()
    try:
        place = gateway.admission.enter(key, engine.load, background=background)
        slot = await _unless_gone(request.receive, place)
    except _ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    account["queue_seconds"] = round(time.perf_counter() - arrived, 6)
    if model.remote is not None and model.remote.model is not None:
        body = body | {"model": model.remote.model}
        reshape = chained(renamed(model.name), reshape)
    if key is not None and key.tokens_per_minute is not None:
        reshape = chained(reshape, Meter(slot, body))
    streams = False
    trace = trace_of(request)
    span = None if trace is None else trace.child("engine")
    if span is not None:
        slot.at_leave = span.end
        span.note(gen_ai__request__model=body["model"], draftsmith__stream=bool(body.get("stream")))
    try:
        answer = await _ask(request, body, gateway, engine, {} if span is None else span.headers())
        if isinstance(answer, Response):
            return answer
        streams = bool(body.get("stream"))
        if streams:
            response: Response = _EventStream(answer, gateway, engine, slot, reshape)
        else:
            response = _whole(answer, reshape, accountant(account, span))
            slot.leave()  # what it has cost is known, and belongs into the headers
        response.headers.update(gateway.admission.minute.headers(key))
        return response
    finally:
        if not streams:
            slot.leave()


async def _ask(
    request: Request,
    body: dict[str, Any],
    gateway: Gateway,
    engine: Engine,
    headers: dict[str, str],
) -> httpx.Response | Response:
    """The engine's answer with status 200, or our own where the client has gone away."""
    client = gateway.client_of(engine)
    # Our request id stays here: vLLM would use it as its own, and two clients may send the same.
    upstream = client.build_request("POST", request.scope["path"], json=body, headers=headers)
    try:
        answer = await _unless_gone(
            request.receive, client.send(upstream, stream=bool(body.get("stream")))
        )
    except _ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    except httpx.TransportError as error:
        raise gateway.unavailable(engine) from error
    if answer.status_code != 200:
        await answer.aread()
        await answer.aclose()
        if answer.status_code >= 500 and not await _healthy(client):
            raise gateway.unavailable(engine)
        raise _refusal(answer.status_code, answer.content)
    return answer


def _whole(answer: httpx.Response, reshape: Reshape | None, account: Reshape) -> Response:
    content, said = answer.content, answer.json()
    account(said)
    if reshape is not None:
        reshape(said)
        content = json.dumps(said).encode()
    return Response(content, media_type="application/json", headers=figure_headers(said))


class _EventStream(Response):
    """Server-sent events as they come, in whole events, until an end of either side."""

    def __init__(
        self,
        upstream: httpx.Response,
        gateway: Gateway,
        engine: Engine,
        slot: Slot,
        reshape: Reshape | None,
    ) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        del self.headers["content-length"]
        self.upstream = upstream
        self.gateway = gateway
        self.engine = engine
        self.slot = slot
        self.reshape = reshape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _unless_gone(receive, self._pump(send))
        except (_ClientGone, OSError):
            return
        finally:
            self.slot.leave()
            with contextlib.suppress(httpx.TransportError):
                await self.upstream.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pump(self, send: Send) -> None:
        held = b""  # an event that is not complete yet: half of one is worse than none
        try:
            async for chunk in self.upstream.aiter_raw():
                whole, end, held = (held + chunk).rpartition(_EVENT_END)
                if not end:
                    continue
                events, failure = whole + end, None
                if _ERROR_MARK in events or self.reshape is not None:
                    events, failure = _rewritten(events, self.reshape)
                await send({"type": "http.response.body", "body": events, "more_body": True})
                if failure is not None:
                    return
        except (httpx.TransportError, httpx.StreamError):
            event = self.gateway.unavailable(self.engine).event()
            await send({"type": "http.response.body", "body": event, "more_body": True})


def _rewritten(events: bytes, reshape: Reshape | None) -> tuple[bytes, ApiError | None]:
    """Each event reshaped; up to and with the first error, which is returned too."""
    out: list[bytes] = []
    for event in events.removesuffix(_EVENT_END).split(_EVENT_END):
        head, data = _split(event)
        if not data.startswith(b"{"):
            out.append(event)  # the end mark or a comment that keeps the connection open
            continue
        said = json.loads(data)
        if isinstance(said.get("error"), dict) and "choices" not in said and "type" not in said:
            failure = _refusal(_status_of(said["error"]), data)
            return b"".join(one + _EVENT_END for one in out) + failure.event(), failure
        if reshape is not None:
            reshape(said)
            if not said:
                continue
            event = head + json.dumps(said).encode()
        out.append(event)
    return b"".join(one + _EVENT_END for one in out), None


def _split(event: bytes) -> tuple[bytes, bytes]:
    """Up to and with the mark of the data, and the data, which is one line here."""
    place = 0 if event.startswith(_DATA) else event.find(b"\n" + _DATA) + 1
    end = place + len(_DATA) if event.startswith(_DATA, place) else 0
    return event[:end], event[end:]


def _status_of(error: dict[str, Any]) -> int:
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 500 else 500


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


def _refusal(status: int, content: bytes) -> ApiError:
    """vLLM's error in our shape: no integer codes, no echo of the body, no inner names."""
    if status >= 500:
        return internal_error()
    try:
        error = json.loads(content)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = "", None
    code = "invalid_value"
    if "maximum context length" in message or "max_model_len" in message:
        code = "context_length_exceeded"
    # A dump of a validation error quotes the body; a sentence does not.
    if not message or "'input'" in message or "\n" in message:
        message = "The engine does not accept this request."
    return ApiError(status, message, code=code, param=param)


async def _healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health", timeout=5.0)).status_code == 200
    except httpx.TransportError:
        return False
