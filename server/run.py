"""Runs the application on a TCP port until a signal, then drains."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from draftsmith.server.app import create_app
from draftsmith.server.engine.interface import Engine, EngineState
from draftsmith.server.engine.remote import RemoteModel
from draftsmith.server.gateway import Gateway
from draftsmith.server.logs import log_as_json
from draftsmith.server.settings import ServerSettings, Settings
from draftsmith.server.telemetry import tracing_of_environment

_log = logging.getLogger("draftsmith.server")
_FLUSH_S = 2.0


def run_server(
    settings: ServerSettings,
    on_listening: Callable[[str], None] | None = None,
    models: Sequence[Settings | RemoteModel] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; `on_listening` gets the URL once the port is ours.

    `models`: what is served; None: the one that `settings` describe.

    Raises:
        ValueError: the models are missing or do not match, the port is taken, or the engine
            cannot be started; one sentence.
    """
    if settings.log_format == "json":
        log_as_json()
    app = create_app(settings, models, tracing_of_environment())
    listener = _listen(settings.host, settings.port)
    try:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        if on_listening is not None:
            on_listening(f"http://{host}:{listener.getsockname()[1]}")
        DrainingServer(app).run(sockets=[listener])
    finally:
        listener.close()
    for engine in app.state.gateway.engines:
        if engine.state is EngineState.FAILED:
            raise ValueError(engine.reason)


class DrainingServer(uvicorn.Server):
    """uvicorn, but the first signal lets running requests end while new ones get 503.

    uvicorn by itself closes the port at the first signal, so that a load balancer sees
    connection errors instead of a server that is not ready. A second signal stops at once.
    """

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            log_config=None,  # its loggers speak in our form
            access_log=False,
            timeout_graceful_shutdown=5,
            lifespan="on",
        )
        super().__init__(config)
        self.gateway: Gateway = app.state.gateway
        self._drain_task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._fail_tasks = [
            asyncio.create_task(self._exit_when_failed(one)) for one in self.gateway.engines
        ]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal; a repeated signal while draining exits at once."""
        if self.gateway.draining or self._loop is None:
            self.should_exit = True
            return
        self.gateway.draining = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._drain_task = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        timeout_s = self.gateway.settings.drain_timeout_s
        _log.warning("Draining %d requests, at most %.0f s.", self.gateway.underway, timeout_s)
        await self._until_idle(timeout_s)
        # Ends what still streams: its clients get an error event, not a cut connection.
        await asyncio.gather(*(one.stop() for one in self.gateway.engines))
        await self._until_idle(_FLUSH_S)
        self.should_exit = True

    async def _until_idle(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while self.gateway.underway and loop.time() < end and not self.should_exit:
            await asyncio.sleep(0.05)

    async def _exit_when_failed(self, engine: Engine) -> None:
        await engine.failed.wait()
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, made before the engine so that a taken port costs no half minute.

    Raises:
        ValueError: the address cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(
            f"'{host}' is not an address of this machine: {error.strerror}."
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Listening already here: the URL that is printed next works, and two servers that
        # start at the same time cannot both believe that the port is theirs.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"Port {port} on {host} cannot be used ({error.strerror}): choose another with --port."
        ) from error
    return listener
