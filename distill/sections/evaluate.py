"""How the student is going to be served, and so measured."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from draftsmith.distill.section import Section


class EvaluateSection(Section):
    temperature: float = Field(0.0, ge=0)
    """Of serving: 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    gamma_max: int = Field(8, ge=1, le=16)
    """Block efficiency is given for every lookahead from 1 to this one."""
    num_speculative_tokens: int = Field(3, ge=1, le=16)
    """Lookahead of the engine that the draft will be used in."""

    @model_validator(mode="after")
    def _served_lookahead_is_evaluated(self) -> Self:
        if self.num_speculative_tokens > self.gamma_max:
            raise ValueError("gamma_max must be at least num_speculative_tokens")
        return self
