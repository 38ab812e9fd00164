"""A teacher with its answers to a plan's prompts, for rankings that train no pilots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from draftsmith.distill.answers import Answer, Answering, EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.models import (
    default_device,
    load_model,
    load_tokenizer,
    stop_tokens,
    torch_dtype,
)
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.recorded import record_text
from draftsmith.distill.teacher import LiveTeacher
from draftsmith.distill.texts import read_prompts


@dataclass(frozen=True)
class Answered:
    """`answers` are those to `prompts`; `heldout` holds the held-out ones with theirs."""

    teacher: LiveTeacher
    prompts: list[EncodedPrompt]
    answers: list[list[Answer]]
    heldout: list[Example]


def answered(recipe: Recipe, folder: RunFolder) -> Answered:
    """Load the teacher and let it answer; answers that lie in `folder` are taken from there.

    Raises:
        ValueError: the teacher or the prompts are wrong.
    """
    model_folder = Path(recipe.teacher.model)
    tokenizer = load_tokenizer(model_folder)
    prompts = read_prompts(recipe, tokenizer)
    model: PreTrainedModel = load_model(model_folder, torch_dtype(recipe.teacher.dtype))
    stops = stop_tokens(model, tokenizer)
    teacher = LiveTeacher(model.to(default_device()), stops[0])
    how = Answering(recipe.seed, stops, recipe.rollout.batch_size)
    folder.root.mkdir(parents=True, exist_ok=True)
    answers, heldout = record_text(teacher, teacher, prompts, recipe, folder, how)
    return Answered(teacher, prompts.train, answers, heldout)
