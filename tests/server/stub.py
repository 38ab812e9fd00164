"""A gateway in this process, over a real socket, whose engines are a function of the test's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
from fastapi import FastAPI

from draftsmith.server.admission import Load
from draftsmith.server.app import create_app
from draftsmith.server.engine.interface import Engine, EngineState
from draftsmith.server.run import _listen
from draftsmith.server.settings import load_settings
from draftsmith.server.telemetry import Tracing

Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]


class StubEngine:
    """What a gateway sees of a supervised engine."""

    health_path = "/health"
    restarts = 0
    reason = ""
    retry_after_s = 7
    state = EngineState.READY

    def __init__(self, client: httpx.AsyncClient | None) -> None:
        self.client = client

        self.failed = asyncio.Event()
        self.load = Load()

    def launch(self, after: Engine | None = None) -> None:
        """It is there already."""

    async def stop(self) -> None:
        """Nothing runs."""

    def step_report(self) -> None:
        """As an engine in its first second."""


def answering(answer: Answer) -> StubEngine:
    """An engine that is healthy and leaves every POST to `answer`."""

    async def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, text="")
        return await answer(request)

    transport = httpx.MockTransport(handle)
    return StubEngine(httpx.AsyncClient(transport=transport, base_url="http://engine"))


def completion(text: str = "a") -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    head = {"id": "c", "object": "text_completion", "created": 1, "model": "target"}
    return {**head, "choices": [choice]}


def events(*pieces: bytes) -> httpx.Response:
    """A stream of exactly these pieces."""

    async def content() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
            await asyncio.sleep(0)

    return httpx.Response(200, content=content(), headers={"content-type": "text/event-stream"})


@contextmanager
def serving(
    home: Path,
    target: Path,
    engine: StubEngine,
    plain: StubEngine | None = None,
    tracing: Tracing | None = None,
    **settings: Any,
) -> Iterator[str]:
    """The URL of a gateway in front of `engine`, and `plain` if there is one."""
    chosen = load_settings(home=home, target=target, **{"worker": False} | settings)
    app = create_app(chosen, tracing=tracing)
    app.state.gateway.first.engine = engine
    app.state.gateway.first.plain = plain
    with running(app) as url:
        yield url


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    listener = _listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="warning", lifespan="on")
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def strict_client(url: str, **options: Any) -> openai.OpenAI:
    """The stock client, which then takes no answer that its types do not describe."""
    values: dict[str, Any] = {"api_key": "none", "max_retries": 0} | options
    headers = {"x-strict-types": "true"}
    return openai.OpenAI(
        base_url=f"{url}/v1",
        default_headers=headers,
        _strict_response_validation=True,
        **values,
    )
