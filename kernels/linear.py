"""Student head -> divergence from the teacher, chunk by chunk, without ever holding [N, V] twice.

The gradients are formed in the forward pass, while a chunk's logits are at hand, so that memory
above the inputs is a few chunks plus the head's gradient, whatever N is.

Legend: N tokens, V vocabulary, H student width, C tokens a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from draftsmith.kernels.divergences import RowFunction, RowPair, row_function
from draftsmith.kernels.signal import TeacherSignal

CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of float32 logits; several such buffers live at a time."""


def fused_linear_divergence(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    teacher: TeacherSignal,
    weight_N: Tensor,
    *,
    divergence: str,
    beta: float = 0.5,
    temperature: float = 1.0,
    compute_dtype: torch.dtype | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """sum_n weight_n D(teacher_n, student_n), differentiable in hidden states and head.

    Args:
        weight_N: weight of each token; tokens of weight 0 cost nothing.
        temperature: divides both models' logits; no factor temperature**2 is applied.
        compute_dtype: of the matrix products; the hidden states' own by default. Softmax and
            divergence are always computed in at least float32.
        chunk_bytes: size of a chunk's float32 logits. It changes speed and memory only.

    Returns:
        (loss, loss_N): the differentiable weighted sum, and each token's divergence, detached
        and 0 where the weight is 0.

    Raises:
        ValueError: vocabularies or token counts differ, or the divergence is unknown.
    """
    if teacher.vocab_size != student_head_VH.shape[0]:
        raise ValueError(
            f"The student has {student_head_VH.shape[0]} tokens and the teacher "
            f"{teacher.vocab_size}: both need the same vocabulary."
        )
    if not len(teacher) == student_hidden_NH.shape[0] == weight_N.shape[0]:
        raise ValueError("Teacher, student and weights must cover the same tokens.")
    rows = row_function(divergence, beta)
    loss, loss_N = _FusedLinearDivergence.apply(
        student_hidden_NH,
        student_head_VH,
        teacher,
        weight_N,
        rows,
        temperature,
        compute_dtype or student_hidden_NH.dtype,
        max(1, chunk_bytes // (4 * student_head_VH.shape[0])),
    )
    return loss, loss_N


class _FusedLinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_VH: Tensor,
        teacher: TeacherSignal,
        weight_N: Tensor,
        rows: RowFunction,
        temperature: float,
        compute_dtype: torch.dtype,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        kept_N = weight_N != 0
        packed = not bool(kept_N.all())
        if packed:  # masked rows are dropped before the matmul
            teacher = teacher.select(kept_N)
        hidden_MH = (hidden_NH[kept_N] if packed else hidden_NH).to(compute_dtype)
        weight_M = weight_N[kept_N] if packed else weight_N
        head = head_VH.to(compute_dtype)

        exact = torch.promote_types(compute_dtype, torch.float32)
        grad_hidden_MH = torch.empty_like(hidden_MH)
        trains_head = ctx.needs_input_grad[1]
        grad_head_VH = torch.zeros_like(head_VH, dtype=exact) if trains_head else None
        loss_M = torch.empty(len(teacher), dtype=exact, device=hidden_NH.device)
        for start in range(0, len(teacher), chunk):
            part = slice(start, start + chunk)
            student_CV = (hidden_MH[part] @ head.T).to(exact)
            pair = RowPair.from_logits(
                _scaled(student_CV, temperature), _scaled(teacher.logits_NV(part), temperature)
            )
            loss_M[part], grad_CV = rows(pair)
            grad_CV.mul_((weight_M[part] / temperature).to(exact)[:, None])
            grad_CV = grad_CV.to(compute_dtype)
            grad_hidden_MH[part] = grad_CV @ head
            if grad_head_VH is not None:  # a frozen head saves a third of the student's products
                grad_head_VH += grad_CV.T @ hidden_MH[part]

        loss_N = loss_M
        grad_hidden_NH = grad_hidden_MH.to(hidden_NH.dtype)
        if packed:
            loss_N = loss_M.new_zeros(len(kept_N)).masked_scatter_(kept_N, loss_M)
            grad_hidden_NH = torch.zeros_like(hidden_NH)
            grad_hidden_NH[kept_N] = grad_hidden_MH.to(hidden_NH.dtype)
        if grad_head_VH is not None:
            grad_head_VH = grad_head_VH.to(head_VH.dtype)
        ctx.save_for_backward(grad_hidden_NH, grad_head_VH)
        ctx.mark_non_differentiable(loss_N)
        return (loss_M * weight_M.to(exact)).sum(), loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_NH, grad_head_VH = ctx.saved_tensors
        grad_head = None if grad_head_VH is None else grad_loss * grad_head_VH
        return grad_loss * grad_hidden_NH, grad_head, *(None,) * 6


def _scaled(logits_CV: Tensor, temperature: float) -> Tensor:
    return logits_CV if temperature == 1.0 else logits_CV / temperature
