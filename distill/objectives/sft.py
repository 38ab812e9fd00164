"""Supervised fine-tuning: cross-entropy on the responses that the data gives.

The baseline without a teacher; every training prompt must have a response.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from draftsmith.distill.objectives.objective import Charge, ObjectiveSection, register


@register
class SFTSection(ObjectiveSection):
    name: Literal["sft"] = "sft"
    text: ClassVar[Literal["any", "teacher", "given"]] = "given"

    def charge(self, step: int, steps: int) -> Charge:
        return Charge(divergence_weight=0.0, label_weight=1.0)

    @property
    def uses_teacher(self) -> bool:
        return False
