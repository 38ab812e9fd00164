"""Steps, batches, optimiser and checkpoints."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from draftsmith.distill.section import DType, Section


class TrainSection(Section):
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    """Prompts a step, over all processes and micro-batches."""
    micro_batch_size: int = Field(4, ge=1)
    """Sequences a process holds at a time. It changes memory, not the gradient."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Padded tokens a process holds at a time, in place of `micro_batch_size`: short responses
    share a micro-batch, and a longer one than this has its own. It does not change the gradient."""
    learning_rate: float = Field(1e-3, gt=0)
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "cpu"] = "none"
    """`cpu` keeps optimiser state, and its step, in the memory of the CPU (ZeRO 2 and 3)."""
    dtype: DType = "float32"
    """Of matrix products; weights, optimiser state and divergences stay float32."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass, and compute the rest again."""
    compile: bool = False
    """Let torch.compile fuse the student's layers (ZeRO 0 to 2); the first steps take longer."""
    save_every: int = Field(100, ge=1)
    eval_every: int = Field(50, ge=1)
    keep_checkpoints: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _zero_can_do_it(self) -> Self:
        if self.offload == "cpu" and self.zero_stage < 2:
            raise ValueError("offload = 'cpu' needs zero_stage 2 or 3")
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile needs a zero_stage below 3: sharded weights come and go")
        return self
