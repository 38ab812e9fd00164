"""Steps, batches, optimiser and checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from draftsmith.distill.section import DType, Section


class TrainSection(Section):
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    """Prompts a step, over all processes and micro-batches."""
    micro_batch_size: int = Field(4, ge=1)
    """Sequences a process holds at a time. It changes memory, not the gradient."""
    learning_rate: float = Field(1e-3, gt=0)
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 1
    dtype: DType = "float32"
    """Of matrix products; weights, optimiser state and divergences stay float32."""
    save_every: int = Field(100, ge=1)
    eval_every: int = Field(50, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
