"""What the routes share: settings, the models that are served, metrics, and who is let in."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError

from draftsmith.server.admission import Admission
from draftsmith.server.batches.store import BatchStore
from draftsmith.server.engine.interface import Engine, EngineState
from draftsmith.server.errors import ApiError
from draftsmith.server.files.store import FileStore
from draftsmith.server.jobs.store import JobStore
from draftsmith.server.keys import ApiKey, KeyStore
from draftsmith.server.metrics import EnginePage, Metrics, merged_text
from draftsmith.server.served import Served
from draftsmith.server.settings import ServerSettings
from draftsmith.server.telemetry import Trace, Tracing
from draftsmith.server.traffic.log import TrafficLog

_log = logging.getLogger("draftsmith.server")
_METRICS_TIMEOUT_S = 5.0


@dataclass
class Gateway:
    """The state of one application; lives at `app.state.gateway`."""

    settings: ServerSettings
    models: dict[str, Served]
    """By name; the first is what jobs teach with unless they say otherwise."""
    keys: KeyStore
    admission: Admission
    files: FileStore
    jobs: JobStore
    batches: BatchStore
    metrics: Metrics = field(default_factory=Metrics)
    traffic: TrafficLog | None = None
    """None where no answers are kept."""
    tracing: Tracing | None = None
    """None where no traces are wanted."""
    draining: bool = False
    in_flight: int = 0

    @property
    def underway(self) -> int:
        """Requests that will end by themselves: lines of batches may wait for hours."""
        return self.in_flight - self.admission.held_back

    @property
    def first(self) -> Served:
        return next(iter(self.models.values()))

    @property
    def engines(self) -> list[Engine]:
        return [engine for model in self.models.values() for engine in model.engines]

    def check_open(self) -> None:
        """Raises ApiError 503 while the server drains."""
        if self.draining:
            raise ApiError(
                503, "The server is shutting down.", code="shutting_down", retry_after_s=5
            )

    def client_of(self, engine: Engine) -> httpx.AsyncClient:
        """The engine's client. Raises ApiError 503, with Retry-After, while it does not answer."""
        if engine.client is None:
            raise self.unavailable(engine)
        return engine.client

    def model(self, name: str) -> Served:
        """The model that is called `name`. Raises ApiError 404 when none is."""
        if name not in self.models:
            raise ApiError(
                404,
                f"The model '{name[:100]}' does not exist here; see /v1/models.",
                code="model_not_found",
                param="model",
            )
        return self.models[name]

    def unavailable(self, engine: Engine) -> ApiError:
        """503 that says what the engine is doing, without inner names or paths."""
        state = engine.state
        words = {
            EngineState.STARTING: "The engine is starting.",
            EngineState.FAILED: "The engine could not be started.",
            EngineState.SUSPENDED: "The engine makes room for a training job.",
            EngineState.STOPPED: "The server is shutting down.",
        }.get(state, "The engine is restarting.")
        code = "engine_" + (state if state is not EngineState.READY else EngineState.RESTARTING)
        return ApiError(503, words, code=code, retry_after_s=engine.retry_after_s)

    async def metrics_text(self) -> str:
        """The gateway's metrics and those of all engines, as one text in Prometheus' format."""
        metrics = self.metrics
        metrics.in_flight.set(self.in_flight)
        metrics.waiting.set(self.admission.waiting)
        metrics.engine_restarts.set(sum(one.restarts for one in self.engines))
        for model in self.models.values():
            for name, engine in (("speculative", model.engine), ("plain", model.plain)):
                if engine is not None and (report := engine.step_report()) is not None:
                    metrics.show_steps(model.name, name, report)
        try:
            metrics.show_queue(await asyncio.to_thread(self.jobs.figures))
        except SQLAlchemyError as error:  # what the engines do must be seen all the same
            _log.warning("The queue's figures are old: %s", error)
        sides = [(model, one) for model in self.models.values() for one in model.engines]
        texts = await asyncio.gather(*(page_of(engine) for _, engine in sides))
        metrics.engine_up.set(None not in texts)
        pages = [
            EnginePage(model.name, model.role_of(engine), text)
            for (model, engine), text in zip(sides, texts, strict=True)
            if text is not None
        ]
        return merged_text(metrics.text(), pages)


async def page_of(engine: Engine) -> str | None:
    """The engine's own metrics, empty where it shows none; None while it does not answer."""
    if engine.client is None:
        return None
    try:
        async with asyncio.timeout(_METRICS_TIMEOUT_S):
            answer = await engine.client.get("/metrics")
    except (TimeoutError, httpx.TransportError):
        return None
    return answer.text if answer.status_code == 200 else ""


def gateway_of(request: Request) -> Gateway:
    gateway = request.app.state.gateway
    assert isinstance(gateway, Gateway)
    return gateway


def key_of(request: Request) -> ApiKey | None:
    """The key that the request came with; None where the server asks for none."""
    key: ApiKey | None = request.scope["state"].get("api_key")
    return key


def trace_of(request: Request) -> Trace | None:
    """The span of the request, where traces are wanted."""
    trace: Trace | None = request.scope["state"].get("trace")
    return trace


def account_of(request: Request) -> dict[str, Any]:
    """What the request's line in the log will say; see `logs.py`."""
    account: dict[str, Any] = request.scope["state"]["account"]
    return account


def is_background(request: Request) -> bool:
    """Whether the request is a line of a batch, which goes behind all others."""
    return bool(request.scope["state"].get("background"))
