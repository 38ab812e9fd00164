"""A stream of server-sent events on its way from an engine to a client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import httpx
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draftsmith.server.admission import Slot
from draftsmith.server.engine.interface import Engine
from draftsmith.server.errors import ApiError
from draftsmith.server.gateway import Gateway
from draftsmith.server.openai.disconnect import ClientGone, unless_gone
from draftsmith.server.openai.refusals import said_by_engine, status_of
from draftsmith.server.openai.reshape import Reshape

UNREAD_S = 120.0
"""A client that takes nothing of its stream for so long has to give up its place."""
_EVENT_END = b"\n\n"
_DATA = b"data: "
_ERROR_MARK = b'"error"'


class EventStream(Response):
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
        self._waits_since: float | None = None
        """When the chunk was handed over that the client has not taken yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_gone(receive, self._pump(send), self._until_unread())
        except (ClientGone, OSError):
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
                fresh = held + chunk
                if b"\r" in fresh:  # servers elsewhere may end lines so; JSON holds none
                    fresh = fresh.replace(b"\r\n", b"\n")
                whole, end, held = fresh.rpartition(_EVENT_END)
                if not end:
                    continue
                events, failure = whole + end, None
                if _ERROR_MARK in events or self.reshape is not None:
                    events, failure = _rewritten(events, self.reshape)
                self._waits_since = time.monotonic()
                await send({"type": "http.response.body", "body": events, "more_body": True})
                self._waits_since = None
                if failure is not None:
                    return
        except (httpx.TransportError, httpx.StreamError):
            event = self.gateway.unavailable(self.engine).event()
            await send({"type": "http.response.body", "body": event, "more_body": True})

    async def _until_unread(self) -> None:
        """Returns when the client has taken nothing for too long: a timer a stream, not a chunk."""
        while self._waits_since is None or time.monotonic() - self._waits_since < UNREAD_S:
            await asyncio.sleep(UNREAD_S / 4)


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
            failure = said_by_engine(status_of(said["error"]), data)
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
