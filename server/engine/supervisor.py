"""Keeps one engine alive beside the gateway's event loop, and says how it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path

import httpx

from draftsmith.server.admission import Load
from draftsmith.server.engine.client import open_client
from draftsmith.server.engine.command import EngineConfig
from draftsmith.server.engine.handover import (
    Replacement,
    ReplaceRequested,
    StopRequested,
    Superseded,
    SuspendRequested,
    retire,
)
from draftsmith.server.engine.interface import Engine, EngineState
from draftsmith.server.engine.process import EngineError, EngineProcess
from draftsmith.server.engine.stall import StallWatch
from draftsmith.server.speculation.report import StepReport

_log = logging.getLogger("draftsmith.engine")

_POLL_S = 0.25
_HEALTH_EVERY_S = 1.0
_MAX_BACKOFF_S = 30.0
_STEADY_S = 60.0
"""An engine that lived this long is restarted at once when it dies."""
_FIRST_BOOT_GUESS_S = 30.0
_SUSPENDED_RETRY_S = 60
_MAX_RETRY_AFTER_S = 120  # above it the openai client does not retry at all


class Supervisor:
    """Starts the engine, restarts it with growing pauses when it dies, stops it at the end.

    A first start that fails is final (`FAILED`): its cause is the configuration, and trying
    again would only hide it. All methods belong to one event loop.

    `config` is what the next start of the engine takes; what was exchanged in the live engine
    must be written there too, or a restart brings back what was before.

    An engine that somebody has started beside this one takes its place by `adopt`.
    """

    def __init__(
        self,
        config: EngineConfig,
        log_file: Path,
        start_timeout_s: float,
        stall_timeout_s: float = 120.0,
    ) -> None:
        """`stall_timeout_s`: what a trial request may take when the engine seems to hang."""
        self.config = config
        self.stall_timeout_s = stall_timeout_s
        self.load = Load()
        self.log_file = log_file
        self.start_timeout_s = start_timeout_s
        self.state = EngineState.STARTING
        self.health_path = "/health"
        self.reason = "the engine is starting"
        self.starts = 0
        """Engines that have answered so far."""
        self.restarts = 0
        """Of those, in place of one that died."""
        self.failed = asyncio.Event()
        """Set when the engine will not come; `reason` says why."""
        self._engine: EngineProcess | None = None
        self._client: httpx.AsyncClient | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._replacement: Replacement | None = None
        self._suspension: asyncio.Event | None = None
        """Set once the engine is gone that shall not run for a while."""
        self._adopted = False
        """`_engine` runs already and is not watched yet."""
        self._retired: EngineProcess | None = None
        self._retirement: asyncio.Task[None] | None = None
        self._suspended_for = ""
        self._boot_began = self._ready_at = time.monotonic()
        self._boot_s = _FIRST_BOOT_GUESS_S

    def launch(self, after: Engine | None = None) -> None:
        """Begin in the background, once the engine of `after` has started."""
        assert self._task is None, "the supervisor is already launched"
        self._task = asyncio.create_task(self._run(after))

    async def stop(self) -> None:
        """Stop the engine; returns when nothing of it is left. Harmless when repeated."""
        self._stopping = True
        if self._task is not None:
            await asyncio.wait({self._task})
        if self._retirement is not None:
            await asyncio.wait({self._retirement})
        if self.state is not EngineState.FAILED:
            self._set(EngineState.STOPPED, "the server is shutting down")

    @property
    def client(self) -> httpx.AsyncClient | None:
        """A pooled client of the engine while it is ready."""
        return self._client if self.state is EngineState.READY else None

    @property
    def stopping(self) -> bool:
        """Whether the server is shutting down: no engine may be started any more."""
        return self._stopping

    @property
    def spare_log(self) -> Path:
        """A log file, of two in turns, that the present engine does not write."""
        beside = self.log_file.with_stem(f"{self.log_file.stem}-beside")
        taken = self._engine is not None and self._engine.log_file == beside
        return self.log_file if taken else beside

    def step_report(self) -> StepReport | None:
        """What the engine's scheduler knows about its steps, None while there is no engine."""
        return None if self._engine is None else self._engine.step_report()

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which another try makes sense, at most 120."""
        if self.state is EngineState.SUSPENDED:
            return _SUSPENDED_RETRY_S
        left = self._boot_s - (time.monotonic() - self._boot_began)
        return max(1, min(_MAX_RETRY_AFTER_S, round(left)))

    def refuse(self, reason: str) -> None:
        """Give no client away from now on, until the engine has started again.

        Who has one keeps it: requests that are inside go on. Only before `replace`.
        """
        if not self._stopping:
            self._boot_began = time.monotonic()
            self._set(EngineState.RESTARTING, reason)

    async def replace(self, config: EngineConfig) -> None:
        """Stop the engine and start one with `config`; returns when that answers.

        Raises:
            EngineError: it does not start, and the engine of before is being started again; or
                the server is shutting down.
        """
        if self._stopping:
            raise EngineError("The server is shutting down.")
        assert self._replacement is None, "the engine is being replaced already"
        self._replacement = Replacement(config, self.config)
        try:
            await self._replacement.done
        finally:
            self._replacement = None

    def adopt(
        self, engine: EngineProcess, client: httpx.AsyncClient, drain_timeout_s: float
    ) -> asyncio.Task[None]:
        """Let `engine`, which answers on `client`, take every request from now on.

        The engine of before ends what is inside it, for at most `drain_timeout_s` seconds, and is
        stopped: the task that is returned ends with that.
        """
        assert not self._stopping, "the server is shutting down"
        before, its_client, its_load = self._engine, self._client, self.load
        self._engine, self._client, self._adopted = engine, client, True
        # Requests leave the load that they have entered, so that each engine's can be told apart.
        self.config, self.load = engine.config, Load()
        self.starts += 1
        self._boot_began = time.monotonic()
        self._set(EngineState.READY, "")
        if before is None or its_client is None:  # dead or not there yet: `_supervise` ends it
            return asyncio.create_task(asyncio.sleep(0))
        self._retired = before
        self._retirement = asyncio.create_task(
            retire(before, its_client, its_load, drain_timeout_s, lambda: self._stopping)
        )
        return self._retirement

    async def suspend(self, reason: str) -> None:
        """Stop the engine until `wake`; returns when nothing of it is left. Repeating is harmless.

        Before `launch` it keeps the engine from being started, and returns at once.
        """
        if self._suspension is None:
            self._suspension, self._suspended_for = asyncio.Event(), reason
        self._set(EngineState.SUSPENDED, reason)
        if self._task is not None:
            gone = asyncio.create_task(self._suspension.wait())
            await asyncio.wait({gone, self._task}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()

    def wake(self) -> None:
        """Let the engine start again."""
        self._suspension = None

    async def _run(self, after: Engine | None) -> None:
        try:
            await self._supervise(after)
        finally:
            if self._engine is not None:  # adopted in the last moment, perhaps
                await self._close_client()
                await asyncio.to_thread(self._engine.stop)
            if self._replacement is not None:
                self._replacement.fail(EngineError("The server is shutting down."))

    async def _supervise(self, after: Engine | None) -> None:
        while after is not None and after.client is None and not self._stopping:
            await asyncio.sleep(_POLL_S)
        pause = 0.0
        while not self._stopping:
            if not self._adopted:
                await self._stay_suspended()
            if self._stopping:
                return
            booted, self._adopted = self._adopted, False
            if not booted:
                self._engine = EngineProcess(self.config, self.log_file)
                self._boot_began = time.monotonic()
            engine = self._engine
            assert engine is not None
            try:
                if not booted:
                    await self._boot(engine)
                    self._boot_s = time.monotonic() - self._boot_began
                self._ready_at = time.monotonic()
                if self._replacement is not None and self._replacement.taken:
                    self._replacement.succeed()
                await self._watch(engine)
            except StopRequested:
                return
            except SuspendRequested:
                continue
            except ReplaceRequested as request:
                self.config = request.replacement.take()
                continue
            except Superseded:
                continue
            except (EngineError, OSError) as error:  # OSError: of its log, or no descriptor is left
                if self._engine is not engine:
                    continue
                self._set(EngineState.RESTARTING, str(error))
                if self._replacement is not None and self._replacement.taken:
                    self.config = self._replacement.before
                    self._replacement.fail(EngineError(str(error)))
                    continue
                if self.starts == 0:
                    self._set(EngineState.FAILED, str(error))
                    self.failed.set()
                    return
            finally:
                if self._engine is engine:
                    await self._close_client()
                if self._retired is not engine:
                    await asyncio.to_thread(engine.stop)
            self.restarts += 1
            if self._adopted:
                continue
            lived = time.monotonic() - self._ready_at
            pause = 0.0 if lived > _STEADY_S else min(_MAX_BACKOFF_S, max(1.0, 2 * pause))
            _log.error("%s Starting it again in %.0f s.", self.reason, pause)
            await self._sleep(pause)

    async def _stay_suspended(self) -> None:
        if self._suspension is None:
            return
        self._set(EngineState.SUSPENDED, self._suspended_for)
        self._suspension.set()
        while self._suspension is not None and not self._stopping:
            await asyncio.sleep(_POLL_S)
        self._set(EngineState.RESTARTING, "the engine is starting")

    async def _boot(self, engine: EngineProcess) -> None:
        def progress(stage: str, elapsed_s: float) -> None:
            if self._stopping:
                raise StopRequested
            if self._suspension is not None:
                raise SuspendRequested
            self._check_current(engine)
            self.reason = f"the engine is starting: {stage}, {elapsed_s:.0f} s so far"

        self.reason = "the engine is starting"
        await asyncio.to_thread(engine.start)
        await asyncio.to_thread(engine.wait_ready, self.start_timeout_s, progress)
        self._check_current(engine)
        self._client = client_of(engine)
        self.starts += 1
        self._set(EngineState.READY, "")

    async def _watch(self, engine: EngineProcess) -> None:
        """Return when the engine has to be replaced.

        vLLM's API server outlives its engine core by some seconds; its /health tells.
        """
        client = self._client
        assert client is not None
        stall = StallWatch(engine, client, self.load, self.stall_timeout_s)
        next_health = time.monotonic() + _HEALTH_EVERY_S
        while engine.running:
            if self._suspension is not None:
                raise SuspendRequested
            if self._replacement is not None and not self._replacement.taken:
                raise ReplaceRequested(self._replacement)
            await self._sleep(_POLL_S)
            self._check_current(engine)
            if time.monotonic() < next_health:
                continue
            next_health = time.monotonic() + _HEALTH_EVERY_S
            try:
                healthy = (await client.get("/health", timeout=2.0)).status_code == 200
            except httpx.TimeoutException:
                healthy = True  # busy, not dead; or it hangs
            except httpx.TransportError:
                healthy = False
            self._check_current(engine)
            if not healthy:
                break
            if stall.hangs():
                self._set(EngineState.RESTARTING, "The engine hung.")
                return
        self._check_current(engine)
        self._set(EngineState.RESTARTING, f"The engine died: {engine.last_words()}")

    def _check_current(self, engine: EngineProcess) -> None:
        """Raises Superseded where `adopt` has put another in the place of `engine`."""
        if self._engine is not engine:
            raise Superseded

    async def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and not self._adopted and time.monotonic() < end:
            await asyncio.sleep(min(_POLL_S, max(0.0, end - time.monotonic())))
        if self._stopping:
            raise StopRequested

    async def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(httpx.TransportError):
                await client.aclose()

    def _set(self, state: EngineState, reason: str) -> None:
        self.state, self.reason = state, reason


def client_of(engine: EngineProcess) -> httpx.AsyncClient:
    """A pooled client of an engine that answers. Close it."""
    return open_client("http://engine", uds=engine.socket)
