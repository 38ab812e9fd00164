"""What the student is made of."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from draftsmith.distill.section import Section

_SHAPE = (
    "layers",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)


class LoraSection(Section):
    """Low-rank adapters (arXiv 2106.09685): W + alpha / rank B A, and only A and B are trained."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: their product is multiplied by alpha / rank."""
    target_modules: list[str] | None = Field(None, min_length=1)
    """Names of the projections that are adapted, such as `q_proj`; None means all in the layers."""


class StudentSection(Section):
    init: Literal["cut", "importance", "random", "load"] = "cut"
    """`cut` takes layers and embedding out of the teacher; `importance` also takes heads,
    feed-forward channels and width, those that matter most; `random` takes only the shape;
    `load` goes on from a trained model."""
    model: str | None = None
    """Where init is `load`: a folder, a name in the local store, a Hugging Face hub id, or
    `stage:NAME`, an earlier stage of this recipe. It must have the teacher's vocabulary."""
    layers: list[int] | None = None
    """Indices of the teacher's layers to keep (negative ones count from the end)."""
    num_layers: int | None = Field(None, ge=1)
    """Number of layers: evenly spaced ones where they are cut, the most important ones, or new
    ones."""
    hidden_size: int | None = Field(None, ge=16)
    """Width. Below the teacher's, `cut` projects the embedding and starts layers at random, and
    `importance` keeps the dimensions that matter most."""
    num_attention_heads: int | None = Field(None, ge=1)
    num_key_value_heads: int | None = Field(None, ge=1)
    intermediate_size: int | None = Field(None, ge=16)
    calibration_prompts: int = Field(64, ge=1)
    """Recorded answers that importance is measured on."""
    vocabulary: int | None = Field(None, ge=1)
    """How many tokens the student may propose: the most frequent ones in prompts and recorded
    answers. Fewer rows of its head are read at every step, in training and serving; None keeps
    them all, or those of a loaded draft."""
    freeze_embeddings: bool = False
    """Keep embedding and head as they start: less to overfit, and cheaper steps."""
    lora: LoraSection | None = None
    """Train low-rank adapters and keep all other weights; the export holds their sum."""

    @model_validator(mode="after")
    def _one_way_to_choose_layers(self) -> Self:
        if self.layers is not None and self.num_layers is not None:
            raise ValueError("give either layers or num_layers, not both")
        if self.layers is not None and (
            self.init == "random" or (self.init == "cut" and self.hidden_size is not None)
        ):
            raise ValueError("layers can only be cut at the teacher's own width")
        if self.init == "random" and self.num_layers is None:
            raise ValueError("a random student needs num_layers")
        return self

    @model_validator(mode="after")
    def _a_loaded_student_has_its_own_shape(self) -> Self:
        if (self.init == "load") != (self.model is not None):
            raise ValueError("init = 'load' and model go together: give both or neither")
        given = [field for field in _SHAPE if getattr(self, field) is not None]
        if self.init == "load" and given:
            raise ValueError(f"a loaded student has its own shape: leave out {given[0]}")
        return self

    @model_validator(mode="after")
    def _adapters_need_weights(self) -> Self:
        starts_at_random = self.init == "random" or (
            self.init == "cut" and self.hidden_size is not None
        )
        if self.lora and starts_at_random:
            raise ValueError(
                "lora keeps the weights that a student starts with, and these would be random: "
                "leave lora out, or cut at the teacher's width, by importance, or load a model"
            )
        return self
