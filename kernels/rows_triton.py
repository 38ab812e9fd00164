"""The row stages as Triton kernels: one program a row, the gradient written over the logits.

Rows are read in alternate directions by the three stages, so that a stage finds in the cache what
the one before read last. A whole vocabulary takes one launch; a vocabulary that is split over
processes takes one launch a stage, with sums in between. bfloat16 is only loaded and stored:
everything is computed in float32.

Legend: R rows (tokens), V vocabulary.
"""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
import torch
import triton
import triton.language as tl
from torch import Tensor

from draftsmith.kernels import divergences_triton as forms
from draftsmith.kernels.divergences import LOWEST_LOGIT
from draftsmith.kernels.objective import Knobs, RowTerms
from draftsmith.kernels.rows_torch import Across, Block

_LOWEST = tl.constexpr(LOWEST_LOGIT)
_ALL = tl.constexpr(0)
_NORMALISE = tl.constexpr(1)
_SUM = tl.constexpr(2)
_APPLY = tl.constexpr(3)
# What the stages leave for each other: columns of the scratch [R, 10], float32.
# 0..1 student, 2..3 teacher, 4..5 student at temperature 1: largest logit, sum of exp;
# 6..8 the divergence's sums; 9 the label's logit.
SCRATCH = 10


@triton.jit
def _logits(pointer, bias, cap, at, inside, BIASED: tl.constexpr, CAPPED: tl.constexpr):
    """Logits after bias and soft-cap; columns outside of the row are -inf."""
    z = tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        z += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    if CAPPED:
        # tanh from the exponential that does not overflow
        e = forms.exp(-2 * tl.abs(z / cap))
        z = cap * tl.where(z < 0, -1.0, 1.0) * (1 - e) / (1 + e)
    return tl.where(inside, tl.maximum(z, _LOWEST), float("-inf"))


@triton.jit
def _pair(
    student, teacher, student_bias, teacher_bias, knobs, at, inside,
    STUDENT_BIASED: tl.constexpr, TEACHER_BIASED: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr,
    INTERPOLATED: tl.constexpr, UNIT_TEMPERATURE: tl.constexpr,
):  # fmt: skip
    """Student logits, and both models' logits over the temperature (the target mixed in)."""
    z = _logits(
        student, student_bias, tl.load(knobs + 4), at, inside, STUDENT_BIASED, STUDENT_CAPPED
    )
    t = _logits(
        teacher, teacher_bias, tl.load(knobs + 5), at, inside, TEACHER_BIASED, TEACHER_CAPPED
    )
    s = z
    if not UNIT_TEMPERATURE:
        temperature = tl.load(knobs + 1)
        s = z / temperature
        t = t / temperature
    if INTERPOLATED:
        share = tl.load(knobs + 2)
        mixed = (1 - share) * s + share * t
        t = tl.where(inside, mixed, float("-inf"))
    return z, s, t


@triton.jit
def _grow(largest, total, z):
    """Running maximum and sum of exp(z - maximum), one block further."""
    new = tl.maximum(largest, tl.max(z, 0))
    return new, total * forms.exp(largest - new) + tl.sum(forms.exp(z - new), 0)


