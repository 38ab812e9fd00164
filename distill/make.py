"""Make the student of a recipe without training it: to look at, to serve, or to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from draftsmith.distill.answers import Answer, Answering, EncodedPrompt
from draftsmith.distill.export import export_draft
from draftsmith.distill.models import (
    default_device,
    load_model,
    load_tokenizer,
    quiet_libraries,
    served_dtype,
    stop_tokens,
    torch_dtype,
)
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.rollout import teacher_samplings
from draftsmith.distill.student.initial import initial_student, planned_student
from draftsmith.distill.student.sizing import Size, cost_ratio, size_of
from draftsmith.distill.teacher import LiveTeacher
from draftsmith.distill.texts import prompts_to_answer, read_prompts
from draftsmith.distill.vocabulary import draft_tokens


@dataclass(frozen=True)
class Made:
    """What a student costs beside its teacher, both in the dtype that they are served in here."""

    student: Size
    teacher: Size

    @property
    def cost_ratio(self) -> float:
        return cost_ratio(self.student, self.teacher)


def make(recipe: Recipe, output: Path) -> Made:
    """Write the student that a run of `recipe` starts with into the new folder `output`.

    The teacher answers prompts only where the recipe chooses by its answers: a draft vocabulary,
    or importance.

    Raises:
        ValueError: names what is wrong with recipe, models, prompts or `output`.
    """
    if output.exists():
        raise ValueError(f"--output {output} is there already: choose a new folder.")
    quiet_libraries()
    folder = Path(recipe.teacher.model)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(folder)
    chooses_by_answers = bool(recipe.student.vocabulary) or recipe.student.init == "importance"
    prompts: list[EncodedPrompt] = []
    if chooses_by_answers:
        prompts = read_prompts(recipe, tokenizer).train
    teacher = load_model(folder, torch_dtype(recipe.teacher.dtype)).to(default_device())
    planned_student(teacher, tokenizer, recipe)
    stops = stop_tokens(teacher, tokenizer)
    answers: Sequence[Sequence[Answer]] = []
    if chooses_by_answers:
        with TemporaryDirectory(prefix="draftsmith-") as scratch:
            answers = LiveTeacher(teacher, stops[0]).answers(
                Path(scratch) / "answers.jsonl",
                prompts_to_answer(prompts, recipe),
                teacher_samplings(recipe.rollout),
                Answering(recipe.seed, stops, recipe.rollout.batch_size),
                "teacher answers",
            )
    student = initial_student(recipe, teacher, prompts, answers, stops)
    export_draft(student, folder, recipe, output, {})
    token_D = draft_tokens(student)
    served = served_dtype(recipe.export.dtype)
    rows = None if token_D is None else len(token_D)
    return Made(size_of(student.config, served, rows), size_of(teacher.config, served))
