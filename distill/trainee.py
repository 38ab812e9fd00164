"""The student inside a DeepSpeed engine: one forward pass gives the loss of a micro-batch.

The loss is computed inside the wrapped module's forward, where ZeRO gathers sharded weights and
arms gradient reduction; outside of it gradients would silently stay local.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel

from draftsmith.distill.batch import Batch, response_states
from draftsmith.distill.distributed import world_size
from draftsmith.distill.loss import charged_loss, hardest_tokens, label_columns
from draftsmith.distill.models import body, head_weight
from draftsmith.distill.objectives import Charge
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections import TrainSection
from draftsmith.distill.vocabulary import (
    draft_tokens,
    head_rows,
    restrict_signal,
)
from draftsmith.kernels.signal import HiddenSignal
from draftsmith.kernels.signal import Teacher as Signal


class Trainee(torch.nn.Module):
    """Student and loss as one module.

    trained_share: of each response's tokens, chosen with the help of a reference model.
    compiled: whether torch.compile makes the student's layers faster.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        dtype: torch.dtype,
        trained_share: float = 1.0,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.dtype = dtype
        self.trained_share = trained_share
        # In lists, which hide them from the engine: a copy, for `whole_student` under ZeRO-3, is
        # not trained, and the body is the student's. Only training runs the compiled one: sampling
        # has shapes of its own.
        self.copies: list[PreTrainedModel] = []
        self.bodies: list[Callable[..., Any]] = [
            torch.compile(body(student), dynamic=True) if compiled else body(student)
        ]

    def forward(
        self,
        batch: Batch,
        signal: Signal | None,
        scale: float,
        charge: Charge,
        reference: HiddenSignal | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns (loss, loss_N): scale times the summed charges, and each token's.

        Args:
            signal: the teacher's over the student's columns; None where the charge has no
                divergence.
            reference: the reference model's on the same tokens, where it chooses among them.
        """
        with autocast(batch.tokens_BT.device, self.dtype):
            hidden_NH = response_states(self.bodies[0], batch)
        head_DH, token_D = head_rows(self.student), draft_tokens(self.student)
        label_N = label_columns(batch, token_D)
        weight_N = torch.full(label_N.shape, scale, device=hidden_NH.device)

        def charges(hidden_NH: Tensor, head_DH: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor]:
            return charged_loss(hidden_NH, head_DH, signal, label_N, charge, weight_N, self.dtype)

        if reference is not None:
            theirs = restrict_signal(reference, token_D)
            with torch.no_grad():
                _, ours_N = charges(hidden_NH, head_DH, weight_N)
                _, theirs_N = charges(theirs.hidden_NG, theirs.head_VG, weight_N)
            weight_N *= hardest_tokens(ours_N - theirs_N, batch.lengths, self.trained_share)
        return charges(hidden_NH, head_DH, weight_N)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def start_engine(student: PreTrainedModel, recipe: Recipe, dtype: torch.dtype) -> Any:
    """Wrap the student in a DeepSpeed engine with AdamW, as the recipe says.

    Raises:
        ValueError: the batch cannot be divided over processes and micro-batches.
    """
    trainee = Trainee(student, dtype, recipe.objective.trained_share, recipe.train.compile)
    if recipe.train.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.train.zero_stage == 3:
        deepspeed.zero.register_external_parameter(trainee, head_weight(student))
        trainee.copies.append(copy.deepcopy(student).eval().requires_grad_(False))
    optimizer = torch.optim.AdamW(
        [parameter for parameter in student.parameters() if parameter.requires_grad],
        lr=recipe.train.learning_rate,
        betas=recipe.train.betas,
        weight_decay=recipe.train.weight_decay,
        fused=True,  # one pass over the weights: 24 ms instead of 300 for 39M of them on 2 cores
    )
    engine, *_ = deepspeed.initialize(
        model=trainee, optimizer=optimizer, config=_deepspeed_config(recipe.train)
    )
    return engine


def sequences_per_process(train: TrainSection) -> int:
    """Raises ValueError where the global batch cannot be divided evenly."""
    size = 1 if train.micro_batch_tokens else train.micro_batch_size
    if train.batch_size % (size * world_size()):
        raise ValueError(
            f"train.batch_size ({train.batch_size}) must be a multiple of micro_batch_size times "
            f"processes ({size} x {world_size()})."
        )
    return train.batch_size // world_size()


def learning_rate(train: TrainSection, step: int) -> float:
    """Linear warm-up, then a cosine down to `min_learning_rate_ratio` of the peak."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    floor = train.min_learning_rate_ratio
    return train.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(engine: Any, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def optimizer_step(engine: Any) -> float:
    """Let the engine step; returns the gradient's norm before clipping.

    DeepSpeed keeps that norm for itself without ZeRO, so it is taken here, after reduction.
    """
    norm = None
    if engine.zero_optimization_stage() == 0:
        gradients = [one.grad for one in engine.module.parameters() if one.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)


@contextlib.contextmanager
def whole_student(engine: Any) -> Iterator[PreTrainedModel]:
    """The student with all its weights, to generate, evaluate or export.

    Under ZeRO-3 it is a copy: hooks of the engine would take gathered weights away again in the
    middle of a forward pass.
    """
    student: PreTrainedModel = engine.module.student
    if engine.zero_optimization_stage() == 3:
        yield _gathered_copy(engine.module)
        return
    student.eval()
    yield student
    student.train()


def _gathered_copy(trainee: Trainee) -> PreTrainedModel:
    (whole,) = trainee.copies
    for ours, theirs in zip(whole.parameters(), trainee.student.parameters(), strict=True):
        with deepspeed.zero.GatheredParameters([theirs]):
            ours.data.copy_(theirs.data)
    return whole


def _deepspeed_config(train: TrainSection) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": train.offload}
    return {
        # Counted in sequences; where a step's micro-batches end, train_step says itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": sequences_per_process(train),
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
