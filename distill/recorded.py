"""The text that is there before a run's first step: the teacher's answers, and the target's."""

from __future__ import annotations

from draftsmith.distill.answers import Answer, Answering
from draftsmith.distill.batch import Example
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.rollout import heldout_examples, serving_sampling, teacher_samplings
from draftsmith.distill.teacher import Teacher
from draftsmith.distill.texts import PromptSets, prompts_to_answer


def record_text(
    teacher: Teacher,
    target: Teacher,
    prompts: PromptSets,
    recipe: Recipe,
    folder: RunFolder,
    how: Answering,
) -> tuple[list[list[Answer]], list[Example]]:
    """(the teacher's answers to each prompt of training, the target's to the held-out ones).

    Answers that lie in `folder` already are taken from there.
    """
    answers = teacher.answers(
        folder.answers("train"),
        prompts_to_answer(prompts.train, recipe),
        teacher_samplings(recipe.rollout),
        how,
        "teacher answers",
    )
    heldout = target.answers(
        folder.answers("heldout"),
        prompts.heldout,
        [serving_sampling(recipe)],
        how,
        "teacher answers, held out",
    )
    return answers, heldout_examples(prompts.heldout, heldout)
