"""The application: routes and errors around the engines of the models that are served."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from draftsmith.server import system
from draftsmith.server.admission import Admission
from draftsmith.server.arbiter import Arbiter
from draftsmith.server.batches import routes as batch_routes
from draftsmith.server.batches.runner import BatchRunner
from draftsmith.server.batches.store import BatchStore
from draftsmith.server.database.connect import open_database
from draftsmith.server.deployments import routes as deployment_routes
from draftsmith.server.deployments.promoter import Promoter
from draftsmith.server.deployments.requests import PromotionRequests
from draftsmith.server.device import Device
from draftsmith.server.engine.command import uses_cpu_wheel
from draftsmith.server.engine.interface import Engine
from draftsmith.server.engine.remote import RemoteModel
from draftsmith.server.engine.supervisor import Supervisor
from draftsmith.server.errors import install_error_handlers
from draftsmith.server.files import routes as file_routes
from draftsmith.server.files.store import FileStore
from draftsmith.server.gateway import Gateway
from draftsmith.server.home import Home
from draftsmith.server.jobs import facade
from draftsmith.server.jobs import routes as job_routes
from draftsmith.server.jobs.child import WorkerChild
from draftsmith.server.jobs.store import JobStore
from draftsmith.server.keys import KeyStore, settings_key
from draftsmith.server.metrics import Metrics
from draftsmith.server.middleware import Gate
from draftsmith.server.openai import routes
from draftsmith.server.served import Served, serve_model
from draftsmith.server.settings import ServerSettings, Settings
from draftsmith.server.telemetry import Tracing
from draftsmith.server.traffic.log import TrafficLog, load_redaction

ENGINE_LOG = "engine"


def create_app(
    settings: ServerSettings,
    models: Sequence[Settings | RemoteModel] | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The ASGI application; its engines start in the background when the server starts it.

    Args:
        models: what is served; None: the one that `settings` describe.
        tracing: what sends spans; it is closed with the application.

    Raises:
        ValueError: target or draft are missing or do not belong together, the file of keys is
            damaged, or the database cannot be used.
    """
    if models is None:
        assert isinstance(settings, Settings), "there is no model"
        models = [settings]
    home, metrics = Home(settings.home), Metrics()
    served = [
        serve_model(model, metrics, _log_name(number, model)) for number, model in enumerate(models)
    ]
    secret, url = settings.api_key, settings.database_url
    database = open_database(home, url.get_secret_value() if url else None)
    gateway = Gateway(
        settings=settings,
        models={one.name: one for one in served},
        metrics=metrics,
        traffic=_traffic_log(settings, home),
        keys=KeyStore(home.keys, [settings_key(secret.get_secret_value())] if secret else []),
        admission=Admission(
            settings.max_in_flight,
            settings.max_queued,
            settings.max_queue_s,
            background=settings.max_batch_in_flight,
        ),
        files=FileStore(database, home),
        jobs=JobStore(database),
        batches=BatchStore(database),
        tracing=tracing,
    )
    worker = WorkerChild(settings) if settings.worker else None
    deployments = [one.deployment for one in served if one.deployment is not None]
    promoters = [Promoter(one, PromotionRequests(database)) for one in deployments]
    ours = [one for one in gateway.engines if isinstance(one, Supervisor)]
    arbiter = Arbiter(
        Device(home),
        ours,
        deployments,
        in_flight=lambda: sum(one.load.in_flight for one in ours),
        drain_timeout_s=settings.drain_timeout_s,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await arbiter.launch()
        if worker is not None:  # before the engines, whose start takes a core for a minute
            worker.launch()
        _launch(gateway.models.values())
        runner = BatchRunner(app, gateway, database)
        runner.launch()
        for promoter in promoters:
            promoter.launch()
        try:
            yield
        finally:
            await runner.stop()
            await asyncio.gather(*(promoter.stop() for promoter in promoters))
            stops = [one.stop() for one in gateway.engines]
            await asyncio.gather(*stops, *([worker.stop()] if worker else []))
            await arbiter.stop()
            database.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    # The interactive pages load scripts from elsewhere; /openapi.json needs nothing.
    app = FastAPI(title="Draftsmith", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.gateway = gateway
    install_error_handlers(app)
    app.add_middleware(Gate, gateway=gateway)
    app.include_router(system.router)
    app.include_router(deployment_routes.router)
    app.include_router(routes.router)
    for router in (file_routes.router, batch_routes.router, job_routes.router, facade.router):
        app.include_router(router)
    return app


def _launch(models: Iterable[Served]) -> None:
    """On a GPU one after the other: vLLM measures what memory is free while it starts."""
    before: Engine | None = None
    for model in models:
        for engine in model.engines:
            if model.remote is not None or uses_cpu_wheel():
                engine.launch()
            else:
                engine.launch(after=before)
                before = engine


def _log_name(number: int, model: Settings | RemoteModel) -> str:
    if number == 0:
        return ENGINE_LOG
    return f"{ENGINE_LOG}-{re.sub(r'[^A-Za-z0-9._-]', '_', model.served_model_name)}"


def _traffic_log(settings: ServerSettings, home: Home) -> TrafficLog | None:
    """Raises ValueError where the redaction cannot be loaded."""
    if settings.traffic == "off":
        return None
    redaction = settings.traffic_redaction
    return TrafficLog(
        home.traffic,
        max_bytes=settings.traffic_max_bytes,
        max_age_days=settings.traffic_max_age_days,
        redact=None if redaction is None else load_redaction(redaction),
    )
