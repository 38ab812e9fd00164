"""Clients of engines, before servers that answer with the bytes of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from draftsmith.server.engine.client import open_client

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def served(handle: Handle, path: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server on a free port."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = open_client(f"http://127.0.0.1:{port}{path}", headers={"authorization": "Bearer k"})
    try:
        async with client, asyncio.timeout(10):
            yield client
    finally:
        server.close()


async def request_on(reader: asyncio.StreamReader) -> bytes:
    """Head and JSON body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    return head + await reader.readexactly(length)


async def read_all(client: httpx.AsyncClient, stream: bool) -> bytes:
    answer = await client.send(client.build_request("POST", "/", json={}), stream=stream)
    try:
        return await answer.aread()
    finally:
        await answer.aclose()


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([], httpx.NetworkError),
        ([b"HTTP/1.1 200 O"], httpx.NetworkError),
        ([b"good morning\r\n\r\n"], httpx.RemoteProtocolError),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"], httpx.RemoteProtocolError),
        ([CHUNKED + b"3\r\nabc\r\n"], httpx.RemoteProtocolError),
        ([CHUNKED + b"3\r\nabc\r\n", b"zzz\r\nabc\r\n"], httpx.RemoteProtocolError),
    ],
    ids=["nothing", "half a head", "no HTTP", "too short", "cut", "damaged chunk"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_answer_is_an_error_of_httpx_and_never_a_wait(
    parts: list[bytes], error: type[Exception], stream: bool
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_on(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()

    async def check() -> None:
        async with served(handle) as client:
            with pytest.raises(error):
                await read_all(client, stream)

    asyncio.run(check())


def test_who_is_not_there_is_told_from_who_does_not_answer(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def check() -> None:
        async with open_client("http://engine", uds=tmp_path / "absent") as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/health")
        async with served(silent) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get("/health", timeout=0.05)

    asyncio.run(check())


def test_leaving_a_stream_closes_its_connection() -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_on(reader)
        writer.write(CHUNKED + b"3\r\nabc\r\n")
        assert await reader.read() == b""
        left.set()
        writer.close()

    async def check() -> None:
        async with served(handle) as client:
            answer = await client.send(client.build_request("POST", "/", json={}), stream=True)
            assert await anext(answer.aiter_raw()) == b"abc"
            await answer.aclose()
            await left.wait()

    asyncio.run(check())


def test_giving_up_before_the_answer_closes_the_connection() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_on(reader)
        asked.set()
        assert await reader.read() == b""
        left.set()
        writer.close()

    async def check() -> None:
        async with served(handle) as client:
            task = asyncio.create_task(client.post("/", json={}))
            await asked.wait()
            task.cancel()
            await left.wait()

    asyncio.run(check())


def test_one_connection_serves_one_request_after_the_other() -> None:
    connections, requests = 0, []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(5):
            requests.append(await request_on(reader))
            writer.write(WHOLE)
        writer.close()

    async def check() -> None:
        async with served(handle, path="/below") as client:
            for _ in range(5):
                answer = await client.post("/v1/a%2Fb", json={"prompt": "hé"})
                assert (answer.status_code, answer.text) == (200, "ok")

    asyncio.run(check())
    assert connections == 1
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /below/v1/a%2Fb HTTP/1.1\r\n")
    assert b"authorization: Bearer k" in head.splitlines()
    assert body == '{"prompt":"hé"}'.encode()


def test_requests_never_wait_for_a_connection() -> None:
    """vLLM holds the queue; aiohttp's own pool ends at 100."""
    count, inside, all_inside = 150, 0, asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal inside
        await request_on(reader)
        inside += 1
        if inside == count:
            all_inside.set()
        await all_inside.wait()
        writer.write(WHOLE)
        writer.close()

    async def check() -> None:
        async with served(handle) as client:
            answers = await asyncio.gather(*(client.post("/", json={}) for _ in range(count)))
            assert {answer.text for answer in answers} == {"ok"}

    asyncio.run(check())
