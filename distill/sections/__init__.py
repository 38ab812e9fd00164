"""The sections of a recipe, one file each. Nothing here imports torch."""

from draftsmith.distill.sections.data import DataSection
from draftsmith.distill.sections.evaluate import EvaluateSection
from draftsmith.distill.sections.export import ExportSection
from draftsmith.distill.sections.log import LogSection
from draftsmith.distill.sections.rollout import RolloutSection
from draftsmith.distill.sections.stage import StageSection
from draftsmith.distill.sections.student import LoraSection, StudentSection
from draftsmith.distill.sections.teacher import TeacherSection
from draftsmith.distill.sections.train import TrainSection

__all__ = [
    "DataSection",
    "EvaluateSection",
    "ExportSection",
    "LogSection",
    "LoraSection",
    "RolloutSection",
    "StageSection",
    "StudentSection",
    "TeacherSection",
    "TrainSection",
]
