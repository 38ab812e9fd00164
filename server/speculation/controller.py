"""The choice of the lookahead, step by step, from measured goodput.

Acceptance alone is the wrong signal: it hardly changes with load, while the right lookahead goes
from K down to 0. Goodput is tokens a second, tau(K) / t(B, K): what a call brings by what it takes
on this machine at this load. Whatever is chosen, the text is the same; only its speed changes.

Legend: B requests that decode, K lookahead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from draftsmith.server.speculation.acceptance import RecentAcceptance
from draftsmith.server.speculation.goodput import goodput
from draftsmith.server.speculation.step_times import StepTimes, bucket_of

_SETTLE_STEPS = 2
"""Steps after a change that belong to neither lookahead: proposals are verified a step later."""
_DECIDE_EVERY = 8
_TRIALS_OF_A_PROFILE = 64.0
_TRIAL_STEPS = 8
"""Steps of each kind before the first decision for a batch size, and of a trial later."""
_LEAST_STEPS, _ENOUGH_PROPOSALS = 4, 64
"""A large batch says in few steps what its proposals are worth, and its steps cost more."""
_LONGEST_TRIAL = 64
_STEADY_STEPS, _RESTLESS_STEPS = 4, 64
"""Steps of one batch size until more may be drafted than before; of changing ones, at most."""
_HOPE = 1.5
"""Standard deviations of doubt by which a lookahead may be better than it looks, to be tried."""
_SURE = 1.0
"""Standard deviations by which it must look better, to be chosen."""
_TRIAL_COST = 0.004
"""Share of all time that trials of a worse lookahead may cost."""
_GAP, _GAP_AFTER_A_CHANGE = 128, 64
"""Steps between two trials, at least."""
_RECHECK_GAP = 256
"""Steps until what seems to be worse is tried all the same: a slow second may have misled."""


@dataclass
class _Course:
    """What is known and planned for batches of one size."""

    lookahead: int
    to_learn: list[int]
    steps: int = 0
    learnt: int = 0
    trial: int | None = None
    trial_steps: int = 0
    trial_change: float = 0.0
    """What the change to it cost, in usual steps: a draft that rested reads what it missed."""
    next_trial: int = 0
    recheck: dict[int, int] = field(default_factory=dict)
    """Number of steps at which each lookahead is tried whatever is known of it."""


@dataclass(frozen=True)
class _Gain:
    """Of one lookahead beside the one in use: logarithm of the ratio of goodputs, and its doubt."""

    lookahead: int
    mean: float
    doubt: float

    @property
    def hoped(self) -> float:
        return self.mean + _HOPE * self.doubt

    @property
    def sure(self) -> bool:
        return self.mean > _SURE * self.doubt


class LookaheadController:
    """Picks a lookahead for the next step, and learns from every step.

    For each batch size it first tries a few lookaheads, then keeps the best. From then on it knows
    how sure it is: it changes for a gain above `margin` that is larger than its doubt, and tries
    what may be better for all that is known, as long as that looks better and is not sure. What is
    not tried gets doubtful with time, and so is tried again. The worse a lookahead did, the longer
    it waits: trials may cost half a percent of the time.
    """

    def __init__(self, max_lookahead: int, *, adaptive: bool = True, margin: float = 0.02) -> None:
        """
        Args:
            max_lookahead: K of the engine, the longest that it can draft.
            adaptive: False always answers K, and still measures.
            margin: relative gain below which the lookahead stays.
        """
        self.max_lookahead = max_lookahead
        self.adaptive = adaptive and max_lookahead > 0
        self.margin = margin
        self.acceptance = RecentAcceptance(max_lookahead)
        self.times = StepTimes()
        self._courses: dict[int, _Course] = {}
        self._last = max_lookahead
        self._bucket, self._same_bucket, self._restless = 0, 0, 0

    def restore(
        self, seconds: Mapping[int, Mapping[int, float]], acceptance: Sequence[float]
    ) -> None:
        """Begin with what a profile measured: no lookahead is tried that it has an opinion on.

        Args:
            seconds: of a step, by batch size and lookahead.
            acceptance: chance of each position after the ones before it.
        """
        self.acceptance.restore(acceptance, _TRIALS_OF_A_PROFILE)
        for num_decoding, row in seconds.items():
            bucket = bucket_of(num_decoding)
            known = {k: one for k, one in row.items() if k <= self.max_lookahead}
            self.times.restore(bucket, known)
            course = self._courses[bucket] = self._begin()
            course.to_learn = [] if len(known) > 1 else course.to_learn
            self._choose_first(bucket, course)

    def choose(self, num_decoding: int) -> int:
        """Tokens to draft in the next step for each of `num_decoding` requests."""
        if not self.adaptive or num_decoding == 0:
            return self.max_lookahead
        bucket = bucket_of(num_decoding)
        course = self._courses.setdefault(bucket, self._begin())
        if self._is_steady(bucket):
            self._last = self._choose(bucket, course)
        else:
            known = self._last if course.to_learn else course.lookahead
            self._last = min(self._last, known)
        return self._last

    def _is_steady(self, bucket: int) -> bool:
        """Whether the batch stays at its size. As requests come and go it passes through others,
        where a draft that rested would read all it missed for a step or two.
        """
        self._same_bucket = self._same_bucket + 1 if bucket == self._bucket else 1
        self._bucket = bucket
        steady = self._same_bucket > _STEADY_STEPS
        self._restless = 0 if steady else self._restless + 1
        return steady or self._restless > _RESTLESS_STEPS

    def _choose(self, bucket: int, course: _Course) -> int:
        course.steps += 1
        if course.to_learn:
            return self._learn(bucket, course)
        if course.trial is not None:
            return self._go_on_trying(bucket, course)
        if course.steps % _DECIDE_EVERY == 0:
            self._decide(bucket, course)
        return course.lookahead if course.trial is None else course.trial

    def observe_step(self, num_decoding: int, lookahead: int, seconds: float) -> None:
        """A step took `seconds`, with `lookahead` tokens both verified and drafted."""
        self.times.observe(bucket_of(num_decoding), lookahead, seconds)
        self.acceptance.idle(lookahead)

    def observe_change(self, num_decoding: int, seconds: float) -> None:
        """A step took `seconds` in which the lookahead changed."""
        bucket = bucket_of(num_decoding)
        course, row = self._courses.get(bucket), self.times.row(bucket)
        if course is not None and course.trial is not None and course.lookahead in row:
            usual = max(row[course.lookahead], row.get(course.trial, 0.0))
            course.trial_change += max(0.0, seconds / usual - 1)

    def observe_proposal(self, proposed: int, accepted: int) -> None:
        self.acceptance.observe(proposed, accepted)

    def forget_acceptance(self) -> None:
        """Another draft proposes from now on: begin with K again, and try what it is worth."""
        self.acceptance = RecentAcceptance(self.max_lookahead)
        for course in self._courses.values():
            course.lookahead = self.max_lookahead
            course.trial, course.next_trial = None, course.steps
            course.recheck.clear()

    def goodput(self, bucket: int) -> dict[int, float]:
        """Tokens a second of each request by lookahead, as far as step times are known."""
        return goodput(self.times.row(bucket), self.acceptance.conditional())

    def chosen(self) -> dict[int, int]:
        """The lookahead that stands for each batch size met so far."""
        return {bucket: course.lookahead for bucket, course in sorted(self._courses.items())}

    def _begin(self) -> _Course:
        top = self.max_lookahead
        return _Course(lookahead=top, to_learn=list(dict.fromkeys([top, 0, (top + 1) // 2])))

    def _learn(self, bucket: int, course: _Course) -> int:
        lookahead = course.to_learn[0]
        course.learnt += 1
        enough = self.times.count(bucket, lookahead) >= _steps_of(bucket)
        # Where steps are never clean (prompts all the time), learning ends all the same.
        if enough or course.learnt >= 4 * (_TRIAL_STEPS + _SETTLE_STEPS):
            course.to_learn.pop(0)
            course.learnt = 0
            if not course.to_learn:
                self._choose_first(bucket, course)
                return course.lookahead
            return course.to_learn[0]
        return lookahead

    def _choose_first(self, bucket: int, course: _Course) -> None:
        gains = self.goodput(bucket)
        if gains:
            course.lookahead = max(gains, key=gains.__getitem__)

    def _gains(self, bucket: int, course: _Course) -> list[_Gain]:
        """Of all lookaheads but the one in use; none as long as that was not measured."""
        found, used = self.goodput(bucket), course.lookahead
        if used not in found:
            return []
        doubts = self.acceptance.doubts(used)
        return [
            _Gain(
                lookahead,
                math.log(one / found[used]),
                math.sqrt(doubts[lookahead] + self.times.doubt(bucket, lookahead, used)),
            )
            for lookahead, one in found.items()
            if lookahead != used
        ]

    def _decide(self, bucket: int, course: _Course) -> None:
        """Change to what is surely better, or try what may be."""
        gains, margin = self._gains(bucket, course), math.log1p(self.margin)
        better = [one for one in gains if one.sure and one.mean > margin]
        if better:
            course.lookahead = max(better, key=lambda one: one.mean).lookahead
            course.next_trial = course.steps + _GAP_AFTER_A_CHANGE
        elif course.steps >= course.next_trial:
            hopeful = [one for one in gains if one.hoped > margin]
            tried = hopeful or [one for one in gains if self._is_due(course, one.lookahead)]
            if tried:
                course.trial = max(tried, key=lambda one: one.hoped).lookahead
                course.trial_steps, course.trial_change = 0, 0.0

    def _is_due(self, course: _Course, lookahead: int) -> bool:
        """Whether it is time for what seems worse: none at all, and the neighbours."""
        if lookahead not in (0, course.lookahead - 1, course.lookahead + 1):
            return False
        return course.steps >= course.recheck.setdefault(lookahead, course.steps + _RECHECK_GAP)

    def _go_on_trying(self, bucket: int, course: _Course) -> int:
        assert course.trial is not None
        trial = course.trial
        course.trial_steps += 1
        clean_steps = course.trial_steps - _SETTLE_STEPS
        if clean_steps <= 0 or clean_steps % _steps_of(bucket):
            return trial
        found = next((one for one in self._gains(bucket, course) if one.lookahead == trial), None)
        promising = found is not None and found.mean > 0 and not found.sure
        if promising and course.trial_steps < _LONGEST_TRIAL:
            return trial
        self._end_trial(course, lost=max(0.0, -found.mean) if found else 0.0)
        self._decide(bucket, course)
        return course.lookahead

    def _end_trial(self, course: _Course, lost: float) -> None:
        """Plan the next ones. `lost`: share of a step's goodput that each of its steps cost."""
        assert course.trial is not None
        paid_back = round((course.trial_steps * lost + course.trial_change) / _TRIAL_COST)
        course.next_trial = course.steps + max(_GAP, paid_back)
        course.recheck[course.trial] = course.steps + max(_RECHECK_GAP, 2 * paid_back)
        course.trial = None


def _steps_of(bucket: int) -> int:
    """How many steps with a lookahead tell what it is worth."""
    return max(_LEAST_STEPS, min(_TRIAL_STEPS, _ENOUGH_PROPOSALS // bucket))
