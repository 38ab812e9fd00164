"""How one engine gives its place to another: what `Supervisor` waits for and unwinds by."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import httpx

from draftsmith.server.admission import Load
from draftsmith.server.engine.command import EngineConfig
from draftsmith.server.engine.process import EngineError, EngineProcess

_log = logging.getLogger("draftsmith.engine")
_POLL_S = 0.25


class StopRequested(Exception):
    """`stop` was called; unwinds a start or a pause."""


class SuspendRequested(Exception):
    """`suspend` was called; unwinds a start, or ends the watch over the engine."""


class Superseded(Exception):
    """`adopt` was called; ends a start of the engine of before, or the watch over it."""


class ReplaceRequested(Exception):
    """`replace` was called; ends the watch over the engine."""

    def __init__(self, replacement: Replacement) -> None:
        super().__init__()
        self.replacement = replacement


class Replacement:
    """A wish to run the engine with another configuration, and what came of it."""

    def __init__(self, config: EngineConfig, before: EngineConfig) -> None:
        self.config = config
        self.before = before
        self.taken = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self) -> EngineConfig:
        self.taken = True
        return self.config

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: EngineError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


async def retire(
    engine: EngineProcess,
    client: httpx.AsyncClient,
    load: Load,
    timeout_s: float,
    hurry: Callable[[], bool],
) -> None:
    """Stop `engine` once what is inside it has ended, after `timeout_s` seconds, or on `hurry`."""
    end = time.monotonic() + timeout_s
    while load.in_flight and engine.running and time.monotonic() < end and not hurry():
        await asyncio.sleep(_POLL_S)
    if load.in_flight:
        _log.warning("%d requests had to end with the engine of before.", load.in_flight)
    with contextlib.suppress(httpx.TransportError):
        await client.aclose()  # what still streams ends with an error event, not with `abort`
    await asyncio.to_thread(engine.stop)
