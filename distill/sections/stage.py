"""One of several runs that a recipe chains."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from draftsmith.distill.section import Section

Table = Annotated[dict[str, Any], Field(default_factory=dict)]


class StageSection(Section):
    """What a stage changes of the recipe around it. A table changes the fields that it names; one
    that names `objective.name` or `student.init` starts that section afresh.

    From the second stage on, the student is that of the stage before unless `student.init` says
    otherwise. `stage:NAME` stands for the model that an earlier stage made.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    teacher: Table
    student: Table
    data: Table
    rollout: Table
    objective: Table
    train: Table
    evaluate: Table
    export: Table
