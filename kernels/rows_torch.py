"""Loss and logit gradient of a block of rows, in torch: run as it stands or compiled.

Three stages, each a function of what the one before summed over the vocabulary: normalisers, the
divergence's sums, loss and gradient. Where a vocabulary is split over processes, `across` adds up
the parts between the stages; on a single process it does nothing.

Legend: R rows (tokens) of a block, V vocabulary (a process's own part of it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from draftsmith.kernels.divergences import DEFINITIONS, LOWEST_LOGIT, Pair, Sums
from draftsmith.kernels.objective import Knobs, RowTerms


class Block(NamedTuple):
    """Rows of both models.

    student_RV, teacher_RV: logits as the products gave them, in any floating dtype; no teacher_RV
        where the teacher is sparse.
    weight_R: factor of each row's gradient.
    label_R: column of the hard label; outside of [0, V) where another process holds it.
    student_bias_V, teacher_bias_V: added to the logits.
    """

    student_RV: Tensor
    teacher_RV: Tensor | None
    weight_R: Tensor
    label_R: Tensor | None = None
    student_bias_V: Tensor | None = None
    teacher_bias_V: Tensor | None = None


class Across(Protocol):
    """Joins sums over the processes that hold parts of the vocabulary."""

    def log_z(self, largest: Tensor, total: Tensor) -> Tensor:
        """log sum exp over all parts, from a part's maximum m and its sum of exp(z - m)."""
        ...

    def sums(self, parts: Sums) -> Sums:
        """Totals over all parts."""
        ...


class OneProcess:
    """The whole vocabulary is here."""

    def log_z(self, largest: Tensor, total: Tensor) -> Tensor:
        return largest + total.log()

    def sums(self, parts: Sums) -> Sums:
        return parts


def row_block(
    block: Block, knobs: Knobs, terms: RowTerms, gradient: bool, across: Across | None = None
) -> Tensor:
    """Loss of each row; overwrites student_RV with weight times the loss's gradient, if asked.

    Returns:
        loss_R, without the weight, in the knobs' dtype.
    """
    across = across or OneProcess()
    definition = DEFINITIONS[terms.divergence]
    logits_RV = student_logits(block, knobs, terms)
    scaled_RV = logits_RV if terms.unit_temperature else logits_RV / knobs.temperature
    target_RV = teacher_logits(block, knobs, terms)
    if terms.interpolated:
        target_RV = torch.lerp(scaled_RV, target_RV, knobs.interpolation)

    log_q_RV = scaled_RV - across.log_z(*_normaliser(scaled_RV))
    pair = Pair.of(log_q_RV, target_RV - across.log_z(*_normaliser(target_RV)))
    addends = definition.addends(pair, knobs.parameter)
    if terms.labelled:
        is_label_RV = is_label(block)
        addends = (*addends, torch.where(is_label_RV, logits_RV, 0.0))
    sums: Sequence[Tensor] = across.sums(tuple(addend.sum(-1, keepdim=True) for addend in addends))
    if terms.labelled:
        *sums, label_logit_R1 = sums
    loss_R1 = definition.loss(sums, knobs.parameter)
    if terms.labelled:
        log_z_R1 = across.log_z(*_normaliser(logits_RV))
        loss_R1 = loss_R1 + knobs.label_weight * (log_z_R1 - label_logit_R1)

    if gradient:
        slope_RV, total = definition.slope(pair, sums, knobs.parameter)
        gradient_RV = slope_RV - pair.q_RV * total
        residual_RV = None
        if terms.labelled:
            residual_RV = (logits_RV - log_z_R1).exp() - is_label_RV.to(logits_RV.dtype)
        write_gradient(block, gradient_RV, residual_RV, logits_RV, knobs, terms)
    return loss_R1.squeeze(-1)


def write_gradient(
    block: Block,
    gradient_RV: Tensor,
    residual_RV: Tensor | None,
    logits_RV: Tensor,
    knobs: Knobs,
    terms: RowTerms,
) -> None:
    """Overwrite the student's logits with the gradient by what the product gave.

    Args:
        gradient_RV: gradient of the divergence by the scaled logits.
        residual_RV: gradient of the cross-entropy by the logits, where there are labels.
        logits_RV: the student's logits after bias and soft-cap.
    """
    if not terms.unit_temperature:
        gradient_RV = gradient_RV / knobs.temperature
    if residual_RV is not None:
        gradient_RV = gradient_RV + knobs.label_weight * residual_RV
    if terms.student_capped:
        gradient_RV = gradient_RV * (1 - (logits_RV / knobs.student_cap) ** 2)
    block.student_RV.copy_(gradient_RV * block.weight_R[:, None].to(gradient_RV.dtype))


def student_logits(block: Block, knobs: Knobs, terms: RowTerms) -> Tensor:
    """The student's logits after bias and soft-cap, not yet divided by the temperature."""
    raw_RV = block.student_RV.to(knobs.parameter.dtype)
    if block.student_bias_V is not None:
        raw_RV = raw_RV + block.student_bias_V
    if terms.student_capped:
        raw_RV = knobs.student_cap * torch.tanh(raw_RV / knobs.student_cap)
    return raw_RV.clamp_min(LOWEST_LOGIT)


def teacher_logits(block: Block, knobs: Knobs, terms: RowTerms) -> Tensor:
    """The teacher's logits after bias, soft-cap and temperature."""
    assert block.teacher_RV is not None, "a sparse teacher has rows of its own"
    raw_RV = block.teacher_RV.to(knobs.parameter.dtype)
    if block.teacher_bias_V is not None:
        raw_RV = raw_RV + block.teacher_bias_V
    if terms.teacher_capped:
        raw_RV = knobs.teacher_cap * torch.tanh(raw_RV / knobs.teacher_cap)
    raw_RV = raw_RV.clamp_min(LOWEST_LOGIT)
    return raw_RV if terms.unit_temperature else raw_RV / knobs.temperature


def _normaliser(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    largest_R1 = logits_RV.amax(-1, keepdim=True)
    return largest_R1, (logits_RV - largest_R1).exp().sum(-1, keepdim=True)


def is_label(block: Block) -> Tensor:
    assert block.label_R is not None, "the terms say that there are labels"
    column_V = torch.arange(block.student_RV.shape[-1], device=block.label_R.device)
    return column_V == block.label_R[:, None]
