"""A job's events as server-sent events, until the job is over and all are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from draftsmith.server.gateway import Gateway
from draftsmith.server.jobs.job import Job
from draftsmith.server.jobs.store import JobStore
from draftsmith.server.jobs.view import event_view, job_view

_POLL_S = 0.5
_KEEP_ALIVE_S = 15.0


async def follow(gateway: Gateway, store: JobStore, job: Job, seq: int) -> AsyncIterator[bytes]:
    """Events after number `seq`; each carries its number as the stream's id. The last one is
    called `done` and holds the job. Ends early when the server drains: clients come back with
    `Last-Event-ID`."""
    quiet = 0.0
    while not gateway.draining:
        # The state is read first: nothing is appended to a job that is over.
        now = await run_in_threadpool(store.get, job.id, None)
        found, more = await run_in_threadpool(store.events, job, after=seq)
        for event in found:
            seq = event.seq
            yield _event(event.type, seq, event_view(job, event))
        if now.over and not more:
            yield _event("done", seq, job_view(now))
            return
        if found:
            quiet = 0.0
        if not more:
            await asyncio.sleep(_POLL_S)
            quiet += _POLL_S
        if quiet >= _KEEP_ALIVE_S:
            quiet = 0.0
            yield b": keep-alive\n\n"


def _event(name: str, seq: int, data: object) -> bytes:
    return f"event: {name}\nid: {seq}\ndata: {json.dumps(data)}\n\n".encode()
