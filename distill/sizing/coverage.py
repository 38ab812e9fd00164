"""What a plan counts in a pilot's answers: their tokens, and which share a vocabulary covers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from draftsmith.distill.answers import read_answers
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.models import load_shape, load_tokenizer, stop_tokens
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.student.initial import texts_for_vocabulary
from draftsmith.distill.texts import read_prompts
from draftsmith.distill.vocabulary import frequent_tokens


def coverage(pilot: RunFolder, recipe: Recipe, sizes: Iterable[int]) -> dict[int, float]:
    """Share of held-out tokens inside of the draft vocabulary of each size.

    A draft vocabulary is chosen as a run chooses it: by the training prompts and their answers.

    Args:
        pilot: any run of this recipe, whatever its student; it holds the answers.

    Raises:
        ValueError: a size is not below the teacher's.
    """
    teacher = Path(recipe.teacher.model)
    tokenizer, shape = load_tokenizer(teacher), load_shape(teacher)
    prompts = read_prompts(recipe, tokenizer)
    answers, heldout = (
        read_answers(pilot.answers(name), len(encoded))
        for name, encoded in (("train", prompts.train), ("heldout", prompts.heldout))
    )
    texts = texts_for_vocabulary(recipe, prompts.train, answers)
    stops = stop_tokens(shape, tokenizer)
    spoken = [token for options in heldout for answer in options for token in answer.tokens]
    found = {}
    for size in sizes:
        kept = set(frequent_tokens(texts, stops, size, shape.config.vocab_size))
        found[size] = sum(token in kept for token in spoken) / len(spoken)
    return found


def answered_tokens(pilot: RunFolder) -> int:
    """Tokens of the recorded text that every pilot, and the planned run, trains on."""
    lines = pilot.answers("train").read_text(encoding="utf-8").splitlines()
    return sum(len(json.loads(line)["tokens"]) for line in lines)
