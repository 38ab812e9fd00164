"""The law of capacity gap: which teacher is the best for a student of a given size.

A larger teacher knows more, and is harder to follow: in pilots of MiniMA (arXiv 2311.07052) the
best teacher had about 2.5 times the student's parameters. Here the ratio is fitted to a sweep of
the user's own family and text: students of several sizes learn from teachers of several sizes,
and every student is judged by its cross-entropy on one text that all share.

For each student the best size lies at the bottom of a parabola through the lowest loss and its two
neighbours, over the logarithm of teacher sizes; where the lowest loss is at an end of the sweep, it
is that end, and nothing is known of what lies beyond. The ratio is the mean over students, of
logarithms. Intervals come from resampling the prompts, the same ones for every model: they know
nothing of other seeds.

Legend: N_s, N_t parameters of student and teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from draftsmith.distill.draws import draw_bits
from draftsmith.distill.sizing.acceptance_law import Interval
from draftsmith.distill.sizing.document import Document

PUBLISHED_RATIO = 2.5
"""Of MiniMA (arXiv 2311.07052)."""
_REFITS = 500


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Pair(_Part):
    """One distillation of the sweep, and the student's loss after it."""

    student: int
    teacher: int
    """Parameters."""
    nats: list[float]
    """Summed over the tokens of each held-out answer."""


class Sweep(_Part):
    """All pairs of one family, judged on the same answers."""

    family: str
    """The model that all are cut from, and whose answers they are judged on."""
    budget: str
    """What every student was given, in words."""
    tokens: list[int] = Field(min_length=2)
    """Of each held-out answer."""
    pairs: list[Pair]
    teacher_losses: dict[int, float]
    """N_t -> cross-entropy of the teacher itself, nats a token."""

    def losses(self, student: int) -> dict[int, float]:
        """N_t -> nats a token of this student."""
        total = sum(self.tokens)
        return {one.teacher: sum(one.nats) / total for one in self.pairs if one.student == student}

    @property
    def students(self) -> list[int]:
        return sorted({one.student for one in self.pairs})


class CapacityGap(Document, frozen=True):
    """A fitted sweep."""

    noun = "a fitted sweep"
    advice = "run `draftsmith plan fit`"

    sweep: Sweep
    best_teachers: dict[int, float]
    """N_s -> N_t with the lowest loss."""
    at_edge: list[int]
    """Students whose best teacher was the smallest or the largest of the sweep."""
    ratio: Interval
    """N_t / N_s."""
    slope: Interval | None
    """d log N_t / d log N_s over the students; the law says 1. None for a single student."""

    @property
    def verdict(self) -> str:
        """Whether the sweep shows the gap, in a sentence."""
        inside = len(self.best_teachers) - len(self.at_edge)
        if not inside:
            return (
                "The sweep shows no gap: every student did best with a teacher at the edge of the "
                "sweep, so that no best size between them was seen."
            )
        if self.slope is not None and self.slope.low <= 0:
            return (
                "The sweep does not show that larger students want larger teachers: the interval "
                f"of the slope, {self.slope.low:.2f} to {self.slope.high:.2f}, does not lie above "
                "0."
            )
        if self.at_edge:
            return (
                f"{inside} of {len(self.best_teachers)} students did best with a teacher inside of "
                "the sweep; for the others the edge was the best, and the ratio is a bound."
            )
        return "Every student did best with a teacher inside of the sweep: it shows the gap."

    @property
    def shows_gap(self) -> bool:
        flat = self.slope is not None and self.slope.low <= 0
        return len(self.at_edge) < len(self.best_teachers) and not flat


def fit_gap(sweep: Sweep, refits: int = _REFITS) -> CapacityGap:
    """Fit the ratio of the best teacher to its student.

    Raises:
        ValueError: a student was tried with fewer than three teachers, or with others than the
            other students.
    """
    for student in sweep.students:
        if len(sweep.losses(student)) < 3:
            raise ValueError(
                "A best teacher can only be seen among at least three for every student: name "
                "more --teachers."
            )
    nats = {
        student: {one.teacher: np.array(one.nats) for one in sweep.pairs if one.student == student}
        for student in sweep.students
    }
    tokens = np.array(sweep.tokens, dtype=float)
    everything = np.arange(len(tokens))
    best, edges = _best_teachers(nats, tokens, everything)
    draws = np.random.default_rng(draw_bits("capacity gap"))
    resampled = [
        _best_teachers(nats, tokens, draws.choice(everything, len(everything)))[0]
        for _ in range(refits)
    ]
    several = len(best) > 1
    return CapacityGap(
        sweep=sweep,
        best_teachers=best,
        at_edge=edges,
        ratio=_interval(_ratio(best), [_ratio(one) for one in resampled]),
        slope=_interval(_slope(best), [_slope(one) for one in resampled]) if several else None,
    )


def _best_teachers(
    nats: dict[int, dict[int, np.ndarray]], tokens: np.ndarray, prompts: np.ndarray
) -> tuple[dict[int, float], list[int]]:
    """Of each student, judged on these prompts; and the students whose best is at an end."""
    best, edges = {}, []
    for student, by_teacher in nats.items():
        sizes = sorted(by_teacher)
        total = tokens[prompts].sum()
        losses = [float(by_teacher[size][prompts].sum() / total) for size in sizes]
        place = int(np.argmin(losses))
        if place in (0, len(sizes) - 1):
            best[student] = float(sizes[place])
            edges.append(student)
        else:
            near = slice(place - 1, place + 2)
            best[student] = float(np.exp(_bottom(np.log(sizes[near]), losses[near])))
    return best, edges


def _bottom(x: np.ndarray, y: Sequence[float]) -> float:
    """Where the parabola through three points, the middle one the lowest, is lowest."""
    bend, slope, _ = np.polyfit(x - x[1], y, 2)
    return float(x[1]) if bend <= 0 else float(x[1] - slope / (2 * bend))


def _ratio(best: dict[int, float]) -> float:
    return float(np.exp(np.mean([np.log(teacher / student) for student, teacher in best.items()])))


def _slope(best: dict[int, float]) -> float:
    return float(np.polyfit(np.log(list(best)), np.log(list(best.values())), 1)[0])


def _interval(value: float, refits: Sequence[float]) -> Interval:
    low, high = np.quantile(refits, [0.05, 0.95]).tolist()
    return Interval(value=value, low=low, high=high)
