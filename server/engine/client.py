"""Clients of engines: httpx's interface on aiohttp's connections.

httpx's own connections parse in Python and send head and body apart. On aiohttp's the gateway
passes twice as many chunks a second (docs/serving.md, what the gateway costs).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from aiohttp.http import HttpProcessingError
from yarl import URL

KEEP_ALIVE_S = 2.0
"""vLLM closes a connection that was idle for 5 s: a request must not meet that moment."""
_CONNECT_S = 5.0
_PROBES = {
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 30_000,  # milliseconds, of what was sent and not acknowledged
}
"""A host that has gone without a word is noticed after half a minute, also in a quiet answer."""


def open_client(
    base_url: str, *, uds: Path | None = None, headers: Mapping[str, str] | None = None
) -> httpx.AsyncClient:
    """A client with as many connections as there are requests; close it.

    It waits for an answer as long as that takes, and knows no proxies, cookies or encodings.

    Args:
        uds: a Unix socket; `base_url` may then have any host.
    """
    return httpx.AsyncClient(
        base_url=base_url,
        headers={"accept-encoding": "identity", **(headers or {})},
        transport=_Transport(uds),
        timeout=httpx.Timeout(None, connect=_CONNECT_S),
    )


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, uds: Path | None) -> None:
        self._uds = uds
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._session is None:  # not before: it belongs to the running event loop
            self._session = aiohttp.ClientSession(
                connector=_connector(self._uds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        limits = request.extensions["timeout"]
        with _said_by_httpx(request):
            answer = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=request.headers.items(),
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=limits["connect"], sock_read=limits["read"]
                ),
            )
        return httpx.Response(
            answer.status,
            headers=list(answer.raw_headers),
            stream=_Body(answer, request),
            request=request,
        )

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


class _Body(httpx.AsyncByteStream):
    """Bytes as they come. Closed before its end, it closes the connection."""

    def __init__(self, answer: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._answer = answer
        self._request = request
        _end_with_connection(answer)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _said_by_httpx(self._request):
            async for chunk in self._answer.content.iter_any():
                yield chunk

    async def aclose(self) -> None:
        self._answer.release()


def _end_with_connection(answer: aiohttp.ClientResponse) -> None:
    """aiohttp closes the connection at a damaged body, but lets its reader wait for ever."""
    content = answer.content
    if answer.connection is None or answer.connection.protocol is None:
        return  # all of it is here
    closed = answer.connection.protocol.closed
    if closed is None:
        return

    def end(_: asyncio.Future[None]) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("The body is damaged."))

    def forget() -> None:
        closed.remove_done_callback(end)

    closed.add_done_callback(end)
    content.on_eof(forget)
    # The connection may serve many requests: one callback of this kind is enough.
    closed.remove_done_callback(_look)
    closed.add_done_callback(_look)


def _look(closed: asyncio.Future[None]) -> None:
    """asyncio complains of failures that nobody looked at."""
    if not closed.cancelled():
        closed.exception()


def _connector(uds: Path | None) -> aiohttp.BaseConnector:
    if uds is not None:
        return aiohttp.UnixConnector(str(uds), limit=0, keepalive_timeout=KEEP_ALIVE_S)
    certificates = httpx.create_ssl_context(trust_env=False)
    return aiohttp.TCPConnector(
        ssl=certificates, limit=0, keepalive_timeout=KEEP_ALIVE_S, socket_factory=_probed_socket
    )


def _probed_socket(address: tuple[Any, ...]) -> socket.socket:
    """`address`: as `socket.getaddrinfo` gives it."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):  # not every system has each
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


@contextmanager
def _said_by_httpx(request: httpx.Request) -> Iterator[None]:
    """aiohttp's errors as httpx's."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx.ConnectTimeout(str(error), request=request) from error
    except aiohttp.ServerTimeoutError as error:
        raise httpx.ReadTimeout(str(error), request=request) from error
    except aiohttp.ClientConnectorError as error:
        raise httpx.ConnectError(str(error), request=request) from error
    except aiohttp.ClientConnectionError as error:
        raise httpx.ReadError(str(error), request=request) from error
    except (aiohttp.ClientError, HttpProcessingError) as error:
        raise httpx.RemoteProtocolError(str(error), request=request) from error
