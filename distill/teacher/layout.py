"""What a token's row of a store looks like, and how many bytes it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from draftsmith.distill.models import torch_dtype
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections.teacher import SignalFormat


@dataclass(frozen=True)
class Layout:
    """Either `width` numbers of `dtype`, or for each of the columns an int32 id and a float32
    log-probability, and one float32 for the tail unless the columns are the whole vocabulary."""

    format: SignalFormat
    dtype: torch.dtype
    width: int
    vocab_size: int
    top_k: int | None

    @classmethod
    def of(cls, model: PreTrainedModel, recipe: Recipe, format: SignalFormat, top_k: int) -> Layout:
        width, vocab_size = model.config.hidden_size, model.config.vocab_size
        if format == "hidden":
            return cls(format, torch_dtype(recipe.teacher.dtype), width, vocab_size, None)
        return cls(format, torch.float32, width, vocab_size, min(top_k, vocab_size))

    @property
    def columns(self) -> int:
        """The k most likely tokens, and one for the text's own; see `kernels.top_k`."""
        assert self.top_k is not None, "only the format top_k has columns"
        return min(self.top_k + 1, self.vocab_size)

    @property
    def bytes_per_token(self) -> int:
        if self.format == "hidden":
            return self.width * self.dtype.itemsize
        return 8 * self.columns + 4 * (self.columns < self.vocab_size)

    @property
    def head_bytes(self) -> int:
        return self.vocab_size * self.width * self.dtype.itemsize * (self.format == "hidden")
