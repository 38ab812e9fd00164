"""DistillSpec (arXiv 2310.08461): a divergence on a mixture of texts.

    min E_{y ~ G} 1/|y| sum_t D(p(. | y_<t), q(. | y_<t))

D is a divergence. G is the student's own text, the teacher's, the data's, or any mixture drawn for
each prompt: rollout.student_fraction, rollout.given_fraction, and the teacher's for the rest. No
gradient flows through sampling. Tokens are averaged over the whole batch rather than over each
response first, so that a loss does not depend on how a batch is split. GKD (arXiv 2306.13649) is
the same objective. Which divergence is best depends on task and decoding: try them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from draftsmith.distill.objectives.objective import REGISTRY, Charge, DivergenceSection, register


@register
class DistillSpecSection(DivergenceSection):
    name: Literal["distillspec"] = "distillspec"
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "tvd"] = "forward_kl"
    beta: float = Field(0.5, gt=0, lt=1)
    """Weight of the teacher in jsd's mixture; unused by the others."""

    @field_validator("divergence", mode="before")
    @classmethod
    def _others_are_objectives(cls, value: Any) -> Any:
        if isinstance(value, str) and value in REGISTRY:
            raise ValueError(f"{value} is an objective of its own: set objective.name = '{value}'")
        return value

    def charge(self, step: int, steps: int) -> Charge:
        return Charge(divergence=self.divergence, beta=self.beta, temperature=self.temperature)
