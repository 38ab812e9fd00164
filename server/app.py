"""The application: routes and errors around one supervised engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from draftsmith.server import system
from draftsmith.server.engine.supervisor import Supervisor
from draftsmith.server.errors import install_error_handlers
from draftsmith.server.gateway import Gateway
from draftsmith.server.home import Home
from draftsmith.server.middleware import Gate
from draftsmith.server.openai import routes
from draftsmith.server.pair import check_pair
from draftsmith.server.registry import version_id
from draftsmith.server.settings import Settings

ENGINE_LOG = "engine.log"


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application; its engine starts in the background when the server starts it.

    Raises:
        ValueError: target or draft are missing, or do not belong together.
    """
    manifest = check_pair(settings.target, settings.draft)
    supervisor = Supervisor(
        settings.engine_config(), Home(settings.home).logs / ENGINE_LOG, settings.start_timeout_s
    )
    gateway = Gateway(
        settings=settings,
        supervisor=supervisor,
        draft_version=None if manifest is None else version_id(manifest),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        supervisor.launch()
        try:
            yield
        finally:
            await supervisor.stop()

    # The interactive pages load scripts from elsewhere; /openapi.json needs nothing.
    app = FastAPI(title="Draftsmith", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.gateway = gateway
    install_error_handlers(app)
    app.add_middleware(Gate, gateway=gateway)
    app.include_router(system.router)
    app.include_router(routes.router)
    return app
