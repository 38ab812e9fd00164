"""Answers the lines of batches beside the traffic, and survives any end of the server.

The runner lives in the gateway's event loop. Each batch has a few workers that take line after
line through the application, in the background (see `admission.py`); what is answered is in the
database before the next line begins. After a crash the next server claims the batch once the
lease has run out, and goes on with the lines that have no answer yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from draftsmith.server.batches.batch import Batch, Status
from draftsmith.server.batches.output import answer_of, requests_in, write_files
from draftsmith.server.batches.queue import BatchQueue, Claim, LeaseLost
from draftsmith.server.batches.replay import Reply, replay
from draftsmith.server.database.connect import Database
from draftsmith.server.gateway import Gateway
from draftsmith.server.keys import ApiKey

_log = logging.getLogger("draftsmith.batches")
_LEASE_S = 15.0
_POLL_S = 1.0
_MAX_AT_ONCE = 32
"""Batches that share the places of the background; more wait their turn."""
_MAX_LOSSES = 3
"""A line in whose company the engine died this often is answered with the error."""
_AFTER_A_LOSS_S = 3.0
"""By then the engine that died is known to be gone, or another answers."""
_BUSY = ("overloaded", "rate_limit_exceeded")
"""Of a server elsewhere: lines of batches meet no such bounds of ours, they wait."""
_MAX_ERRORS = 20
_Line = tuple[int, str, str, dict[str, Any]]


class _KeyRevoked(Exception):
    """The key that made the batch is gone: nobody may use the engine in its name."""


class BatchRunner:
    """Launch it with the server, stop it before the database closes."""

    def __init__(self, app: ASGIApp, gateway: Gateway, database: Database) -> None:
        self._app, self._gateway, self._database = app, gateway, database
        self._queue = BatchQueue(database, _LEASE_S)
        self._running: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def launch(self) -> None:
        assert self._task is None, "the runner is already launched"
        self._task = asyncio.create_task(self._claim_forever())

    async def stop(self) -> None:
        """Give all batches back; answers that are under way are not waited for."""
        tasks = {*self._running, *({self._task} if self._task else ())}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _claim_forever(self) -> None:
        while True:
            try:
                claim = None
                if len(self._running) < _MAX_AT_ONCE and not self._gateway.draining:
                    claim = await asyncio.to_thread(self._queue.claim)
            except SQLAlchemyError as error:
                _log.warning("The database does not answer: %s", error)
                claim = None
            if claim is None:
                await asyncio.sleep(_POLL_S)
                continue
            task = asyncio.create_task(self._run(claim))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, claim: Claim) -> None:
        """One batch, as far as it comes; whatever ends this, the batch is not lost."""
        batch = claim.batch
        beat = asyncio.create_task(self._keep(claim))
        try:
            if batch.status is Status.VALIDATING:
                if errors := await asyncio.to_thread(self._complaints, batch):
                    await asyncio.to_thread(self._queue.fail, claim, errors)
                    return
                batch = await asyncio.to_thread(self._queue.begin, claim)
            ending = await self._answer_lines(claim, batch)
            if ending is None:
                await asyncio.to_thread(self._queue.release, claim)
                return
            await asyncio.to_thread(self._queue.finalize, claim)
            files = self._gateway.files
            await asyncio.to_thread(write_files, self._database, files, self._queue, claim, ending)
            _log.info("%s: %s", batch.id, ending)
        except LeaseLost:
            _log.warning("%s: another server has it now.", batch.id)
        except SQLAlchemyError as error:
            _log.warning("%s: the database does not answer: %s", batch.id, error)
        except OSError as error:
            _log.error("%s: its files cannot be used: %s", batch.id, error)
        except asyncio.CancelledError:
            with contextlib.suppress(SQLAlchemyError):
                self._queue.release(claim)  # the next server need not wait for the lease's end
            raise
        finally:
            beat.cancel()

    async def _keep(self, claim: Claim) -> None:
        """Renew the lease as long as the batch is ours: to check or to write a long file takes."""
        while True:
            await asyncio.sleep(_LEASE_S / 4)
            try:
                await asyncio.to_thread(self._queue.renew, claim)
            except LeaseLost:
                return  # or it has ended
            except SQLAlchemyError as error:
                _log.warning("%s: its lease cannot be renewed now: %s", claim.batch.id, error)

    def _complaints(self, batch: Batch) -> list[dict[str, Any]]:
        """Why the batch cannot be run as a whole, in OpenAI's form."""
        files, found = self._gateway.files, []
        for number, _, url, _ in requests_in(files.path(files.get(batch.input_file, None))):
            if url != batch.endpoint:
                message = f"'url' is {url}, and the batch is for {batch.endpoint}."
                complaint = {"code": "mismatched_url", "message": message}
                found.append(complaint | {"line": number, "param": "url"})
            if len(found) == _MAX_ERRORS:
                break
        return found

    async def _answer_lines(self, claim: Claim, batch: Batch) -> Status | None:
        """Until all lines are answered, or the batch has to end; None: the server drains."""
        if batch.status is Status.FINALIZING:  # a server died while it wrote the files
            answered = batch.completed + batch.failed == batch.total
            return Status.COMPLETED if answered else Status.EXPIRED
        done = await asyncio.to_thread(self._queue.answered, claim)
        files = self._gateway.files
        source = files.path(files.get(batch.input_file, None))
        lines = await asyncio.to_thread(_unanswered, source, done)
        count = max(1, self._gateway.admission.background)
        workers = [asyncio.create_task(self._work(claim, lines)) for _ in range(count)]
        watch = asyncio.create_task(self._watch(claim))
        try:
            all_done = asyncio.gather(*workers)
            ends: list[asyncio.Future[Any]] = [all_done, watch]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                return watch.result()
            all_done.result()  # raises what a worker has raised
            return None if self._gateway.draining else Status.COMPLETED
        except _KeyRevoked:
            return Status.CANCELLED
        finally:
            for task in (*workers, watch):
                task.cancel()
            await asyncio.wait({*workers, watch})

    async def _watch(self, claim: Claim) -> Status:
        """Keep the lease; returns when the batch must end before all is answered."""
        while True:
            batch, late = await asyncio.to_thread(self._queue.renew, claim)
            if batch.status is Status.CANCELLING:
                return Status.CANCELLED
            if late:
                return Status.EXPIRED
            await asyncio.sleep(_POLL_S)

    async def _work(self, claim: Claim, lines: Iterator[_Line]) -> None:
        """Take line after line until there is none, or the server drains."""
        while not self._gateway.draining:
            line = next(lines, None)
            if line is None:
                return
            number, custom_id, url, body = line
            reply = await self._reply(claim.batch, number, url, body)
            if reply is None:
                return
            answer = answer_of(claim.batch, number, custom_id, reply)
            await asyncio.to_thread(self._queue.record, claim, answer)

    async def _reply(
        self, batch: Batch, number: int, url: str, body: dict[str, Any]
    ) -> Reply | None:
        """The application's answer to one line; None when the server drains meanwhile."""
        losses = 0
        while True:
            if not await self._until(lambda: self._answers(body.get("model"))):
                return None
            reply = await replay(self._app, url, body, self._key(batch), f"{batch.id}:{number}")
            if reply.status not in (429, 503):
                return reply
            if self._gateway.draining:
                return None
            if reply.error_code in _BUSY:
                await asyncio.sleep(int(reply.headers["retry-after"]))
                continue
            losses += 1
            if losses == _MAX_LOSSES:
                return reply
            await asyncio.sleep(_AFTER_A_LOSS_S)

    def _answers(self, name: Any) -> bool:
        """Whether the model's engines are up; a model that does not exist has an answer too."""
        model = self._gateway.models.get(name) if isinstance(name, str) else None
        return model is None or all(one.client is not None for one in model.engines)

    def _key(self, batch: Batch) -> ApiKey | None:
        """The key that made the batch; None where the server asked for none."""
        key = self._gateway.keys.named(batch.owner) if batch.owner else None
        if batch.owner and key is None:
            raise _KeyRevoked
        return key

    async def _until(self, condition: Callable[[], bool]) -> bool:
        """Whether it came true before the server drains."""
        while not self._gateway.draining:
            if condition():
                return True
            await asyncio.sleep(_POLL_S)
        return False


def _unanswered(source: Path, done: set[int]) -> Iterator[_Line]:
    """The lines of `source` from the first that is not `done`, without those that are."""
    lines = (one for one in requests_in(source) if one[0] not in done)
    first = next(lines, None)  # it may lie behind many, whose reading takes
    return iter(()) if first is None else itertools.chain([first], lines)
