"""AdaSPEC (arXiv 2510.19779): train only the tokens that are hard but learnable.

A reference draft was distilled from the same start. A token's gap is how much worse the student
does on it than the reference, D(p, q) - D(p, q_reference): large where there is something left to
learn, small where the student is good already or the reference failed too. The `keep` share of
each response with the largest gaps is trained; the others cost no gradient.

The published code takes the share over a micro-batch; a response's own share does not depend on
how the batch is split, and the number of trained tokens is known before a forward pass.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from draftsmith.distill.objectives.objective import Charge, DivergenceSection, register


@register
class AdaSpecSection(DivergenceSection):
    name: Literal["adaspec"] = "adaspec"
    reference: str
    """Folder of the reference draft: the `draft/` of a run with the default objective."""
    keep: float = Field(0.4, gt=0, le=1)
    """Share of each response's tokens that is trained, rounded up."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "tvd"] = "forward_kl"
    beta: float = Field(0.5, gt=0, lt=1)
    """Weight of the teacher in jsd's mixture; unused by the others."""

    @field_validator("reference")
    @classmethod
    def _reference_is_named(cls, value: str) -> str:
        if not value:
            raise ValueError("give the folder of a draft")
        return value

    @property
    def trained_share(self) -> float:
        return self.keep

    @property
    def reference_model(self) -> str:
        return self.reference

    def charge(self, step: int, steps: int) -> Charge:
        return Charge(divergence=self.divergence, beta=self.beta, temperature=self.temperature)
