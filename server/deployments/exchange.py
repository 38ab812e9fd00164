"""Puts a draft into the engine that serves, and the draft of before back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx

from draftsmith.server.deployments.event import DraftRef, Event
from draftsmith.server.engine.process import EngineError
from draftsmith.server.engine.supervisor import Supervisor
from draftsmith.server.engine.weights import WeightsRefused, load_weights

SWAP_ERRORS = (WeightsRefused, EngineError, httpx.HTTPError)
_log = logging.getLogger("draftsmith.deployments")
_IDLE_POLL_S = 0.05


class NotReady(EngineError):
    """The engine does not answer now."""


class Exchange:
    """Of one supervised engine. All methods belong to its event loop."""

    def __init__(
        self, supervisor: Supervisor, drain_timeout_s: float, in_flight: Callable[[], int]
    ) -> None:
        """`in_flight`: how many requests are being answered."""
        self._supervisor = supervisor
        self._drain_timeout_s = drain_timeout_s
        self._in_flight = in_flight

    def client(self) -> httpx.AsyncClient:
        """Of the engine that serves. Raises NotReady."""
        client = self._supervisor.client
        if client is None:
            raise NotReady("The engine does not answer now: wait until /ready says so.")
        return client

    def keep_over_restarts(self, draft: DraftRef) -> None:
        """Whenever the engine starts from now on, it starts with `draft`."""
        self._supervisor.config = replace(self._supervisor.config, draft=Path(draft.folder))

    async def swap(self, event: Event) -> Event:
        """Put `event.draft` into the engine; returns the event with the time that it took.

        Raises:
            WeightsRefused, EngineError, httpx.HTTPError: it is not in it.
        """
        folder = Path(event.draft.folder)
        began = time.perf_counter()
        if event.way == "restart":
            await self._restart_with(folder)
            seconds = time.perf_counter() - began
        else:
            version = event.draft.version or folder.name
            seconds = (await load_weights(self.client(), "draft", folder, version))["seconds"]
        return event.model_copy(update={"swap_ms": round(1000 * seconds, 1)})

    async def swap_back(self, event: Event) -> None:
        """The draft of before, whatever state the engine is in now."""
        client, config = self._supervisor.client, self._supervisor.config
        if config.draft == Path(event.previous.folder) and (
            event.way == "restart" or client is None
        ):
            return  # the supervisor starts the engine of before by itself
        self.keep_over_restarts(event.previous)
        try:
            await self.swap(event.model_copy(update={"draft": event.previous}))
        except SWAP_ERRORS as error:
            # Which weights are in it now is not certain; in a new engine it is.
            _log.error("the draft of before cannot be loaded back, so a new engine is: %s", error)
            try:
                await self._restart_with(Path(event.previous.folder))
            except EngineError as restart_error:
                # Its configuration has the draft of before: the supervisor goes on trying.
                _log.error("the engine does not start with it yet: %s", restart_error)

    async def _restart_with(self, folder: Path) -> None:
        """Let the running requests end, then start another engine; new ones get 503 meanwhile."""
        self._supervisor.refuse("another draft is being loaded")
        end = time.monotonic() + self._drain_timeout_s
        while self._in_flight() and time.monotonic() < end:
            await asyncio.sleep(_IDLE_POLL_S)
        await self._supervisor.replace(replace(self._supervisor.config, draft=folder))
