"""What the routes share: settings, the engine's supervisor, metrics, and who is let in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import httpx
from fastapi import Request

from draftsmith.server.engine.supervisor import EngineState, Supervisor
from draftsmith.server.errors import ApiError
from draftsmith.server.metrics import Metrics
from draftsmith.server.settings import Settings


@dataclass
class Gateway:
    """The state of one application; lives at `app.state.gateway`."""

    settings: Settings
    supervisor: Supervisor
    draft_version: str | None
    """The draft's id in the registry's form, None without a draft or a manifest."""
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    in_flight: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def admit(self, model: str) -> httpx.AsyncClient:
        """The engine's client, for a request that may go to it now.

        Raises:
            ApiError: 404 for another model; 503 with Retry-After while the engine does not
                answer, the server drains or too much is in flight.
        """
        self.check_model(model)
        if self.draining:
            raise ApiError(
                503, "The server is shutting down.", code="shutting_down", retry_after_s=5
            )
        if self.in_flight > self.settings.max_in_flight:
            raise ApiError(503, "The server is busy.", code="overloaded", retry_after_s=1)
        client = self.supervisor.client
        if client is None:
            raise self.unavailable()
        return client

    def check_model(self, model: str) -> None:
        """Raises ApiError 404 unless `model` is the one that is served."""
        if model != self.settings.served_model_name:
            raise ApiError(
                404,
                f"The model '{model[:100]}' does not exist here; see /v1/models.",
                code="model_not_found",
                param="model",
            )

    def unavailable(self) -> ApiError:
        """503 that says what the engine is doing, without inner names or paths."""
        state = self.supervisor.state
        words = {
            EngineState.STARTING: "The engine is starting.",
            EngineState.FAILED: "The engine could not be started.",
            EngineState.STOPPED: "The server is shutting down.",
        }.get(state, "The engine is restarting.")
        code = "engine_" + (state if state is not EngineState.READY else EngineState.RESTARTING)
        return ApiError(503, words, code=code, retry_after_s=self.supervisor.retry_after_s)


def gateway_of(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway
