"""Which of two engines answers at this load: the one with the draft, or the plain one.

Even a lookahead of 0 is not free: on a GPU the draft still reads every token, so that it can be
asked again, and where it rests a step still passes through code that could draft. Where the plain
engine gives more tokens a second, traffic goes there, all but short trials that keep the other
engine's figures fresh.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from draftsmith.server.speculation.report import StepReport

_MARGIN = 0.03
_TRIAL_EVERY_S = 60.0
_TRIAL_S = 3.0
_READ_EVERY_S = 1.0

ReadReport = Callable[[], StepReport | None]


@dataclass
class EngineChoice:
    """Compares goodput at the present load. Belongs to one event loop."""

    speculative: ReadReport
    plain: ReadReport
    clock: Callable[[], float] = time.monotonic
    _reports: tuple[StepReport | None, StepReport | None] = (None, None)
    _read_at: float | None = field(default=None, init=False)

    def prefers_plain(self, num_running: int) -> bool:
        """Whether a new request is better off without a draft, beside `num_running` others."""
        now = self.clock()
        if self._read_at is None or now - self._read_at >= _READ_EVERY_S:
            self._reports, self._read_at = (self.speculative(), self.plain()), now
        if self._reports[0] is None:  # nothing is known of the draft: as configured
            return False
        tries_the_other = now % _TRIAL_EVERY_S < _TRIAL_S
        return plain_is_faster(*self._reports, num_running + 1) != tries_the_other


def plain_is_faster(
    speculative: StepReport | None, plain: StepReport | None, num_decoding: int
) -> bool:
    """By measured goodput; where a plain step was not timed yet, when no drafting is best."""
    if speculative is None:
        return False
    with_draft = speculative.goodput(num_decoding)
    if not with_draft:
        return False
    without = plain.goodput(num_decoding).get(0) if plain is not None else None
    if without is None:
        return max(with_draft, key=lambda lookahead: with_draft[lookahead]) == 0
    return without > (1 + _MARGIN) * max(with_draft.values())
