"""Notices an engine that is there and does nothing, though requests are inside.

vLLM's own /health says only that no process has died. A scheduler that steps tells so by a file
(see `speculation/report.py`); where that falls silent while requests are inside, one short trial
request decides. Silence alone is no proof: a client that reads slowly keeps an answer here
that the engine has long forgotten.
"""

from __future__ import annotations

import asyncio
import time

import httpx

from draftsmith.server.admission import Load
from draftsmith.server.engine.process import EngineProcess

_QUIET_S = 10.0
"""Without a step for so long, with requests inside, the engine is tried."""


class StallWatch:
    """Of one engine from its start to its end. Belongs to one event loop."""

    def __init__(
        self, engine: EngineProcess, client: httpx.AsyncClient, load: Load, timeout_s: float
    ) -> None:
        """`timeout_s`: what the trial may take."""
        self._engine, self._client, self._load = engine, client, load
        self._timeout_s = timeout_s
        self._quiet_s = min(_QUIET_S, timeout_s)
        self._active_at = time.time()
        self._trial: asyncio.Task[bool] | None = None
        self._tried_at = 0.0

    def hangs(self) -> bool:
        """Whether the engine hangs, as far as is known by now; asked about once a second."""
        if self._trial is not None:
            return self._verdict(self._trial)
        now = time.time()
        if not self._load.in_flight:
            self._active_at = now
        self._active_at = max(self._active_at, self._engine.stepped_at)
        if now - self._active_at > self._quiet_s:
            self._trial, self._tried_at = asyncio.create_task(self._answers()), now
        return False

    def _verdict(self, trial: asyncio.Task[bool]) -> bool:
        if not trial.done():
            return False
        # The trial may have waited behind requests that the engine was busy with all the time.
        stepped = self._engine.stepped_at > self._tried_at
        self._trial, self._active_at = None, time.time()
        return not trial.result() and not stepped

    async def _answers(self) -> bool:
        name = self._engine.config.served_model_name
        body = {"model": name, "prompt": [0], "max_tokens": 1, "temperature": 0}
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._client.post("/v1/completions", json=body)
        except (TimeoutError, httpx.TimeoutException):
            return False
        except httpx.TransportError:
            return True  # it dies, which others notice
        return True
