"""Self-distillation with ground truth: the target is a mixture of the data and the teacher.

    a CE(y, q) + (1 - a) KL(p || q)

y is the response that the data gives, p a teacher of the student's own kind, such as the model
that an earlier run ended with. Without ground truth each generation is regularised more
(arXiv 2102.13088). PS-KD (arXiv 2006.12000) lets its weight fall linearly:

    a = 1 - (1 - a_end) (n + 1) / N   at step n of N

PS-KD's teacher is the student of the epoch before; here it is the frozen teacher of the recipe.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from draftsmith.distill.objectives.objective import Charge, DivergenceSection, register


@register
class SelfDistillationSection(DivergenceSection):
    name: Literal["self_distillation"] = "self_distillation"
    text: ClassVar[Literal["any", "teacher", "given"]] = "given"
    schedule: Literal["linear", "constant"] = "linear"
    """`constant` keeps ground_truth_weight at every step."""
    ground_truth_weight: float = Field(0.2, ge=0, le=1)
    """Weight a of the data at the last step."""

    def charge(self, step: int, steps: int) -> Charge:
        weight = self.ground_truth_weight
        if self.schedule == "linear":
            weight = 1 - (1 - weight) * (step + 1) / steps
        return Charge(
            temperature=self.temperature, divergence_weight=1 - weight, label_weight=weight
        )
