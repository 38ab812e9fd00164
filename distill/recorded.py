"""The text that is there before a run's first step: the teacher's answers, and the target's."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from draftsmith.distill import distributed
from draftsmith.distill.answers import Answer, Answering
from draftsmith.distill.batch import Example
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.recipe import Recipe, load_recipe
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

    Raises:
        ValueError: `folder` belongs to other prompts, or data.answers to another run than this.
    """
    _check_prompts(prompts, folder)
    if recipe.data.answers is not None:
        _take_over(RunFolder(Path(recipe.data.answers).expanduser()), recipe, folder)
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


def _check_prompts(prompts: PromptSets, folder: RunFolder) -> None:
    """A file of prompts that has changed since would put answers beside other questions."""
    content = [[asdict(prompt) for prompt in part] for part in (prompts.train, prompts.heldout)]
    ours = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    theirs = _digest(folder)
    distributed.barrier()  # before one process writes what the others still look for
    if theirs is None and distributed.is_main():
        folder.prompts_digest.write_text(ours, encoding="utf-8")
    distributed.barrier()
    if theirs not in (None, ours):
        raise ValueError(
            f"{folder.root} was begun with other prompts: data.train or data.heldout holds "
            "something else now. Start a new run."
        )


def _digest(folder: RunFolder) -> str | None:
    path = folder.prompts_digest
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _take_over(source: RunFolder, recipe: Recipe, folder: RunFolder) -> None:
    if not all(source.answers(part).is_file() for part in ("train", "heldout")):
        raise ValueError(
            f"data.answers: {source.root} is no run with the answers of a teacher: leave it out, "
            "and the teacher answers again."
        )
    theirs = load_recipe(source.recipe)
    differs = {
        "teacher": _teacher(theirs) != _teacher(recipe),
        "set of prompts": _digest(source) != _digest(folder),
        "seed": theirs.seed != recipe.seed,
        "sampling": _samplings(theirs) != _samplings(recipe),
    }
    for what, other in differs.items():
        if other:
            raise ValueError(
                f"data.answers: {source.root} had another {what} than this run: leave it out, and "
                "the teacher answers again."
            )
    if distributed.is_main():
        copy_answers(source, folder)
    distributed.barrier()


def _teacher(recipe: Recipe) -> dict[str, object]:
    return recipe.teacher.model_dump(exclude={"states", "keep_states_gib"})


def _samplings(recipe: Recipe) -> tuple[object, ...]:
    every_prompt = recipe.rollout.given_fraction > 0
    return teacher_samplings(recipe.rollout), serving_sampling(recipe), every_prompt


def copy_answers(source: RunFolder, folder: RunFolder) -> None:
    """The teacher's answers of one run into the folder of another, where they are not yet."""
    for path, copy in (
        (source.prompts_digest, folder.prompts_digest),
        (source.answers("heldout"), folder.answers("heldout")),
        (source.answers("train"), folder.answers("train")),
    ):
        if not copy.is_file():
            partial = copy.with_suffix(".partial")
            shutil.copy(path, partial)
            partial.replace(copy)
