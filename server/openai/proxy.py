"""Hands a request to an engine and its answer back, byte for byte where nothing must change.

When the client goes away the connection to the engine is closed, which makes vLLM abort the
request. When the engine goes away the client is told so, also in the middle of a stream.
"""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
from fastapi import Request
from starlette.responses import Response

from draftsmith.server.admission import Slot
from draftsmith.server.engine.interface import Engine
from draftsmith.server.gateway import (
    Gateway,
    account_of,
    gateway_of,
    is_background,
    key_of,
    trace_of,
)
from draftsmith.server.openai.disconnect import ClientGone, unless_gone
from draftsmith.server.openai.events import EventStream
from draftsmith.server.openai.meter import Meter
from draftsmith.server.openai.refusals import encoded, healthy, refusal
from draftsmith.server.openai.reshape import Reshape, accountant, chained, renamed
from draftsmith.server.openai.speculation import figure_headers
from draftsmith.server.served import Served

CLIENT_CLOSED = 499  # never sent; for the metrics


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
        slot = await unless_gone(request.receive, place, unused=Slot.leave)
    except ClientGone:
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
        headers = {} if span is None else span.headers()
        elsewhere = model.remote is not None
        answer = await _ask(request, body, gateway, engine, headers, elsewhere=elsewhere)
        if isinstance(answer, Response):
            return answer
        streams = bool(body.get("stream"))
        if streams:
            response: Response = EventStream(answer, gateway, engine, slot, reshape)
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
    *,
    elsewhere: bool,
) -> httpx.Response | Response:
    """The engine's answer with status 200, or our own where the client has gone away."""
    client = gateway.client_of(engine)
    # Our request id stays here: vLLM would use it as its own, and two clients may send the same.
    headers = {**headers, "content-type": "application/json"}
    path, content = request.scope["path"], encoded(body)
    upstream = client.build_request("POST", path, content=content, headers=headers)
    try:
        answer = await unless_gone(
            request.receive, client.send(upstream, stream=bool(body.get("stream")))
        )
        if answer.status_code == 200:
            return answer
        await answer.aread()
        await answer.aclose()
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    except httpx.TransportError as error:
        raise gateway.unavailable(engine) from error
    busy = elsewhere and answer.status_code == 503
    if answer.status_code >= 500 and not busy and not await healthy(client, engine):
        raise gateway.unavailable(engine)
    raise refusal(answer, engine, request.scope["state"]["request_id"], elsewhere=elsewhere)


def _whole(answer: httpx.Response, reshape: Reshape | None, account: Reshape) -> Response:
    content, said = answer.content, answer.json()
    account(said)
    if reshape is not None:
        reshape(said)
        content = json.dumps(said).encode()
    return Response(content, media_type="application/json", headers=figure_headers(said))
