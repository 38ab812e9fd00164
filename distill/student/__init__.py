"""Make a student: one file for each way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from draftsmith.distill.batch import Example
from draftsmith.distill.models import default_device
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.student.cut import cut_student
from draftsmith.distill.student.importance import prune_student
from draftsmith.distill.student.load import load_student, loaded_vocabulary
from draftsmith.distill.student.lora import add_lora
from draftsmith.distill.student.shape import student_config
from draftsmith.distill.vocabulary import restrict_head

__all__ = ["make_student", "student_config"]


def make_student(
    teacher: PreTrainedModel,
    section: StudentSection,
    seed: int,
    calibration: Sequence[Example] = (),
) -> PreTrainedModel:
    """Build the float32 student that the recipe describes, on the device of training.

    A loaded draft keeps its vocabulary; a new one is up to the caller, who has seen the data.

    Args:
        calibration: recorded answers that importance is measured on, where `section` asks for it.

    Raises:
        ValueError: layers or sizes that this teacher cannot give, or a model that does not fit it.
    """
    torch.manual_seed(seed)
    if section.init == "load":
        student = load_student(section)
    elif section.init == "importance":
        student = prune_student(teacher, section, calibration[: section.calibration_prompts])
    else:
        student = cut_student(teacher, section)
    student.to(default_device())  # the teacher may have a shape only
    if section.freeze_embeddings:
        for module in (student.get_input_embeddings(), student.get_output_embeddings()):
            module.requires_grad_(False)
    if section.lora:
        add_lora(student, section.lora, seed)
    tokens = None
    if section.init == "load":
        tokens = loaded_vocabulary(section, student.config.vocab_size)
    if tokens is not None:
        restrict_head(student, tokens)
    return student
