"""The loop: project a tile, turn its logits into their gradient in place; multiply chunks back.

Memory above the inputs is one chunk's student logits, one tile's teacher logits and the head's
gradient, whatever N.

Legend: N tokens, M tokens whose weight is not 0, C tokens a chunk, T tokens a tile,
V vocabulary, H student width, G teacher width, K stored tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draftsmith.kernels.dispatch import RowFunction
from draftsmith.kernels.objective import Objective
from draftsmith.kernels.planner import Tiling
from draftsmith.kernels.products import HeadGradient
from draftsmith.kernels.rows_sparse import SparseTeacher
from draftsmith.kernels.rows_torch import Block
from draftsmith.kernels.signal import (
    HiddenSignal,
    LogitsSignal,
    MixtureSignal,
    SparseSignal,
    Teacher,
)


@dataclass(frozen=True)
class Student:
    """hidden_NH and head_VH are already in the dtype of the products; like_VH has the head's own
    dtype, and is read for that only."""

    hidden_NH: Tensor
    head_VH: Tensor
    like_VH: Tensor
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

    grad_hidden_NH is in the products' dtype, grad_bias_V in at least float32, and grad_head_VH in
    either.
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
    cut: Tiling,
    needs: Needs,
) -> Result:
    """Loss and gradients; rows of weight 0 are packed away before the first product."""
    kept_N = weight_N != 0
    if bool(kept_N.all()):
        return _run_packed(student, teacher, weight_N, label_N, objective, rows, cut, needs)
    packed = Student(student.hidden_NH[kept_N], student.head_VH, student.like_VH, student.bias_V)
    labels = None if label_N is None else label_N[kept_N]
    result = _run_packed(
        packed, teacher.select(kept_N), weight_N[kept_N], labels, objective, rows, cut, needs
    )
    loss_N = result.loss_N.new_zeros(len(kept_N)).masked_scatter_(kept_N, result.loss_N)
    grad_hidden_NH = None
    if result.grad_hidden_NH is not None:
        grad_hidden_NH = torch.zeros_like(student.hidden_NH)
        grad_hidden_NH[kept_N] = result.grad_hidden_NH
    return Result(result.loss, loss_N, grad_hidden_NH, result.grad_head_VH, result.grad_bias_V)


def _run_packed(
    student: Student,
    teacher: Teacher,
    weight_M: Tensor,
    label_M: Tensor | None,
    objective: Objective,
    rows: RowFunction,
    cut: Tiling,
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
    chunks = range(0, tokens, cut.chunk)
    buffer_CV = _logit_buffer(min(cut.chunk, tokens), vocab, hidden_MH.dtype, device)
    projection = _TeacherProjection(teacher, min(cut.tile, tokens))
    loss_M = torch.empty(tokens, dtype=exact, device=device)
    grad_hidden_MH = torch.empty_like(hidden_MH) if needs.hidden else None
    grad_head = HeadGradient(student.like_VH, hidden_MH.dtype, len(chunks)) if needs.head else None
    grad_bias_V = torch.zeros(vocab, dtype=exact, device=device) if needs.bias else None
    for start in chunks:
        end = min(start + cut.chunk, tokens)
        for row in range(start, end, cut.tile):
            tile = slice(row, min(row + cut.tile, end))
            student_TV = buffer_CV[tile.start - start : tile.stop - start]
            torch.mm(hidden_MH[tile], head_VH.T, out=student_TV)
            block = Block(
                student_TV,
                projection.logits_TV(tile),
                weight_M[tile],
                None if label_M is None else label_M[tile],
                student.bias_V,
                projection.bias_V,
            )
            loss_M[tile] = rows(block, projection.sparse(tile), knobs, terms, needs.any)
        # From here on the buffer holds the gradient of the logits.
        gradient_CV, hidden_CH = buffer_CV[: end - start], hidden_MH[start:end]
        if grad_hidden_MH is not None:
            torch.mm(gradient_CV, head_VH, out=grad_hidden_MH[start:end])
        if grad_head is not None:  # a frozen head saves a third of the student's products
            grad_head.add(gradient_CV, hidden_CH)
        if grad_bias_V is not None:
            grad_bias_V += gradient_CV.sum(0, dtype=exact)
    return Result(
        loss=(loss_M * weight_M).sum(),
        loss_N=loss_M,
        grad_hidden_NH=grad_hidden_MH,
        grad_head_VH=None if grad_head is None else grad_head.total(),
        grad_bias_V=grad_bias_V,
    )


def projected_bytes(teacher: Teacher) -> int:
    """Bytes of one logit that a tile holds of the teacher; 0 where none is projected."""
    if isinstance(teacher, MixtureSignal):
        return 3 * max(4, teacher.members[0].hidden_NG.element_size())
    return teacher.hidden_NG.element_size() if isinstance(teacher, HiddenSignal) else 0


class _TeacherProjection:
    """A tile's teacher logits, without bias and soft-cap, in one buffer for all tiles."""

    def __init__(self, teacher: Teacher, tile: int) -> None:
        self._teacher = teacher
        self.bias_V = teacher.bias_V if isinstance(teacher, HiddenSignal) else None
        if isinstance(teacher, HiddenSignal):
            hidden_NG = teacher.hidden_NG
            self._buffer_TV = _logit_buffer(
                tile, teacher.vocab_size, hidden_NG.dtype, hidden_NG.device
            )

    def logits_TV(self, tile: slice) -> Tensor | None:
        if isinstance(self._teacher, HiddenSignal):
            logits_TV = self._buffer_TV[: tile.stop - tile.start]
            torch.mm(self._teacher.hidden_NG[tile], self._teacher.head_VG.T, out=logits_TV)
            return logits_TV
        if isinstance(self._teacher, LogitsSignal):
            return self._teacher.dense_NV[tile]
        if isinstance(self._teacher, MixtureSignal):
            return self._teacher.logits_NV(tile)
        return None

    def sparse(self, tile: slice) -> SparseTeacher | None:
        teacher = self._teacher
        if not isinstance(teacher, SparseSignal):
            return None
        tail_N = teacher.log_tail_N
        return SparseTeacher(
            teacher.ids_NK[tile],
            teacher.log_p_NK[tile],
            None if tail_N is None else tail_N[tile],
        )


def _logit_buffer(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.empty(rows, vocab, dtype=dtype)
    # Rows start at multiples of 16 bytes, which a GPU's wide loads and products ask for.
    padded = -(-vocab // 8) * 8
    return torch.empty(rows, padded, dtype=dtype, device=device)[:, :vocab]
