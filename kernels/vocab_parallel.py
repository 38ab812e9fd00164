"""The fused loss where every process holds a part of the vocabulary of both heads.

Three numbers a token and model are joined between the stages of the rows: the normalisers first,
then the divergence's sums. Logits never leave the process that made them. The gradient of a
process's part of the head stays there; that of the hidden states is summed over processes, which
all hold the same ones.

Legend: N tokens, P tokens of this process's vocabulary, H student width, R rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from draftsmith.kernels.checks import check_shapes, check_values, common_vocabulary
from draftsmith.kernels.chunks import Needs, Student, run_chunks
from draftsmith.kernels.dispatch import RowFunction, choose
from draftsmith.kernels.divergences import Sums
from draftsmith.kernels.objective import Knobs, Objective, RowTerms
from draftsmith.kernels.planner import Tiling, tiling
from draftsmith.kernels.rows_sparse import SparseTeacher
from draftsmith.kernels.rows_torch import Block, row_block
from draftsmith.kernels.signal import HiddenSignal, LogitsSignal


@dataclass(frozen=True)
class AcrossProcesses:
    """Joins row sums over a process group; see rows_torch.Across."""

    group: dist.ProcessGroup

    def log_z(self, largest: Tensor, total: Tensor) -> Tensor:
        most = largest.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        total = total * (largest - most).exp()
        dist.all_reduce(total, group=self.group)
        return most + total.log()

    def sums(self, parts: Sums) -> Sums:
        joined = torch.cat(parts, dim=-1)
        dist.all_reduce(joined, group=self.group)
        return joined.split(1, dim=-1)


def vocab_parallel_divergence(
    student_hidden_NH: Tensor,
    student_head_PH: Tensor,
    teacher: HiddenSignal | LogitsSignal,
    weight_N: Tensor,
    *,
    objective: Objective,
    group: dist.ProcessGroup,
    label_N: Tensor | None = None,
    student_bias_P: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Like `linear.fused_linear_divergence`, on a contiguous part of the vocabulary a process.

    Parts follow one another in the order of ranks and need not be equally long, but a process's
    parts of student and teacher must be the same tokens. Everything else is equal on all
    processes. Torch's rows run uncompiled here, since sums are joined in the middle of them.

    Args:
        teacher: with this process's part of the head, or of the logits.
        label_N: token ids of the whole vocabulary.
        backend: as for the fused loss.

    Returns:
        (loss, loss_N), equal on all processes. The gradient of the hidden states is the whole one.

    Raises:
        ValueError: names the argument whose shape, value or range is wrong. A sparse teacher
            cannot be split.
    """
    if not isinstance(teacher, HiddenSignal | LogitsSignal):
        raise ValueError("teacher must be a HiddenSignal or a LogitsSignal to be split.")
    check_shapes(
        student_hidden_NH, student_head_PH, teacher, weight_N, label_N, student_bias_P, objective
    )
    part = common_vocabulary(student_head_PH.shape[0], teacher, None)
    device = student_hidden_NH.device
    lengths = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
    rank = dist.get_rank(group)
    lengths[rank] = part
    dist.all_reduce(lengths, group=group)
    check_values(weight_N, label_N, teacher, int(lengths.sum()))
    if label_N is not None:  # labels of other processes fall outside of [0, P)
        label_N = label_N - int(lengths[:rank].sum())
    dtype = compute_dtype or student_hidden_NH.dtype
    projected = teacher.hidden_NG.element_size() if isinstance(teacher, HiddenSignal) else 0
    cut = tiling(
        len(weight_N), int(lengths.max()), dtype.itemsize, projected, device.type, chunk_bytes
    )
    loss, loss_N = _VocabParallel.apply(
        student_hidden_NH,
        student_head_PH,
        student_bias_P,
        teacher,
        weight_N,
        label_N if objective.label_weight else None,
        objective,
        _rows(group, choose(backend, device, dtype, part)[0]),
        cut,
        dtype,
        group,
    )
    return loss, loss_N


def _rows(group: dist.ProcessGroup, name: str) -> RowFunction:
    across = AcrossProcesses(group)
    if name == "triton":
        from draftsmith.kernels.rows_triton import triton_rows  # Triton is only there for a GPU

        dense_rows = triton_rows
    else:
        dense_rows = row_block

    def rows(
        block: Block, sparse: SparseTeacher | None, knobs: Knobs, terms: RowTerms, gradient: bool
    ) -> Tensor:
        assert sparse is None, "refused above"
        return dense_rows(block, knobs, terms, gradient, across)

    return rows


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        head_PH: Tensor,
        bias_P: Tensor | None,
        teacher: HiddenSignal | LogitsSignal,
        weight_N: Tensor,
        label_N: Tensor | None,
        objective: Objective,
        rows: RowFunction,
        cut: Tiling,
        dtype: torch.dtype,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        student = Student(hidden_NH.to(dtype), head_PH.to(dtype), head_PH, bias_P)
        needs = Needs(*ctx.needs_input_grad[:3])
        result = run_chunks(student, teacher, weight_N, label_N, objective, rows, cut, needs)
        if result.grad_hidden_NH is not None:
            # Summed in float32: the parts may nearly cancel.
            exact = torch.promote_types(dtype, torch.float32)
            grad_hidden_NH = result.grad_hidden_NH.to(exact)
            dist.all_reduce(grad_hidden_NH, group=group)
            result = replace(result, grad_hidden_NH=grad_hidden_NH)
        gradients = (result.grad_hidden_NH, result.grad_head_VH, result.grad_bias_V)
        inputs = (hidden_NH, head_PH, bias_P)
        ctx.save_for_backward(
            *(
                None if gradient is None or one is None else gradient.to(one.dtype)
                for gradient, one in zip(gradients, inputs, strict=True)
            )
        )
        ctx.mark_non_differentiable(result.loss_N)
        return result.loss, result.loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if saved is None else saved * grad_loss.to(saved.dtype)
            for saved in ctx.saved_tensors
        ]
        return (*scaled, *(None,) * 8)
