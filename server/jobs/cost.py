"""What a job takes, by its recipe: upper bounds of tokens, disk and memory, and operations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from draftsmith.server.jobs.job import Job
from draftsmith.server.jobs.shape import Shape

_BYTES = {"float32": 4, "bfloat16": 2, "auto": 4}
_FIXED_BYTES = 2 << 30
"""What torch, transformers and DeepSpeed take before any model."""


def disk_bytes(job: Job) -> int:
    """The most that a job writes, without the registry's copy of its draft."""
    teacher = Shape.of(Path(job.folders["teacher.model"]))
    return most_disk(job.recipe, teacher.student(job.recipe["student"]))


def most_tokens(recipe: dict[str, Any], prompts: int) -> dict[str, int]:
    rollout, train = recipe["rollout"], recipe["train"]
    longest = rollout["max_new_tokens"]
    return {
        "teacher_answers": prompts * rollout["answers_per_prompt"] * longest,
        "trained": train["steps"] * train["batch_size"] * longest,
    }


def most_disk(recipe: dict[str, Any], student: Shape) -> int:
    # Per parameter: float32 weights and two moments a checkpoint, and three folders of weights.
    checkpoints = 12 * (recipe["train"]["keep_checkpoints"] + 1)
    return student.parameters * (checkpoints + 3 * _BYTES[recipe["export"]["dtype"]])


def most_memory(recipe: dict[str, Any], teacher: Shape, student: Shape) -> int:
    # The student: weights, gradients and two moments, all float32.
    models = teacher.parameters * _BYTES[recipe["teacher"]["dtype"]] + student.parameters * 16
    kept = int(recipe["teacher"]["keep_states_gib"] * 2**30)
    states = student.layers * student.hidden * 4 * 16  # what the backward pass looks at
    longest = recipe["data"]["max_prompt_tokens"] + recipe["rollout"]["max_new_tokens"]
    batch = recipe["train"]["micro_batch_size"] * longest * states
    return _FIXED_BYTES + models + kept + batch


def operations(recipe: dict[str, Any], teacher: Shape) -> float:
    """Operations of the trained tokens: the teacher's pass, and the student's three."""
    student = teacher.student(recipe["student"])
    rows = recipe["student"]["vocabulary"]
    tokens = most_tokens(recipe, 0)["trained"]
    return float(tokens * (teacher.flops() + 3 * student.flops(rows)))
