"""The server's side of promotions that jobs ask for: one after the other, each to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from draftsmith.server.deployments.deployment import Busy, Deployment
from draftsmith.server.deployments.event import Event
from draftsmith.server.deployments.exchange import NotReady
from draftsmith.server.deployments.requests import PromotionRequest, PromotionRequests, State

_log = logging.getLogger("draftsmith.deployments")
_POLL_S = 1.0
_BEATS = 4
"""Renewals in the time of a lease."""
_MAX_TRIES = 3
_LOOK_BACK = 100
_STATES = {"done": State.DONE, "rolled_back": State.ROLLED_BACK, "failed": State.FAILED}


class Promoter:
    """Takes up what jobs ask of one deployment, while its engine answers."""

    def __init__(self, deployment: Deployment, requests: PromotionRequests) -> None:
        self._deployment, self._requests = deployment, requests
        self._task: asyncio.Task[None] | None = None

    def launch(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """A trial that is under way is left; the next server finds it interrupted."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                while await self.promote_next():
                    pass
            except SQLAlchemyError as error:
                _log.warning("Promotions wait: the database does not answer: %s", error)
            await asyncio.sleep(_POLL_S)

    async def promote_next(self) -> bool:
        """Take up one request; whether there was one that could be tried."""
        if self._deployment.supervisor.client is None:
            return False
        request = await asyncio.to_thread(self._requests.take, self._deployment.name)
        if request is None:
            return False
        beats = asyncio.create_task(self._beat(request))
        try:
            ended = await self._try(request)
        except (Busy, NotReady):
            await asyncio.to_thread(self._requests.give_back, request)
            return False
        finally:
            beats.cancel()
        if not await asyncio.to_thread(self._requests.end, request, *ended):
            _log.error("%s was taken over while its draft was tried.", request.job_id)
        return True

    async def _try(self, request: PromotionRequest) -> tuple[State, str, dict[str, Any] | None]:
        """What became of it, also when an earlier life of this server has tried it.

        Raises:
            Busy, NotReady: it cannot be tried at the moment.
        """
        who = f"job {request.job_id}"
        events = await asyncio.to_thread(self._deployment.events, _LOOK_BACK)
        earlier = next((one for one in events if one.by == who), None)
        if earlier is not None and earlier.outcome in _STATES:
            return _ending(earlier)
        if request.draft == self._deployment.draft.version:
            return State.DONE, "It is served already.", None
        if request.tries > _MAX_TRIES:
            return State.FAILED, f"The server ended during each of {_MAX_TRIES} trials.", None
        try:
            return _ending(await self._deployment.promote(request.draft, request.min_share, who))
        except (Busy, NotReady):
            raise
        except ValueError as error:
            return State.FAILED, str(error), None

    async def _beat(self, request: PromotionRequest) -> None:
        while True:
            await asyncio.sleep(self._requests.lease_s / _BEATS)
            with contextlib.suppress(SQLAlchemyError):
                await asyncio.to_thread(self._requests.keep, request)


def _ending(event: Event) -> tuple[State, str, dict[str, Any] | None]:
    return _STATES[event.outcome], event.reason, event.public()
