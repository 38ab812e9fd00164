"""An OpenAI-compatible server elsewhere in the place of a child: vLLM itself, Ray Serve LLM, vLLM's
production stack, llm-d. It is asked how it does; starting and stopping it is somebody else's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import Annotated

import httpx
from pydantic import BaseModel, ConfigDict, Field, field_validator

from draftsmith.server.admission import Load
from draftsmith.server.engine.client import open_client
from draftsmith.server.engine.interface import Engine, EngineState

_log = logging.getLogger("draftsmith.engine")
_HEALTH_EVERY_S = 1.0
_HEALTH_TIMEOUT_S = 10.0
_RETRY_AFTER_S = 5
_LOST_S = 60.0
"""Without any answer for so long, what is still inside the other server is given up."""


class RemoteModel(BaseModel):
    """A model that another server answers for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    served_model_name: Annotated[str, Field(min_length=1, max_length=200)]
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$")]
    """Without `/v1`."""
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """What the other server calls it; None: as here."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable with the key that the other server asks for."""
    health: Annotated[str, Field(pattern=r"^/\S*$")] = "/health"
    """Path that answers 200 while the other server does."""

    @field_validator("url")
    @classmethod
    def _no_version(cls, url: str) -> str:
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError("give no user or password in it: name a variable by 'key_variable'")
        if url.rstrip("/").endswith("/v1"):
            raise ValueError("give it without /v1, which belongs to each route")
        return url.rstrip("/")

    def key(self) -> str | None:
        """The secret of `key_variable`.

        Raises:
            ValueError: the variable is not set.
        """
        if self.key_variable is None:
            return None
        secret = os.environ.get(self.key_variable)
        if not secret:
            raise ValueError(
                f"The model '{self.served_model_name}' wants a key from the environment variable "
                f"{self.key_variable}, which is not set."
            )
        return secret


class RemoteEngine:
    """Keeps a pool of connections to another server, and looks whether it answers."""

    def __init__(self, config: RemoteModel) -> None:
        """Raises ValueError where the key is missing."""
        self.config = config
        self.state = EngineState.STARTING
        self.reason = "the other server has not answered yet"
        self.restarts = 0
        """Times that it came back."""
        self.load = Load()
        self.health_path = config.health
        self.retry_after_s = _RETRY_AFTER_S
        self.failed = asyncio.Event()
        key = config.key()
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._client: httpx.AsyncClient | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def client(self) -> httpx.AsyncClient | None:
        return self._client if self.state is EngineState.READY else None

    def launch(self, after: Engine | None = None) -> None:
        """It needs no memory here, so it waits for nobody."""
        self._client = self._new_client()
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self.state, self.reason = EngineState.STOPPED, "the server is shutting down"
        client, self._client = self._client, None
        await _close(client)

    def step_report(self) -> None:
        """Its scheduler is its own."""

    async def _watch(self) -> None:
        answered_at = time.monotonic()
        while True:
            client = self._client
            assert client is not None, "the client is there from launch to stop"
            try:
                answer = await client.get(self.health_path, timeout=_HEALTH_TIMEOUT_S)
                answered_at = time.monotonic()
                reason = "" if answer.status_code == 200 else f"it answers {answer.status_code}"
            except httpx.TimeoutException:
                reason = f"it did not answer in {_HEALTH_TIMEOUT_S:.0f} s"
            except httpx.TransportError as error:
                reason = f"it cannot be reached: {type(error).__name__}"
            self._note(reason)
            if time.monotonic() - answered_at > _LOST_S:
                # Requests would wait for ever, and keep their places from other models.
                self._client, answered_at = self._new_client(), time.monotonic()
                await _close(client)
            await asyncio.sleep(_HEALTH_EVERY_S)

    def _new_client(self) -> httpx.AsyncClient:
        return open_client(self.config.url, headers=self._headers)

    def _note(self, reason: str) -> None:
        was = self.state
        if not reason:
            self.state, self.reason = EngineState.READY, ""
            self.restarts += was is EngineState.RESTARTING
        elif was is not EngineState.STARTING:
            self.state, self.reason = EngineState.RESTARTING, reason
        else:
            self.reason = reason
        if self.state is not was:
            _log.warning("%s: %s", self.config.url, reason or "it answers")


async def _close(client: httpx.AsyncClient | None) -> None:
    """What is inside ends with an error."""
    if client is not None:
        with contextlib.suppress(httpx.TransportError):
            await client.aclose()
