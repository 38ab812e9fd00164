"""How the stages of a recipe are shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from draftsmith.distill.folder import RunFolder
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections import StudentSection


def stage_table(stages: Mapping[str, Recipe]) -> Table:
    """The chain, one row a stage.

    Args:
        stages: of a run in the folder `.`, in the order in which they run.
    """
    table = Table(title="Stages", title_justify="left")
    for column in ("", "teacher", "student", "objective"):
        table.add_column(column)
    table.add_column("steps", justify="right")
    made = {str(RunFolder(Path()).stage(name).draft): f"stage {name}" for name in stages}
    for name, recipe in stages.items():
        teacher = made.get(recipe.teacher.model, recipe.teacher.model)
        student = _describe(recipe.student, made)
        table.add_row(name, teacher, student, recipe.objective.name, str(recipe.train.steps))
    return table


def _describe(student: StudentSection, made: Mapping[str, str]) -> str:
    if student.model is not None:
        return made.get(student.model, student.model) + (", LoRA" if student.lora else "")
    shape = {
        field: getattr(student, field)
        for field in ("layers", "num_layers", "hidden_size", "vocabulary")
        if getattr(student, field) is not None
    }
    parts = [student.init, *(f"{field} {value}" for field, value in shape.items())]
    return ", ".join([*parts, "LoRA"] if student.lora else parts)