@triton.jit
def _rows(
    student_RV, teacher_RV, weight_R, label_R, student_bias, teacher_bias, knobs, scratch, loss_R,
    student_stride, teacher_stride, V,
    STAGE: tl.constexpr, DIVERGENCE: tl.constexpr, GRADIENT: tl.constexpr,
    LABELLED: tl.constexpr, INTERPOLATED: tl.constexpr, UNIT_TEMPERATURE: tl.constexpr,
    STUDENT_BIASED: tl.constexpr, TEACHER_BIASED: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    student = student_RV + row * student_stride
    teacher = teacher_RV + row * teacher_stride
    scratch += row * 10  # SCRATCH
    k = tl.load(knobs)
    column = tl.arange(0, BLOCK)
    label = -1
    if LABELLED:
        label = tl.load(label_R + row)

    # A finite floor: a whole block may be excluded tokens, and -inf - -inf is NaN.
    s_max, s_sum = -2e30, 0.0
    t_max, t_sum = -2e30, 0.0
    z_max, z_sum = -2e30, 0.0
    if (STAGE == _ALL) | (STAGE == _NORMALISE):
        for block in range(BLOCKS):
            at = block * BLOCK + column
            z, s, t = _pair(
                student, teacher, student_bias, teacher_bias, knobs, at, at < V,
                STUDENT_BIASED, TEACHER_BIASED, STUDENT_CAPPED, TEACHER_CAPPED,
                INTERPOLATED, UNIT_TEMPERATURE,
            )  # fmt: skip
            s_max, s_sum = _grow(s_max, s_sum, s)
            t_max, t_sum = _grow(t_max, t_sum, t)
            if LABELLED and not UNIT_TEMPERATURE:
                z_max, z_sum = _grow(z_max, z_sum, z)
        if LABELLED and UNIT_TEMPERATURE:
            z_max, z_sum = s_max, s_sum
    else:
        s_max, s_sum = tl.load(scratch), tl.load(scratch + 1)
        t_max, t_sum = tl.load(scratch + 2), tl.load(scratch + 3)
        z_max, z_sum = tl.load(scratch + 4), tl.load(scratch + 5)
    if STAGE == _NORMALISE:
        tl.store(scratch, s_max)
        tl.store(scratch + 1, s_sum)
        tl.store(scratch + 2, t_max)
        tl.store(scratch + 3, t_sum)
        tl.store(scratch + 4, z_max)
        tl.store(scratch + 5, z_sum)
    s_log_z = s_max + tl.log(s_sum)
    t_log_z = t_max + tl.log(t_sum)

    s0, s1, s2, label_logit = 0.0, 0.0, 0.0, 0.0
    if (STAGE == _ALL) | (STAGE == _SUM):
        for block in range(BLOCKS):
            at = (BLOCKS - 1 - block) * BLOCK + column
            inside = at < V
            z, s, t = _pair(
                student, teacher, student_bias, teacher_bias, knobs, at, inside,
                STUDENT_BIASED, TEACHER_BIASED, STUDENT_CAPPED, TEACHER_CAPPED,
                INTERPOLATED, UNIT_TEMPERATURE,
            )  # fmt: skip
            x = tl.where(inside, s - s_log_z, _LOWEST)
            y = tl.where(inside, t - t_log_z, _LOWEST)
            a0, a1, a2 = forms.addends(DIVERGENCE, forms.exp(x), forms.exp(y), x - y, k)
            s0 += tl.sum(a0, 0)
            s1 += tl.sum(a1, 0)
            s2 += tl.sum(a2, 0)
            if LABELLED:
                label_logit += tl.sum(tl.where(at == label, z, 0.0), 0)
    else:
        s0, s1, s2 = tl.load(scratch + 6), tl.load(scratch + 7), tl.load(scratch + 8)
        label_logit = tl.load(scratch + 9)
    if STAGE == _SUM:
        tl.store(scratch + 6, s0)
        tl.store(scratch + 7, s1)
        tl.store(scratch + 8, s2)
        tl.store(scratch + 9, label_logit)

    if (STAGE == _ALL) | (STAGE == _APPLY):
        loss = forms.loss(DIVERGENCE, s0, s1, s2, k)
        z_log_z = 0.0
        if LABELLED:
            z_log_z = z_max + tl.log(z_sum)
            loss += tl.load(knobs + 3) * (z_log_z - label_logit)
        tl.store(loss_R + row, loss)
        if GRADIENT:
            weight = tl.load(weight_R + row)
            total = forms.slope_total(DIVERGENCE, s0, s1, s2, k)
            for block in range(BLOCKS):
                at = block * BLOCK + column
                inside = at < V
                z, s, t = _pair(
                    student, teacher, student_bias, teacher_bias, knobs, at, inside,
                    STUDENT_BIASED, TEACHER_BIASED, STUDENT_CAPPED, TEACHER_CAPPED,
                    INTERPOLATED, UNIT_TEMPERATURE,
                )  # fmt: skip
                x = tl.where(inside, s - s_log_z, _LOWEST)
                y = tl.where(inside, t - t_log_z, _LOWEST)
                q = forms.exp(x)
                g = forms.slope(DIVERGENCE, q, forms.exp(y), x - y, s0, s2, k) - q * total
                if not UNIT_TEMPERATURE:
                    g = g / tl.load(knobs + 1)
                if LABELLED:
                    g += tl.load(knobs + 3) * (
                        forms.exp(z - z_log_z) - tl.where(at == label, 1.0, 0.0)
                    )
                if STUDENT_CAPPED:
                    ratio = z / tl.load(knobs + 4)
                    g = g * (1 - ratio * ratio)
                g = (g * weight).to(student_RV.dtype.element_ty)
                tl.store(student + at, g, mask=inside)


def triton_rows(
    block: Block, knobs: Knobs, terms: RowTerms, gradient: bool, across: Across | None = None
) -> Tensor:
    """Like `rows_torch.row_block`, on all rows at once."""
    launch = _Launch(block, knobs, terms, gradient)
    if across is None:
        launch(_ALL)
        return launch.loss_R
    scratch = launch.scratch
    launch(_NORMALISE)
    for first in (0, 2, 4) if terms.labelled else (0, 2):
        log_z_R1 = across.log_z(scratch[:, first, None], scratch[:, first + 1, None])
        scratch[:, first], scratch[:, first + 1] = log_z_R1[:, 0], 1.0
    launch(_SUM)
    sums = across.sums(scratch[:, 6:].clone().split(1, dim=-1))
    scratch[:, 6:] = torch.cat(tuple(sums), dim=-1)
    launch(_APPLY)
    return launch.loss_R


class _Launch:
    """The arguments of one call, for each of its stages."""

    def __init__(self, block: Block, knobs: Knobs, terms: RowTerms, gradient: bool) -> None:
        student_RV, teacher_RV = block.student_RV, block.teacher_RV
        assert teacher_RV is not None, "a sparse teacher has rows of its own"
        assert student_RV.stride(1) == 1, "rows are written where they lie"
        if teacher_RV.stride(1) != 1:
            teacher_RV = teacher_RV.contiguous()
        rows, vocab = student_RV.shape
        device = student_RV.device
        self.loss_R = torch.empty(rows, dtype=torch.float32, device=device)
        self.scratch = torch.empty(rows, SCRATCH, dtype=torch.float32, device=device)
        block_size, warps = _shape(vocab)
        nothing = self.loss_R
        self._tensors = (
            student_RV,
            teacher_RV,
            block.weight_R.to(torch.float32).contiguous(),
            nothing if block.label_R is None else block.label_R,
            nothing if block.student_bias_V is None else block.student_bias_V,
            nothing if block.teacher_bias_V is None else block.teacher_bias_V,
            torch.stack(knobs).to(torch.float32),
            self.scratch,
            self.loss_R,
            student_RV.stride(0),
            teacher_RV.stride(0),
            vocab,
        )
        self._options = {
            "DIVERGENCE": forms.NUMBER[terms.divergence],
            "GRADIENT": gradient,
            "LABELLED": terms.labelled,
            "INTERPOLATED": terms.interpolated,
            "UNIT_TEMPERATURE": terms.unit_temperature,
            "STUDENT_BIASED": block.student_bias_V is not None,
            "TEACHER_BIASED": block.teacher_bias_V is not None,
            "STUDENT_CAPPED": terms.student_capped,
            "TEACHER_CAPPED": terms.teacher_capped,
            "BLOCK": block_size,
            "BLOCKS": triton.cdiv(vocab, block_size),
            "num_warps": warps,
        }

    def __call__(self, stage: tl.constexpr) -> None:
        if len(self.loss_R):
            _rows[(len(self.loss_R),)](*self._tensors, STAGE=stage.value, **self._options)


def _shape(vocab: int) -> tuple[int, int]:
    """Columns of a block and warps of a program: wide enough to keep many loads in flight, and
    narrow enough that a block's values stay in registers."""
    block = min(8192, triton.next_power_of_2(vocab))
    return block, max(4, block // 512)
