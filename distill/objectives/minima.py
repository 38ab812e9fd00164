"""MiniMA (arXiv 2311.07052): hard and soft cross-entropy, half and half.

    w CE(y, q) + (1 - w) CE(p, q),   w = 1/2

The soft one is logged as KL(p || q): the teacher's entropy, which they differ by, has no gradient.
Where the student's own text is trained on, only the soft half counts.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from draftsmith.distill.objectives.objective import Charge, DivergenceSection, register


@register
class MiniMASection(DivergenceSection):
    name: Literal["minima"] = "minima"
    label_weight: float = Field(0.5, gt=0, lt=1)
    """Weight w of the hard cross-entropy, which is taken at temperature 1."""

    def charge(self, step: int, steps: int) -> Charge:
        return Charge(
            temperature=self.temperature,
            divergence_weight=1 - self.label_weight,
            label_weight=self.label_weight,
        )
