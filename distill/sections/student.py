"""What the student is made of."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from draftsmith.distill.section import Section


class StudentSection(Section):
    init: Literal["cut", "random"] = "cut"
    """`cut` takes layers and embedding out of the teacher; `random` takes only its shape."""
    layers: list[int] | None = None
    """Indices of the teacher's layers to keep (cut only; negative ones count from the end)."""
    num_layers: int | None = Field(None, ge=1)
    """Number of layers: evenly spaced ones where they are cut, else new ones."""
    hidden_size: int | None = Field(None, ge=16)
    """Width; below the teacher's, the embedding is projected and layers start at random."""
    num_attention_heads: int | None = Field(None, ge=1)
    num_key_value_heads: int | None = Field(None, ge=1)
    intermediate_size: int | None = Field(None, ge=16)
    vocabulary: int | None = Field(None, ge=1)
    """How many tokens the student may propose: the most frequent ones in prompts and recorded
    answers. Fewer rows of its head are read at every step, in training and serving; None keeps
    them all."""
    freeze_embeddings: bool = False
    """Keep embedding and head as they start: less to overfit, and cheaper steps."""

    @model_validator(mode="after")
    def _one_way_to_choose_layers(self) -> Self:
        if self.layers is not None and self.num_layers is not None:
            raise ValueError("give either layers or num_layers, not both")
        if self.layers is not None and (self.init == "random" or self.hidden_size is not None):
            raise ValueError("layers can only be cut at the teacher's own width")
        if self.init == "random" and self.num_layers is None:
            raise ValueError("a random student needs num_layers")
        return self
