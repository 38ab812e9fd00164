"""One deployment: a target behind a name, and the drafts that come and go in its live engine.

A promotion tries the new draft on the canary prompts, and takes it back when the target accepts
less of it than of the draft before. One of the same shape is tried in the live engine, and no
request fails. One of another shape needs another engine: beside the live one, which serves until
the new one takes over, or after it, with a pause.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import httpx

from draftsmith.server.deployments.aliases import Aliases
from draftsmith.server.deployments.canary import CanaryFailed, load_canary, run_canary
from draftsmith.server.deployments.event import CanaryFigures, DraftRef, Event
from draftsmith.server.deployments.exchange import SWAP_ERRORS, Exchange, NotReady
from draftsmith.server.deployments.journal import Journal
from draftsmith.server.deployments.room import available_bytes, choose_way
from draftsmith.server.deployments.second import second_engine
from draftsmith.server.deployments.verdict import compared, objection
from draftsmith.server.engine.process import EngineError
from draftsmith.server.engine.supervisor import Supervisor
from draftsmith.server.engine.weights import WeightsRefused, model_shape
from draftsmith.server.home import Home
from draftsmith.server.metrics import Metrics
from draftsmith.server.pair import check_pair
from draftsmith.server.registry import Conflict, Name, Registry
from draftsmith.server.settings import Settings

_log = logging.getLogger("draftsmith.deployments")


class Busy(ValueError):
    """Another change of the deployment is under way."""


class Deployment:
    """The draft side of one served target. All methods belong to one event loop."""

    def __init__(
        self,
        settings: Settings,
        configured: DraftRef,
        supervisor: Supervisor,
        metrics: Metrics,
        in_flight: Callable[[], int],
    ) -> None:
        """Take up the draft that was promoted last, if the configured one is that of before.

        Args:
            configured: the draft of the settings, which fits the target.
            in_flight: how many requests are being answered.

        Raises:
            ValueError: the draft that was promoted last is gone or does not match, or the canary
                prompts cannot be read.
        """
        self.name = settings.served_model_name
        self.settings = settings
        self.supervisor = supervisor
        self._configured = configured
        self._metrics = metrics
        self._exchange = Exchange(supervisor, settings.drain_timeout_s, in_flight)
        home = Home(settings.home)
        self._registry = Registry(home)
        self._journal = Journal(home.deployments)
        self.aliases = Aliases(self._registry, self.name)
        self._questions = load_canary(settings.canary_prompts)
        self._changing = asyncio.Lock()
        self.drafts = self._journal.open(self.name, configured)
        """Lowest first: what a rollback goes back to lies below what is served."""
        if self.draft != configured:
            check_pair(settings.target, Path(self.draft.folder))
            _log.warning("Serving %s, which was promoted here.", self.draft.folder)
        self._exchange.keep_over_restarts(self.draft)
        metrics.show_draft(self.name, self.draft.version)

    @property
    def draft(self) -> DraftRef:
        """The one that is served."""
        return self.drafts[-1]

    def events(self, limit: int) -> list[Event]:
        """What happened to the deployment, newest first."""
        return self._journal.events(self.name, limit)

    async def promote(self, name_or_id: str, min_share: float, by: str | None) -> Event:
        """Serve the registered draft `name_or_id`, unless the canary prompts speak against it.

        Args:
            min_share: of the accepted tokens a target call of the draft before, which the new one
                must reach.
            by: who asked for it.

        Raises:
            Busy: another change is under way.
            NotReady: the engine does not answer.
            ValueError: no such draft, it does not belong to the target, or there is no room for
                the second engine that is asked for; nothing was changed.
        """
        async with self._alone():
            draft = await asyncio.to_thread(self._checked, name_or_id)
            assert draft.version is not None, "registered drafts have a version"
            if draft.version == self.draft.version:
                raise ValueError(f"'{name_or_id}' is what is served already.")
            try:
                with self.aliases.candidate(draft.version):
                    return await self._try(await self._begin("promote", draft, by), min_share)
            except Conflict as error:
                raise Busy(str(error)) from error

    async def rollback(self, by: str | None) -> Event:
        """Serve the draft of before the last promotion again, at once and without a trial.

        Raises:
            Busy, NotReady: as `promote`.
            ValueError: there is none, its folder is gone, or there is no room as in `promote`.
        """
        async with self._alone():
            if len(self.drafts) < 2:
                raise ValueError("There is nothing to roll back to: no draft was promoted here.")
            draft = self.drafts[-2]
            await asyncio.to_thread(check_pair, self.settings.target, Path(draft.folder))
            event = await self._begin("rollback", draft, by)
            seen = self.aliases.get("production")
            if event.way == "beside":
                return await self._change_beside(event, seen)
            try:
                event = await self._exchange.swap(event)
                self.aliases.set_production(draft, seen)
            except (*SWAP_ERRORS, Conflict) as error:
                await self._exchange.swap_back(event)
                return await self._end(event, "failed", str(error))
            return await self._end(event, "done")

    @asynccontextmanager
    async def unchanged(self) -> AsyncIterator[None]:
        """No change begins in a `with`; one that is under way is waited for."""
        async with self._changing:
            yield

    def _alone(self) -> asyncio.Lock:
        if self._changing.locked():
            raise Busy("Another draft is being promoted or rolled back: wait for it to end.")
        return self._changing

    def _checked(self, name_or_id: str) -> DraftRef:
        """Raises ValueError unless it is registered, unchanged, and made for the target."""
        version = self._registry.resolve(name_or_id)
        if version.manifest.kind != "draft":
            raise ValueError(f"'{name_or_id}' is a {version.manifest.kind}, not a draft.")
        check_pair(self.settings.target, version.folder)
        return DraftRef(version=version.id, folder=str(version.folder))

    async def _begin(
        self, action: Literal["promote", "rollback"], draft: DraftRef, by: str | None
    ) -> Event:
        self._exchange.client()  # an engine that does not answer is not asked to change
        way, why = await asyncio.to_thread(self._way_to, draft)
        event = Event(
            deployment=self.name,
            action=action,
            way=way,
            why=why,
            previous=self.draft,
            draft=draft,
            by=by,
            began_at=int(time.time()),
        )
        return await asyncio.to_thread(self._journal.begin, event)

    def _way_to(self, draft: DraftRef) -> tuple[Literal["exchange", "beside", "restart"], str]:
        """Raises ValueError where the settings name a way that is closed."""
        ours, theirs = (model_shape(Path(one.folder)) for one in (self.draft, draft))
        difference = ours.difference(theirs)
        if difference is None:
            return "exchange", "Both drafts have the same shape."
        config = replace(self.supervisor.config, draft=Path(draft.folder))
        way, why = choose_way(self.settings.replace_engine, config, available_bytes())
        return way, f"The draft has another shape: {difference}. {why}"

    async def _try(self, event: Event, min_share: float) -> Event:
        """Measure the draft of before, swap, measure the new one, and decide."""
        seen = self.aliases.get("production")
        try:
            before, answers = await self._canary(self._exchange.client())
        except (CanaryFailed, NotReady) as error:
            return await self._end(event, "failed", f"Nothing was changed: {error}.")
        event = event.model_copy(update={"before": before})
        if event.way == "beside":
            return await self._change_beside(event, seen, answers, min_share)
        try:
            event = await self._exchange.swap(event)
            starts = self.supervisor.starts
            after, others = await self._canary(self._exchange.client())
        except WeightsRefused as error:  # before anything was changed
            return await self._end(event, "failed", str(error))
        except (*SWAP_ERRORS, CanaryFailed) as error:
            await self._exchange.swap_back(event)
            return await self._end(event, "failed", str(error))
        event = compared(event, after, answers, others)
        if (verdict := objection(event, min_share)) is not None:
            await self._exchange.swap_back(event)
            return await self._end(event, "rolled_back", verdict)
        if self.supervisor.starts != starts:
            await self._exchange.swap_back(event)
            return await self._end(event, "failed", "The engine restarted during the trial.")
        try:
            self.aliases.set_production(event.draft, seen)
        except Conflict as error:
            await self._exchange.swap_back(event)
            return await self._end(event, "failed", str(error))
        return await self._end(event, "done")

    async def _change_beside(
        self,
        event: Event,
        seen: Name | None,
        answers: list[str] | None = None,
        min_share: float = 0,
    ) -> Event:
        """Start an engine with `event.draft`, try it, and let it take over from the live one.

        The live one serves until then, whatever becomes of the other.

        Args:
            answers: what the live one said to the canary prompts; None: no trial.
        """
        verdict = None
        try:
            async with second_engine(self.supervisor, Path(event.draft.folder)) as second:
                if answers is not None:
                    after, others = await self._canary(second.client)
                    event = compared(event, after, answers, others)
                    verdict = objection(event, min_share)
                if verdict is None:
                    second.check()
                    self.aliases.set_production(event.draft, seen)
                    began = time.perf_counter()
                    retired = second.take_over(self.settings.drain_timeout_s)
                    swap_ms = round(1000 * (time.perf_counter() - began), 1)
        except (EngineError, CanaryFailed, Conflict) as error:
            return await self._end(event, "failed", str(error))
        if verdict is not None:
            return await self._end(event, "rolled_back", verdict)
        event = await self._end(event.model_copy(update={"swap_ms": swap_ms}), "done")
        await asyncio.shield(retired)  # there is no room for a third engine
        return event

    async def _canary(self, client: httpx.AsyncClient) -> tuple[CanaryFigures, list[str]]:
        lookahead = self.settings.num_speculative_tokens
        return await run_canary(client, self.name, lookahead, self._questions)

    async def _end(
        self, event: Event, outcome: Literal["done", "rolled_back", "failed"], reason: str = ""
    ) -> Event:
        """Write down what became of `event`, and keep its draft if it is to stay."""
        if outcome == "done":
            self.drafts = (
                self.drafts[:-1] if event.action == "rollback" else [*self.drafts, event.draft]
            )
            self._exchange.keep_over_restarts(self.draft)
            self._metrics.show_draft(self.name, self.draft.version)
        event = event.model_copy(
            update={"outcome": outcome, "reason": reason, "ended_at": int(time.time())}
        )
        await asyncio.to_thread(self._journal.end, event, self._configured, self.drafts)
        self._metrics.draft_changes.labels(event.action, outcome).inc()
        _log.warning("%s of %s: %s. %s", event.action, event.draft.folder, outcome, reason)
        return event
