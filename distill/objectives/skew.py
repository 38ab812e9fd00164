"""DistiLLM (arXiv 2402.03898): skewed divergences, and student text only when it is needed.

    skew_kl           KL(p || a p + (1 - a) q)
    skew_reverse_kl   KL(q || a q + (1 - a) p)

The adaptive schedule starts on recorded text. Each time that the held-out KL(p || q) is no better
than it was at the last rise, by `tolerance`, the chance phi of student text rises by `rise`. A
prompt whose draw u is below phi trains on student text: freshly written where u < phi (1 - n / N)
at step n of N or while the replay buffer is not full, and else taken from the buffer, so that
less and less has to be generated. The published code draws once a batch; here each prompt draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from draftsmith.distill.objectives.objective import (
    Charge,
    Course,
    DivergenceSection,
    Residuals,
    Source,
    register,
)

if TYPE_CHECKING:
    from draftsmith.distill.recipe import Recipe


class SkewSection(DivergenceSection):
    alpha: float = Field(0.1, gt=0, lt=1)
    """Share of the divergence's own first argument in its mixture."""
    schedule: Literal["adaptive", "fixed"] = "adaptive"
    """`fixed` draws student text by rollout.student_fraction, and keeps none of it."""
    rise: float = Field(0.1, gt=0, le=1)
    """How much the chance of student text rises at a time."""
    tolerance: float = 0.1
    """By how many nats a token the held-out divergence may rise before the chance does. Where it
    is negative, the divergence must fall by as much to keep the chance from rising."""
    replay_capacity: int = Field(1000, ge=1)
    """Student responses that are kept, over all processes; the oldest are dropped first."""

    def charge(self, step: int, steps: int) -> Charge:
        return Charge(divergence=self.name, alpha=self.alpha, temperature=self.temperature)

    def start(self, recipe: Recipe) -> Course:
        return (
            AdaptiveOffPolicy(self, recipe) if self.schedule == "adaptive" else Course(self, recipe)
        )

    @property
    def schedules_student_text(self) -> bool:
        return self.schedule == "adaptive"

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        if self.schedule == "adaptive" and recipe.rollout.student_fraction is not None:
            raise ValueError(
                f"rollout.student_fraction: {self.name} sets it by its adaptive schedule: leave it "
                "out, or choose objective.schedule = 'fixed'"
            )


@register
class SkewKLSection(SkewSection):
    name: Literal["skew_kl"] = "skew_kl"


@register
class SkewReverseKLSection(SkewSection):
    name: Literal["skew_reverse_kl"] = "skew_reverse_kl"


class AdaptiveOffPolicy(Course):
    section: SkewSection

    def __init__(self, section: SkewSection, recipe: Recipe) -> None:
        super().__init__(section, recipe)
        self.replay_capacity = section.replay_capacity
        self.student_chance = 0.0
        self.reference: float | None = None

    def source(self, step: int, draw: float, stored: int) -> Source:
        rollout = self.recipe.rollout
        chance = self.student_chance if step >= rollout.student_from_step else 0.0
        if draw < chance:
            fresh = draw < chance * (1 - step / self.steps)
            return "student" if fresh or stored < self.replay_capacity else "replay"
        # What is left of the draw is uniform again.
        rest = (draw - chance) / (1 - chance)
        return "given" if 1 - rest <= rollout.given_fraction else "teacher"

    def after_evaluation(self, forward_kl: float, residuals: Residuals | None = None) -> None:
        if self.reference is None:
            self.reference = forward_kl
        elif forward_kl >= self.reference + self.section.tolerance:
            self.student_chance = min(1.0, self.student_chance + self.section.rise)
            self.reference = forward_kl

    def metrics(self) -> dict[str, float]:
        return {"student_chance": self.student_chance}

    def state(self) -> dict[str, Any]:
        return {"student_chance": self.student_chance, "reference": self.reference}

    def restore(self, state: dict[str, Any]) -> None:
        self.student_chance, self.reference = state["student_chance"], state["reference"]
