"""Exact acceptance of saved drafts on prompts with answers that the target gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from draftsmith.distill.batch import Example
from draftsmith.distill.evaluate import evaluate, prepare_heldout
from draftsmith.distill.models import (
    default_device,
    load_model,
    load_tokenizer,
    quiet_libraries,
    stop_tokens,
    torch_dtype,
)
from draftsmith.distill.recipe import EvaluateSection
from draftsmith.distill.student import check_same_vocabulary
from draftsmith.distill.teacher import Teacher

_SEQUENCES_AT_A_TIME = 8


def evaluate_offline(
    target: Path,
    drafts: Mapping[str, Path],
    answered: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    temperature: float,
    top_p: float,
    gamma_max: int,
) -> dict[str, dict[str, Any]]:
    """`Acceptance` of each draft, as a JSON object, on (prompt, answer) pairs of token ids.

    Raises:
        ValueError: a folder cannot be loaded, or the vocabularies differ.
    """
    quiet_libraries()
    section = EvaluateSection(temperature=temperature, top_p=top_p, gamma_max=gamma_max)
    model = load_model(target, torch_dtype("auto")).to(default_device())
    pad = stop_tokens(model, load_tokenizer(target))[0]
    examples = [
        Example(tuple(prompt), tuple(answer), "recorded") for prompt, answer in answered if answer
    ]
    heldout = prepare_heldout(Teacher(model, pad), examples, pad, _SEQUENCES_AT_A_TIME)
    results = {}
    for name, folder in drafts.items():
        draft = load_model(folder, torch.float32).to(default_device())
        check_same_vocabulary(model, draft)
        results[name] = evaluate(draft, heldout, section).model_dump(mode="json")
    return results
