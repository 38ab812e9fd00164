"""Self-distillation with ground truth: the target is a mixture of the data and the teacher.

    a CE(y, q) + (1 - a) KL(p || q)

y is the response that the data gives, p a teacher of the student's own kind, such as the model
that an earlier run ended with. Without ground truth each generation is regularised more.

closed_form (arXiv 2102.13088): in kernel regression the fit is linear in its targets. With A the
fit to the data, which is what self-distillation's teacher is, and B the fit to the teacher's
predictions, the student is f = a A + (1 - a) B, and the weight whose fit is nearest to held-out
data y in squares is the projection <y - B, A - B> / |A - B|^2. Written with f, which is at hand,

    a* = 1 - (1 - a) <y - A, f - A> / |f - A|^2,

clipped to [0, 1], where a is the mean weight that f was trained with. It is estimated at each
evaluation, on the probabilities of held-out tokens, as if the networks were linear as well: where
the teacher is as sure as the data warrants, a* is near 1, and it falls as the teacher overfits.

linear (PS-KD, arXiv 2006.12000): a = 1 - (1 - a_N) (n + 1) / N at step n of N. PS-KD's teacher is
the student of the epoch before; here it is the frozen teacher of the recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from draftsmith.distill.objectives.objective import (
    Charge,
    Course,
    DivergenceSection,
    Residuals,
    register,
)

if TYPE_CHECKING:
    from draftsmith.distill.recipe import Recipe


@register
class SelfDistillationSection(DivergenceSection):
    name: Literal["self_distillation"] = "self_distillation"
    text: ClassVar[Literal["any", "teacher", "given"]] = "given"
    schedule: Literal["closed_form", "linear", "constant"] = "closed_form"
    """How the weight of the data changes; closed_form needs responses in data.heldout too."""
    ground_truth_weight: float = Field(0.2, ge=0, le=1)
    """Weight of the data: at the last step (linear), at every step (constant), or until the first
    evaluation after step 0 (closed_form), where it must be below 1."""

    def charge(self, step: int, steps: int) -> Charge:
        weight = self.ground_truth_weight
        if self.schedule == "linear":
            weight = 1 - (1 - weight) * (step + 1) / steps
        return self.weigh(weight)

    def weigh(self, weight: float) -> Charge:
        return Charge(
            temperature=self.temperature, divergence_weight=1 - weight, label_weight=weight
        )

    def start(self, recipe: Recipe) -> Course:
        if self.schedule == "closed_form":
            return ClosedForm(self, recipe)
        return Course(self, recipe)

    @property
    def needs_heldout_responses(self) -> bool:
        return self.schedule == "closed_form"

    def check(self, recipe: Recipe) -> None:
        super().check(recipe)
        if self.schedule == "closed_form" and self.ground_truth_weight == 1:
            raise ValueError(
                "objective.ground_truth_weight: closed_form learns nothing about the teacher from "
                "a student that never saw it: give less than 1"
            )


class ClosedForm(Course):
    section: SelfDistillationSection

    def __init__(self, section: SelfDistillationSection, recipe: Recipe) -> None:
        super().__init__(section, recipe)
        self.weight = section.ground_truth_weight
        self.total, self.taken = 0.0, 0

    def charge(self, step: int) -> Charge:
        return self.section.weigh(self.weight)

    def after_step(self, step: int, loss: float) -> None:
        self.total += self.weight
        self.taken += 1

    def after_evaluation(self, forward_kl: float, residuals: Residuals | None = None) -> None:
        assert residuals is not None, "prepare() asks for responses in the held-out data"
        if self.taken and residuals.squared > 0:
            mean = self.total / self.taken
            nearest = 1 - (1 - mean) * residuals.aligned / residuals.squared
            self.weight = min(1.0, max(0.0, nearest))

    def metrics(self) -> dict[str, float]:
        return {"ground_truth_weight": self.weight}

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight, "total": self.total, "taken": self.taken}

    def restore(self, state: dict[str, Any]) -> None:
        self.weight, self.total, self.taken = state["weight"], state["total"], state["taken"]
