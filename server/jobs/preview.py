"""What a job would cost: counts that follow from the recipe, and a guess of its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from draftsmith.server.gateway import Gateway
from draftsmith.server.jobs.compose import Plan
from draftsmith.server.jobs.job import Job, Status
from draftsmith.server.jobs.shape import Shape
from draftsmith.server.jobs.store import JobStore

_BYTES = {"float32": 4, "bfloat16": 2, "auto": 4}
_FIXED_BYTES = 2 << 30
"""What torch, transformers and DeepSpeed take before any model."""
_HISTORY = 20


def preview(plan: Plan, gateway: Gateway) -> dict[str, Any]:
    """The answer to a dry run. Tokens and bytes are upper bounds; time is a guess, and `basis`
    says of what kind."""
    recipe = plan.recipe.model_dump(mode="json")
    teacher = Shape.of(plan.teacher)
    student = teacher.student(recipe["student"])
    seconds, basis = _seconds(recipe, plan.model, teacher, gateway.jobs)
    return {
        "object": "distillation.job.preview",
        "model": plan.model,
        "name": plan.name,
        "recipe": recipe,
        "prompts": plan.prompts,
        "steps": recipe["train"]["steps"],
        "tokens": _tokens(recipe, plan.prompts),
        "parameters": {"teacher": teacher.parameters, "student": student.parameters},
        "disk_bytes": _disk(recipe, student),
        "memory_bytes": _memory(recipe, teacher, student),
        "seconds": seconds,
        "basis": basis,
    }


def disk_bytes(job: Job) -> int:
    """The most that a job writes, without the registry's copy of its draft."""
    teacher = Shape.of(Path(job.folders["teacher.model"]))
    return _disk(job.recipe, teacher.student(job.recipe["student"]))


def _tokens(recipe: dict[str, Any], prompts: int) -> dict[str, int]:
    rollout, train = recipe["rollout"], recipe["train"]
    longest = rollout["max_new_tokens"]
    return {
        "teacher_answers": prompts * rollout["answers_per_prompt"] * longest,
        "trained": train["steps"] * train["batch_size"] * longest,
    }


def _disk(recipe: dict[str, Any], student: Shape) -> int:
    # Per parameter: float32 weights and two moments a checkpoint, and three folders of weights.
    checkpoints = 12 * (recipe["train"]["keep_checkpoints"] + 1)
    return student.parameters * (checkpoints + 3 * _BYTES[recipe["export"]["dtype"]])


def _memory(recipe: dict[str, Any], teacher: Shape, student: Shape) -> int:
    # The student: weights, gradients and two moments, all float32.
    models = teacher.parameters * _BYTES[recipe["teacher"]["dtype"]] + student.parameters * 16
    kept = int(recipe["teacher"]["keep_states_gib"] * 2**30)
    states = student.layers * student.hidden * 4 * 16  # what the backward pass looks at
    longest = recipe["data"]["max_prompt_tokens"] + recipe["rollout"]["max_new_tokens"]
    batch = recipe["train"]["micro_batch_size"] * longest * states
    return _FIXED_BYTES + models + kept + batch


def _seconds(
    recipe: dict[str, Any], model: str, teacher: Shape, store: JobStore
) -> tuple[float | None, str]:
    """By jobs for the same model that were done here, scaled by arithmetic."""
    done, _ = store.page(None, limit=_HISTORY, statuses=[Status.SUCCEEDED])
    rates = sorted(
        job.run_seconds / _work(job.recipe, teacher) for job in done if job.model == model
    )
    if not rates:
        return None, "unknown: no job for this model has been done here yet"
    guess = rates[len(rates) // 2] * _work(recipe, teacher)
    return round(guess, 1), f"scaled from {len(rates)} jobs for this model that were done here"


def _work(recipe: dict[str, Any], teacher: Shape) -> float:
    """Operations of the trained tokens: the teacher's pass, and the student's three."""
    student = teacher.student(recipe["student"])
    rows = recipe["student"]["vocabulary"]
    tokens = _tokens(recipe, 0)["trained"]
    return float(tokens * (teacher.flops() + 3 * student.flops(rows)))
