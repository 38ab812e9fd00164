"""Sequence-level distillation (arXiv 1606.07947): cross-entropy on the teacher's answers.

The teacher's distributions are never looked at, which makes it the baseline for all that are.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from draftsmith.distill.objectives.objective import Charge, ObjectiveSection, register


@register
class SeqKDSection(ObjectiveSection):
    name: Literal["seq_kd"] = "seq_kd"
    text: ClassVar[Literal["any", "teacher", "given"]] = "teacher"

    def charge(self, step: int, steps: int) -> Charge:
        return Charge(divergence_weight=0.0, label_weight=1.0)

    @property
    def uses_teacher(self) -> bool:
        return False
