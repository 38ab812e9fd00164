"""The loop: project a chunk, turn its logits into their gradient in place, multiply that back.

Memory above the inputs is one chunk's logits of both models plus the head's gradient, whatever N.

Legend: N tokens, M tokens whose weight is not 0, C tokens a chunk, V vocabulary, H student width,
G teacher width, K stored tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draftsmith.kernels.dispatch import RowFunction
from draftsmith.kernels.objective import Objective
from draftsmith.kernels.products import HeadGradient
from draftsmith.kernels.rows_sparse import SparseTeacher
from draftsmith.kernels.rows_torch import Block
from draftsmith.kernels.signal import HiddenSignal, LogitsSignal, SparseSignal, Teacher


@dataclass(frozen=True)
class Student:
    """Hidden states and head, already in the dtype of the products."""

    hidden_NH: Tensor
    head_VH: Tensor
    bias_V: Tensor | None = None


@dataclass(frozen=True)
class Needs:
    """Which gradients to form."""

    hidden: bool = True
    head: bool = True
    bias: bool = False

    @property
    def any(self) -> bool:
        return self.hidden or self.head or self.bias


@dataclass(frozen=True)
class Result:
    """Weighted loss, loss of each token, and the gradients that were asked for.

    grad_hidden_NH is in the products' dtype, the other two in at least float32.
    """

    loss: Tensor
    loss_N: Tensor
    grad_hidden_NH: Tensor | None
    grad_head_VH: Tensor | None
    grad_bias_V: Tensor | None


def run_chunks(
    student: Student,
    teacher: Teacher,
    weight_N: Tensor,
    label_N: Tensor | None,
    objective: Objective,
    rows: RowFunction,
    chunk: int,
    needs: Needs,
) -> Result:
    """Loss and gradients; rows of weight 0 are packed away before the first product."""
    kept_N = weight_N != 0
    if bool(kept_N.all()):
        return _run_packed(student, teacher, weight_N, label_N, objective, rows, chunk, needs)
    packed = Student(student.hidden_NH[kept_N], student.head_VH, student.bias_V)
    labels = None if label_N is None else label_N[kept_N]
    result = _run_packed(
        packed, teacher.select(kept_N), weight_N[kept_N], labels, objective, rows, chunk, needs
    )
    loss_N = result.loss_N.new_zeros(len(kept_N)).masked_scatter_(kept_N, result.loss_N)
    grad_hidden_NH = None
    if result.grad_hidden_NH is not None:
        grad_hidden_NH = torch.zeros_like(student.hidden_NH)
        grad_hidden_NH[kept_N] = result.grad_hidden_NH
    return Result(
        result.loss, loss_N, grad_hidden_NH, result.grad_head_VH, result.grad_bias_V
    )


def _run_packed(
    student: Student,
    teacher: Teacher,
    weight_M: Tensor,
    label_M: Tensor | None,
    objective: Objective,
    rows: RowFunction,
    chunk: int,
    needs: Needs,
) -> Result:
    hidden_MH, head_VH = student.hidden_NH, student.head_VH
    exact = torch.promote_types(hidden_MH.dtype, torch.float32)
    device, vocab = hidden_MH.device, head_VH.shape[0]
    teacher_cap = teacher.softcap if isinstance(teacher, HiddenSignal) else None
    knobs = objective.knobs(teacher_cap, exact, device)
    terms = objective.terms(teacher_cap)
    weight_M = weight_M.to(exact)

    tokens = hidden_MH.shape[0]
    buffer_CV = _logit_buffer(min(chunk, tokens), vocab, hidden_MH.dtype, device)
    projection = _TeacherProjection(teacher, min(chunk, tokens))
    loss_M = torch.empty(tokens, dtype=exact, device=device)
    grad_hidden_MH = torch.empty_like(hidden_MH) if needs.hidden else None
    grad_head = HeadGradient(vocab, hidden_MH.shape[1], exact, device) if needs.head else None
    grad_bias_V = torch.zeros(vocab, dtype=exact, device=device) if needs.bias else None
    for start in range(0, tokens, chunk):
        part = slice(start, min(start + chunk, tokens))
        student_CV = buffer_CV[: part.stop - start]
        torch.mm(hidden_MH[part], head_VH.T, out=student_CV)
        block = Block(
            student_CV,
            projection.logits_CV(part),
            weight_M[part],
            None if label_M is None else label_M[part],
            student.bias_V,
            projection.bias_V,
        )
        loss_M[part] = rows(block, projection.sparse(part), knobs, terms, needs.any)
        # From here on student_CV holds the gradient of its logits.
        if grad_hidden_MH is not None:
            torch.mm(student_CV, head_VH, out=grad_hidden_MH[part])
        if grad_head is not None:  # a frozen head saves a third of the student's products
            grad_head.add(student_CV, hidden_MH[part])
        if grad_bias_V is not None:
            grad_bias_V += student_CV.sum(0, dtype=exact)
    return Result(
        loss=(loss_M * weight_M).sum(),
        loss_N=loss_M,
        grad_hidden_NH=grad_hidden_MH,
        grad_head_VH=None if grad_head is None else grad_head.total(),
        grad_bias_V=grad_bias_V,
    )


class _TeacherProjection:
    """A chunk's teacher logits, without bias and soft-cap, in one buffer for all chunks."""

    def __init__(self, teacher: Teacher, chunk: int) -> None:
        self._teacher = teacher
        self.bias_V = teacher.bias_V if isinstance(teacher, HiddenSignal) else None
        if isinstance(teacher, HiddenSignal):
            hidden_NG = teacher.hidden_NG
            self._buffer_CV = _logit_buffer(
                chunk, teacher.vocab_size, hidden_NG.dtype, hidden_NG.device
            )

    def logits_CV(self, part: slice) -> Tensor | None:
        if isinstance(self._teacher, HiddenSignal):
            logits_CV = self._buffer_CV[: part.stop - part.start]
            torch.mm(self._teacher.hidden_NG[part], self._teacher.head_VG.T, out=logits_CV)
            return logits_CV
        if isinstance(self._teacher, LogitsSignal):
            return self._teacher.dense_NV[part]
        return None

    def sparse(self, part: slice) -> SparseTeacher | None:
        teacher = self._teacher
        if not isinstance(teacher, SparseSignal):
            return None
        tail_N = teacher.log_tail_N
        return SparseTeacher(
            teacher.ids_NK[part],
            teacher.log_p_NK[part],
            None if tail_N is None else tail_N[part],
        )


def _logit_buffer(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.empty(rows, vocab, dtype=dtype)
    # Rows start at multiples of 16 bytes, which a GPU's wide loads and products ask for.
    padded = -(-vocab // 8) * 8
    return torch.empty(rows, padded, dtype=dtype, device=device)[:, :vocab]
