"""What the gateway sees of an engine, be it a supervised child or a server elsewhere."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Protocol

import httpx

from draftsmith.server.admission import Load
from draftsmith.server.speculation.report import StepReport


class EngineState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    SUSPENDED = "suspended"
    FAILED = "failed"
    STOPPED = "stopped"


class Engine(Protocol):
    """Belongs to one event loop."""

    state: EngineState
    reason: str
    """Why it is not ready, for who runs the server."""
    health_path: str
    """Answers 200 while the engine does."""
    restarts: int
    load: Load
    """The gateway's requests that are inside."""
    failed: asyncio.Event
    """Set when the engine will not come; `reason` says why."""

    @property
    def client(self) -> httpx.AsyncClient | None:
        """A pooled client of the engine's HTTP API while it is ready."""

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which another try makes sense, at most 120."""

    def launch(self, after: Engine | None = None) -> None:
        """Begin in the background, once the engine of `after` has started."""

    async def stop(self) -> None:
        """Harmless when repeated."""

    def step_report(self) -> StepReport | None:
        """What the engine's scheduler knows about its steps, as far as that is ours to see."""
