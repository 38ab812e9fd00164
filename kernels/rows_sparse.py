"""Rows whose teacher is K tokens and a tail, as a divergence of K + 1 outcomes.

The student's tokens outside of the K form one ghost token whose logit is the log-sum-exp of
theirs; it is summed over exactly those tokens, since 1 minus the mass of the K has no digits left
where the tail is thin. The divergence is then the dense one on [R, K + 1], and the ghost's gradient
is shared out by the softmax of the tokens inside it.

Legend: R rows (tokens) of a block, V vocabulary, K stored tokens, J = K + 1 outcomes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from draftsmith.kernels.divergences import LOWEST_LOGIT
from draftsmith.kernels.objective import Knobs, RowTerms
from draftsmith.kernels.rows_compiled import blocks_of
from draftsmith.kernels.rows_torch import (
    Block,
    is_label,
    row_block,
    student_logits,
    write_gradient,
)


class SparseTeacher(NamedTuple):
    ids_RK: Tensor
    log_p_RK: Tensor
    log_tail_R: Tensor | None


def sparse_row_block(
    block: Block, teacher: SparseTeacher, knobs: Knobs, terms: RowTerms, gradient: bool
) -> Tensor:
    """Like `rows_torch.row_block`; the block's own teacher_RV is not read."""
    logits_RV = student_logits(block, knobs, terms)
    scaled_RV = logits_RV if terms.unit_temperature else logits_RV / knobs.temperature
    stored_RK = ~teacher.log_p_RK.isneginf()
    student_RK = scaled_RV.gather(-1, teacher.ids_RK)
    # A token that is not stored belongs to the others.
    others_RV = scaled_RV.scatter(
        -1, teacher.ids_RK, student_RK.masked_fill(stored_RK, LOWEST_LOGIT)
    )
    log_z_others_R1 = others_RV.logsumexp(-1, keepdim=True)
    student_RK = student_RK.masked_fill(~stored_RK, LOWEST_LOGIT)
    outcomes = Block(
        student_RV=torch.cat([student_RK, log_z_others_R1], dim=-1),
        teacher_RV=_teacher_outcomes(teacher, scaled_RV.dtype),
        weight_R=torch.ones_like(block.weight_R),
    )
    plain = RowTerms(terms.divergence, interpolated=terms.interpolated)
    loss_R = row_block(outcomes, knobs, plain, gradient)

    log_z_R1 = logits_RV.logsumexp(-1, keepdim=True) if terms.labelled else None
    if log_z_R1 is not None:
        label_logit_R1 = torch.where(is_label(block), logits_RV, 0.0).sum(-1, keepdim=True)
        loss_R = loss_R + knobs.label_weight * (log_z_R1 - label_logit_R1).squeeze(-1)
    if gradient:
        gradient_RJ = outcomes.student_RV
        gradient_RV = (others_RV - log_z_others_R1).exp_() * gradient_RJ[:, -1:]
        shared_RK = gradient_RV.gather(-1, teacher.ids_RK)
        own_RK = torch.where(stored_RK, gradient_RJ[:, :-1], shared_RK)
        gradient_RV.scatter_(-1, teacher.ids_RK, own_RK)
        residual_RV = None
        if log_z_R1 is not None:
            residual_RV = (logits_RV - log_z_R1).exp() - is_label(block).to(logits_RV.dtype)
        write_gradient(block, gradient_RV, residual_RV, logits_RV, knobs, terms)
    return loss_R


def sparse_rows(
    block: Block, teacher: SparseTeacher, knobs: Knobs, terms: RowTerms, gradient: bool
) -> Tensor:
    """sparse_row_block on blocks of rows."""
    losses, start = [], 0
    for part in blocks_of(block):
        rows = slice(start, start + len(part.weight_R))
        tail_R = None if teacher.log_tail_R is None else teacher.log_tail_R[rows]
        few = SparseTeacher(teacher.ids_RK[rows], teacher.log_p_RK[rows], tail_R)
        losses.append(sparse_row_block(part, few, knobs, terms, gradient))
        start = rows.stop
    return torch.cat(losses)


def _teacher_outcomes(teacher: SparseTeacher, dtype: torch.dtype) -> Tensor:
    log_p_RK = teacher.log_p_RK.to(dtype)
    if teacher.log_tail_R is None:
        log_tail_R1 = torch.full_like(log_p_RK[:, :1], LOWEST_LOGIT)
    else:
        log_tail_R1 = teacher.log_tail_R[:, None].to(dtype)
    return torch.cat([log_p_RK, log_tail_R1], dim=-1)
