"""Watches a scheduler's steps: which of them are alike, what they took, what became of proposals.

A step's time is what passes from its beginning to the next one's. It counts only where the step
did nothing but decode, with the same lookahead for verifying and for drafting, and where the
engine did not wait for work after it. Steps in which the lookahead changes are told apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from draftsmith.server.speculation.controller import LookaheadController
from draftsmith.server.speculation.report import StepReport

_REPORT_EVERY_S = 1.0


class StepObserver:
    """Feeds a controller, and writes its report into `folder`. Belongs to one thread."""

    def __init__(
        self,
        controller: LookaheadController,
        folder: Path | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.controller = controller
        self.folder = folder
        self._clock = clock
        self._began = self._reported = clock()
        self._kind: tuple[int, int] | None = None
        self._changes_for: int | None = None
        """Requests of a step that decoded, but in which the lookahead changed."""

    def step_begins(self, *, busy: bool) -> None:
        """`busy`: requests of the step before are still there, so nothing was waited for."""
        now = self._clock()
        if self._kind is not None and busy:
            self.controller.observe_step(*self._kind, now - self._began)
        elif self._changes_for is not None and busy:
            self.controller.observe_change(self._changes_for, now - self._began)
        if self.folder is not None and now - self._reported >= _REPORT_EVERY_S:
            StepReport.of(self.controller).write(self.folder)
            self._reported = now
        self._began, self._kind, self._changes_for = now, None, None

    def step_scheduled(self, verified: Collection[int], drafted: int, *, decoding: bool) -> None:
        """What the step does.

        Args:
            verified: for each request, the proposed tokens that it verifies.
            drafted: tokens drafted for the step after it.
            decoding: whether no request reads its prompt.
        """
        if not decoding or not verified:
            return
        if set(verified) == {drafted}:
            self._kind = len(verified), drafted
        else:
            self._changes_for = len(verified)

    def step_ended(self, proposals: Iterable[tuple[int, int]]) -> None:
        """`proposals`: (proposed, accepted) of each request that verified any."""
        for proposed, accepted in proposals:
            self.controller.observe_proposal(proposed, accepted)
