"""What a job would cost: counts that follow from the recipe, and a guess of its time."""

from __future__ import annotations

from typing import Any

from draftsmith.server.jobs.compose import Plan
from draftsmith.server.jobs.cost import most_disk, most_memory, most_tokens, operations
from draftsmith.server.jobs.job import Status
from draftsmith.server.jobs.shape import Shape
from draftsmith.server.jobs.store import JobStore

_HISTORY = 20


def preview(plan: Plan, jobs: JobStore) -> dict[str, Any]:
    """The answer to a dry run. Tokens and bytes are upper bounds; time is a guess, and `basis`
    says of what kind."""
    recipe = plan.recipe.model_dump(mode="json")
    teacher = Shape.of(plan.teacher)
    student = teacher.student(recipe["student"])
    seconds, basis = _seconds(recipe, plan.model, teacher, jobs)
    return {
        "object": "distillation.job.preview",
        "model": plan.model,
        "name": plan.name,
        "recipe": recipe,
        "prompts": plan.prompts,
        "steps": recipe["train"]["steps"],
        "tokens": most_tokens(recipe, plan.prompts),
        "parameters": {"teacher": teacher.parameters, "student": student.parameters},
        "disk_bytes": most_disk(recipe, student),
        "memory_bytes": most_memory(recipe, teacher, student),
        "seconds": seconds,
        "basis": basis,
    }


def _seconds(
    recipe: dict[str, Any], model: str, teacher: Shape, store: JobStore
) -> tuple[float | None, str]:
    """By jobs for the same model that were done here, scaled by arithmetic."""
    done, _ = store.page(None, limit=_HISTORY, statuses=[Status.SUCCEEDED])
    rates = sorted(
        job.run_seconds / operations(job.recipe, teacher) for job in done if job.model == model
    )
    if not rates:
        return None, "unknown: no job for this model has been done here yet"
    guess = rates[len(rates) // 2] * operations(recipe, teacher)
    return round(guess, 1), f"scaled from {len(rates)} jobs for this model that were done here"
