"""Prompts, and the responses that come with them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from draftsmith.distill.section import Section


class DataSection(Section):
    train: str = "draftsmith:stdlib/train"
    """Prompts: a JSONL file, a built-in set, or a Hugging Face dataset (folder or `hf:ID`)."""
    heldout: str = "draftsmith:stdlib/heldout"
    """Prompts for evaluation only."""
    limit: int | None = Field(None, ge=1)
    heldout_limit: int | None = Field(None, ge=1)
    max_prompt_tokens: int = Field(512, ge=1)
    responses: Literal["teacher", "given"] = "teacher"
    """Recorded answers for training: the teacher's own, or those that the data gives, where it
    does. Held-out answers are always the teacher's: acceptance is defined on its text."""
    answers: str | None = None
    """Folder of a run with the same teacher, prompts and sampling, as a plan's pilots are: its
    answers are taken over, instead of given once more."""
