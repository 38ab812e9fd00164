"""Objectives, one file each, chosen by `name` in a recipe's [objective] section."""

from __future__ import annotations

from draftsmith.distill.objectives.adaspec import AdaSpecSection
from draftsmith.distill.objectives.distillspec import DistillSpecSection
from draftsmith.distill.objectives.lk import LKHybridSection, LKSection
from draftsmith.distill.objectives.minima import MiniMASection
from draftsmith.distill.objectives.objective import (
    REGISTRY,
    Charge,
    Course,
    ObjectiveSection,
    Residuals,
)
from draftsmith.distill.objectives.self_distillation import SelfDistillationSection
from draftsmith.distill.objectives.seq_kd import SeqKDSection
from draftsmith.distill.objectives.sft import SFTSection
from draftsmith.distill.objectives.skew import SkewKLSection, SkewReverseKLSection
from draftsmith.distill.objectives.taid import TAIDSection

__all__ = [
    "REGISTRY",
    "AdaSpecSection",
    "Charge",
    "Course",
    "DistillSpecSection",
    "LKHybridSection",
    "LKSection",
    "MiniMASection",
    "ObjectiveSection",
    "Residuals",
    "SFTSection",
    "SelfDistillationSection",
    "SeqKDSection",
    "SkewKLSection",
    "SkewReverseKLSection",
    "TAIDSection",
]
