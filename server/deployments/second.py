"""A second engine beside the one that serves: it starts, is tried, and takes over or goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from draftsmith.server.engine.process import EngineError, EngineProcess
from draftsmith.server.engine.supervisor import Supervisor, client_of


class SecondEngine:
    """Made by `second_engine`. Belongs to one event loop."""

    def __init__(self, supervisor: Supervisor, draft: Path) -> None:
        self._supervisor = supervisor
        config = replace(supervisor.config, draft=draft)
        self._engine = EngineProcess(config, supervisor.spare_log)
        self._client: httpx.AsyncClient | None = None
        self._unwanted = False
        self._taken_over = False

    @property
    def client(self) -> httpx.AsyncClient:
        assert self._client is not None, "it has not started"
        return self._client

    def check(self) -> None:
        """Raises EngineError where it cannot take over: it has died, or the server ends."""
        if self._supervisor.stopping:
            raise EngineError("The server is shutting down.")
        if not self._engine.running:
            raise EngineError(f"The second engine died: {self._engine.last_words()}")

    def take_over(self, drain_timeout_s: float) -> asyncio.Task[None]:
        """Answer all new requests, at once; the task ends when the engine of before is gone.

        Only right after `check`, in the same step of the event loop.
        """
        self._taken_over = True
        return self._supervisor.adopt(self._engine, self.client, drain_timeout_s)

    def _start(self) -> None:
        """Blocks until it answers; in a thread of its own. Raises EngineError."""

        def progress(stage: str, elapsed_s: float) -> None:
            if self._unwanted or self._supervisor.stopping:
                raise EngineError(
                    f"The second engine was stopped after {elapsed_s:.0f} s: {stage}."
                )

        self._engine.start()
        self._engine.wait_ready(self._supervisor.start_timeout_s, progress)


@asynccontextmanager
async def second_engine(supervisor: Supervisor, draft: Path) -> AsyncIterator[SecondEngine]:
    """The engine of `supervisor` once more with another draft, ready to answer in the `with`.

    At the end of the `with` it is stopped, unless it has taken over.

    Raises:
        EngineError: it does not start.
    """
    second = SecondEngine(supervisor, draft)
    starting = asyncio.create_task(asyncio.to_thread(second._start))
    try:
        await asyncio.shield(starting)
        second._client = client_of(second._engine)
        yield second
    finally:
        if not second._taken_over:
            second._unwanted = True
            await asyncio.wait({starting})  # whoever is cancelled leaves no engine behind
            await asyncio.to_thread(second._engine.stop)
            if second._client is not None:
                with contextlib.suppress(httpx.TransportError):
                    await second._client.aclose()
