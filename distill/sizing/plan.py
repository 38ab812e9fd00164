"""The plan: candidate drafts ranked by predicted speed, and everything the prediction rests on.

speed(B, K) beside plain decoding is tau(K) * t_plain(B) / t(B, K): tau from the acceptance that the
pilots' law predicts, seconds from the latency model. The break-even acceptance is where the best K
is just as fast as none.

Legend: B requests that decode, K lookahead, D trained tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from scipy.optimize import brentq, nnls

from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.sizing.acceptance_law import FittedLaw, Interval, fit_law
from draftsmith.distill.sizing.candidates import Candidate
from draftsmith.distill.sizing.document import Document
from draftsmith.distill.sizing.latency import LatencyModel
from draftsmith.distill.sizing.pilots import Pilots
from draftsmith.distill.sizing.positions import block_efficiency, chances_at, position_offsets
from draftsmith.distill.student.sizing import Size


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Load(_Part):
    """One number of requests at a time."""

    batch: int
    plain_seconds: float
    """Of a step of the target alone."""
    seconds: dict[int, float]
    """Of a step with K drafts."""
    cost_ratio: float
    """c: a pass of the draft by a step of the target alone."""
    best_lookahead: int
    speedup: Interval
    """Of the best lookahead beside the target alone."""
    break_even: float | None
    """Acceptance of the first position from which the best lookahead pays; None: it never does."""


class Row(_Part):
    """One candidate."""

    name: str
    student: StudentSection
    parameters: int
    bytes_a_token: int
    coverage: float
    """Share of the held-out tokens that it may propose."""
    alpha: Interval
    """Acceptance of the first position after the budget."""
    chances: list[float]
    """Of position 1, 2, ... given those before it."""
    loads: list[Load]
    training_minutes: float
    """Of the steps alone; the teacher's answers come before them."""
    beyond_pilots: bool
    """Whether the draft is smaller or larger than every pilot."""

    def tau(self, lookahead: int) -> float:
        """Tokens a target call."""
        return block_efficiency(self.chances)[lookahead]

    def speedup(self, batch: int, lookahead: int) -> float:
        """Raises ValueError where the plan knows nothing of this load."""
        for load in self.loads:
            if load.batch == batch and lookahead in load.seconds:
                return self.tau(lookahead) * load.plain_seconds / load.seconds[lookahead]
        raise ValueError(
            f"The plan has no figures for {batch} requests at a time with K = {lookahead}."
        )


class Plan(Document, frozen=True):
    """Rows from the fastest to the slowest at the first batch size."""

    noun = "a plan"
    advice = "write one with `draftsmith plan draft`"

    recipe: dict[str, Any]
    """The run that was planned, with the student of the first row."""
    teacher: str
    teacher_fingerprint: str
    temperature: float
    tokens: int
    """D: trained tokens of the planned run."""
    tokens_beyond_pilots: float
    """D by the longest pilot's: how far the law is extrapolated."""
    latency: LatencyModel
    law: FittedLaw
    offsets: list[float]
    """Log-odds of position 1, 2, ... less those of the first."""
    rows: list[Row]
    unpredicted: list[str]
    """Candidates that start in a way that no pilot had."""

    @property
    def winner(self) -> Row:
        return self.rows[0]

    @property
    def pays(self) -> bool:
        """Whether the winner is predicted to be faster than the target alone."""
        return self.winner.loads[0].speedup.value > 1

    def row_of(self, student: StudentSection) -> Row:
        """Raises ValueError where the plan has no such draft."""
        for row in self.rows:
            if row.student == student:
                return row
        raise ValueError(
            "The plan has no candidate with this run's [student]: give the plan that the run was "
            "made from with --plan."
        )


@dataclass(frozen=True)
class Target:
    """What is served without a draft."""

    name: str
    fingerprint: str
    size: Size


