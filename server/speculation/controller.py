"""The choice of the lookahead, step by step, from measured goodput.

Acceptance alone is the wrong signal: it hardly changes with load, while the right lookahead goes
from K down to 0. Goodput is tokens a second, tau(K) / t(B, K): what a call brings by what it takes
on this machine at this load. Whatever is chosen, the text is the same; only its speed changes.

Legend: B requests that decode, K lookahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from draftsmith.server.speculation.acceptance import RecentAcceptance
from draftsmith.server.speculation.goodput import goodput
from draftsmith.server.speculation.step_times import StepTimes, bucket_of

_LEARN_STEPS = 8
"""Steps of each kind that are tried before the first decision for a batch size."""
_SETTLE_STEPS = 2
"""Steps after a change that belong to neither lookahead: proposals are verified a step later."""
_DECIDE_EVERY = 16
_TRIALS_OF_A_PROFILE = 64.0
_PROBE_STEPS = 8
_CONFIRM_AFTER = 32
"""Steps after a change until the lookahead before it is tried once more."""
_FRESH_STEPS = 64
"""So long what was measured may decide a change: a machine is now faster, now slower."""
_FIRST_PROBE_AFTER = 256
_LONGEST_PROBE_AFTER = 4096


@dataclass
class _Course:
    """What is known and planned for batches of one size."""

    lookahead: int
    to_learn: list[int]
    steps: int = 0
    learnt: int = 0
    probe: int | None = None
    probe_left: int = 0
    next_probe: int = _FIRST_PROBE_AFTER
    probe_gap: int = _FIRST_PROBE_AFTER
    probes: list[int] = field(default_factory=list)
    seen: dict[int, int] = field(default_factory=dict)
    """Number of steps when each lookahead was last measured."""


class LookaheadController:
    """Picks a lookahead for the next step, and learns from every step.

    For each batch size it first tries a few lookaheads, then keeps the best; it changes only for
    a gain above `margin`, and now and then, ever more rarely while nothing changes, tries
    another one for a few steps, since the world changes and what is not tried is not known.

    A machine that is slow for a second makes the lookahead in use look bad, and only that one.
    So a change must be confirmed by a trial of now, and is itself tried against the lookahead
    before it soon after.
    """

    def __init__(self, max_lookahead: int, *, adaptive: bool = True, margin: float = 0.03) -> None:
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
            for lookahead, one in row.items():
                if lookahead <= self.max_lookahead:
                    self.times.observe(bucket, lookahead, one)
            course = self._courses[bucket] = self._begin()
            course.to_learn = [] if len(self.goodput(bucket)) > 1 else course.to_learn
            self._choose_first(bucket, course)

    def choose(self, num_decoding: int) -> int:
        """Tokens to draft in the next step for each of `num_decoding` requests."""
        if not self.adaptive or num_decoding == 0:
            return self.max_lookahead
        bucket = bucket_of(num_decoding)
        course = self._courses.setdefault(bucket, self._begin())
        course.steps += 1
        if course.to_learn:
            return self._learn(bucket, course)
        if course.probe is not None:
            return self._go_on_probing(bucket, course)
        if course.steps % _DECIDE_EVERY == 0:
            self._decide(bucket, course)
        if course.probe is None and course.steps >= course.next_probe:
            self._begin_probe(bucket, course, self._next_probe(course))
        return course.lookahead

    def observe_step(self, num_decoding: int, lookahead: int, seconds: float) -> None:
        """A step took `seconds`, with `lookahead` tokens both verified and drafted."""
        bucket = bucket_of(num_decoding)
        self.times.observe(bucket, lookahead, seconds)
        if course := self._courses.get(bucket):
            course.seen[lookahead] = course.steps

    def observe_proposal(self, proposed: int, accepted: int) -> None:
        self.acceptance.observe(proposed, accepted)

    def forget_acceptance(self) -> None:
        """Another draft proposes from now on: begin with K again, and try what it is worth."""
        self.acceptance = RecentAcceptance(self.max_lookahead)
        for course in self._courses.values():
            course.lookahead = self.max_lookahead
            course.next_probe = course.steps + _FIRST_PROBE_AFTER
            course.probe_gap = _FIRST_PROBE_AFTER

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
        enough = self.times.count(bucket, lookahead) >= _LEARN_STEPS
        # Where steps are never clean (prompts all the time), learning ends all the same.
        if enough or course.learnt >= 4 * (_LEARN_STEPS + _SETTLE_STEPS):
            course.to_learn.pop(0)
            course.learnt = 0
            if not course.to_learn:
                self._choose_first(bucket, course)
                return course.lookahead
            return course.to_learn[0]
        return lookahead

    def _choose_first(self, bucket: int, course: _Course) -> None:
        """What does best right after learning: all was measured just now, nothing is in doubt."""
        gains = self.goodput(bucket)
        if gains:
            course.lookahead = max(gains, key=gains.__getitem__)
            course.next_probe = course.steps + course.probe_gap

    def _decide(self, bucket: int, course: _Course, *, confirm: bool = True) -> None:
        """Change to what is best, or try it first where `confirm` and it was not seen lately."""
        gains = self.goodput(bucket)
        if course.lookahead not in gains:
            return
        best = max(gains, key=gains.__getitem__)
        if gains[best] <= (1 + self.margin) * gains[course.lookahead]:
            return
        if confirm and course.steps - course.seen.get(best, -_FRESH_STEPS) >= _FRESH_STEPS:
            self._begin_probe(bucket, course, best)
            return
        course.probes = [course.lookahead]
        course.lookahead = best
        course.probe_gap = _FIRST_PROBE_AFTER
        course.next_probe = course.steps + _CONFIRM_AFTER

    def _next_probe(self, course: _Course) -> int:
        """Neighbours, and none at all; the others follow from what these tell of acceptance."""
        if not course.probes:
            near = [course.lookahead + 1, course.lookahead - 1, 0]
            inside = [one for one in near if 0 <= one <= self.max_lookahead]
            course.probes = [one for one in dict.fromkeys(inside) if one != course.lookahead]
            course.probe_gap = min(2 * course.probe_gap, _LONGEST_PROBE_AFTER)
        course.next_probe = course.steps + course.probe_gap
        return course.probes.pop(0)

    def _begin_probe(self, bucket: int, course: _Course, lookahead: int) -> None:
        course.probe, course.probe_left = lookahead, _PROBE_STEPS + _SETTLE_STEPS
        self.times.renew(bucket, lookahead)

    def _go_on_probing(self, bucket: int, course: _Course) -> int:
        assert course.probe is not None
        probe = course.probe
        course.probe_left -= 1
        if course.probe_left == 0:
            course.probe = None
            # Where no step was clean the trial tells nothing new, and what is known decides.
            self._decide(bucket, course, confirm=False)
        return probe