def make_plan(
    recipe: Recipe,
    target: Target,
    candidates: Sequence[Candidate],
    pilots: Pilots,
    latency: LatencyModel,
    batches: Sequence[int],
    lookaheads: Sequence[int],
) -> Plan:
    """Predict every candidate and rank them by their speed at the first of `batches`.

    Raises:
        ValueError: the pilots give too few points, were evaluated for shorter lookaheads, know
            nothing of a vocabulary, or none of them starts like any candidate.
    """
    vocabularies = {one.section.vocabulary for one in candidates} - {None, *pilots.coverage}
    if vocabularies:
        raise ValueError(
            f"What {min(filter(None, vocabularies))} tokens cover was not counted with these "
            "pilots: give --pilots again; those that are trained are kept."
        )
    fitted = fit_law(pilots.observations())
    offsets = position_offsets([one.chances for pilot in pilots.pilots for one in pilot.points])
    if max(lookaheads) > len(offsets):
        raise ValueError(
            f"The pilots were evaluated up to K = {len(offsets)}: raise evaluate.gamma_max, or "
            "plan for shorter lookaheads."
        )
    tokens_a_step = sum(one.tokens_a_step for one in pilots.pilots) / len(pilots.pilots)
    tokens = round(recipe.train.steps * tokens_a_step)
    predicted = [one for one in candidates if one.start in fitted.law.terms]
    if not predicted:
        raise ValueError("No pilot starts like any candidate: train pilots for these candidates.")
    planner = _Planner(fitted, offsets, tokens, pilots, latency, target.size)
    rows = [planner.row(one, batches, lookaheads) for one in predicted]
    rows.sort(key=lambda row: -row.loads[0].speedup.value)
    longest = max(point.tokens for pilot in pilots.pilots for point in pilot.points)
    return Plan(
        recipe=winning_recipe(recipe, rows[0], pilots).model_dump(mode="json"),
        teacher=target.name,
        teacher_fingerprint=target.fingerprint,
        temperature=recipe.evaluate.temperature,
        tokens=tokens,
        tokens_beyond_pilots=tokens / longest,
        latency=latency,
        law=fitted,
        offsets=offsets,
        rows=rows,
        unpredicted=[one.name for one in candidates if one not in predicted],
    )


def winning_recipe(recipe: Recipe, row: Row, pilots: Pilots) -> Recipe:
    """The planned run with this student, evaluated at the lookahead that is to be served.

    It takes over what the teacher answered the pilots, if that is still there.
    """
    content = recipe.model_dump(mode="json")
    content["name"] = f"{recipe.name}-{row.name}"[:64]
    content["student"] = row.student.model_dump(mode="json")
    if Path(pilots.answers).is_dir():
        content["data"]["answers"] = pilots.answers
    content["evaluate"]["num_speculative_tokens"] = row.loads[0].best_lookahead
    content["evaluate"]["gamma_max"] = max(content["evaluate"]["gamma_max"], len(row.chances))
    return Recipe.model_validate(content)


@dataclass(frozen=True)
class _Planner:
    law: FittedLaw
    offsets: list[float]
    tokens: int
    pilots: Pilots
    latency: LatencyModel
    target: Size

    def row(self, one: Candidate, batches: Sequence[int], lookaheads: Sequence[int]) -> Row:
        rows = one.section.vocabulary
        coverage = 1.0 if rows is None else self.pilots.coverage[rows]
        worth = self.pilots.effective(self.tokens)
        alpha = self.law.predict(one.start, one.size.layers, worth, coverage)
        weights = [pilot.layer_weights for pilot in self.pilots.pilots]
        return Row(
            name=one.name,
            student=one.section,
            parameters=one.size.parameters,
            bytes_a_token=one.size.bytes_a_token,
            coverage=coverage,
            alpha=alpha,
            chances=chances_at(alpha.value, self.offsets),
            loads=[self._load(one.size, alpha, batch, lookaheads) for batch in batches],
            training_minutes=self.tokens * self._seconds_a_token(one.size) / 60,
            beyond_pilots=not min(weights) <= one.size.layers <= max(weights),
        )

    def _load(self, draft: Size, alpha: Interval, batch: int, lookaheads: Sequence[int]) -> Load:
        plain = self.latency.plain_seconds(self.target, batch)
        seconds = {
            k: self.latency.speculative_seconds(self.target, draft, batch, k) for k in lookaheads
        }

        def speeds(alpha: float) -> dict[int, float]:
            tau = block_efficiency(chances_at(alpha, self.offsets))
            return {k: tau[k] * plain / seconds[k] for k in lookaheads}

        at_value = speeds(alpha.value)
        best = max(at_value, key=lambda k: at_value[k])
        return Load(
            batch=batch,
            plain_seconds=plain,
            seconds=seconds,
            cost_ratio=self.latency.cost_ratio(self.target, draft, batch),
            best_lookahead=best,
            speedup=Interval(
                value=at_value[best], low=speeds(alpha.low)[best], high=speeds(alpha.high)[best]
            ),
            break_even=_break_even(lambda one: max(speeds(one).values()) - 1),
        )

    def _seconds_a_token(self, size: Size) -> float:
        """Of training: what the teacher and the loop take, and a share by the draft's products."""
        measured = [(one.flops_a_token, one.seconds_a_token) for one in self.pilots.pilots]
        found, _ = nnls([[1.0, flops] for flops, _ in measured], [one for _, one in measured])
        fixed, by_flop = found.tolist()
        return float(fixed + by_flop * size.flops_a_token)


def _break_even(gain: Callable[[float], float]) -> float | None:
    """The acceptance at which `gain`, which grows with it, is 0."""
    if gain(1.0) <= 0:
        return None
    return float(brentq(gain, 0.0, 1.0)) if gain(0.0) < 0 else 0.0
