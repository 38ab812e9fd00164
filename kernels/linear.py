"""Student head -> divergence from the teacher, chunk by chunk, without ever holding [N, V] twice.

The gradients are formed in the forward pass, while a chunk's logits are at hand, and backward only
scales them. The whole call is one operation to torch.compile.

Legend: N tokens, V vocabulary, H student width, G teacher width, K stored tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from draftsmith.kernels.checks import check_shapes, check_values, common_vocabulary
from draftsmith.kernels.chunks import Needs, Student, projected_bytes, run_chunks
from draftsmith.kernels.dispatch import check_backend, row_function
from draftsmith.kernels.objective import Objective
from draftsmith.kernels.planner import tiling
from draftsmith.kernels.signal import (
    HiddenSignal,
    LogitsSignal,
    MixtureSignal,
    SparseSignal,
    Teacher,
)


def fused_linear_divergence(
    student_hidden_NH: Tensor,
    student_head_VH: Tensor,
    teacher: Teacher,
    weight_N: Tensor,
    *,
    divergence: str,
    beta: float = 0.5,
    alpha: float = 0.1,
    eta: float = 3.0,
    temperature: float = 1.0,
    interpolation: float | None = None,
    label_N: Tensor | None = None,
    label_weight: float = 0.0,
    softcap: float | None = None,
    student_bias_V: Tensor | None = None,
    vocab_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
    chunk_bytes: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """sum_n weight_n (D(teacher_n, student_n) + label_weight cross_entropy_n).

    Differentiable in hidden states, head and bias; what does not require a gradient costs none.
    Not differentiable twice. On a GPU one synchronisation a call tells which weights are 0.

    Args:
        student_hidden_NH: hidden states [N, H].
        student_head_VH: vocabulary projection [V, H].
        teacher: hidden states [N, G] with head [V, G] (G need not be H), dense logits [N, V],
            K token ids a row with log-probabilities and a tail, or a mixture of hidden states.
        weight_N: weight of each token, normaliser included; tokens of weight 0 cost nothing.
        divergence, beta, alpha, eta, temperature, interpolation, label_weight, softcap: see
            `objective.Objective`.
        label_N: token id of each hard label; ignored where the weight is 0.
        student_bias_V: added to the student's logits.
        vocab_size: compare only the first so many tokens, where the vocabularies are padded
            differently. The others get no probability and no gradient.
        compute_dtype: of the student's matrix products; the hidden states' own by default.
            Softmax and divergence are always computed in at least float32.
        chunk_bytes: of a chunk's logits, both models together. It changes speed and memory only.
        backend: `auto`, `torch`, `eager` or `triton`; see `dispatch`.

    Returns:
        (loss, loss_N): the differentiable weighted sum, and each token's loss, detached and 0
        where the weight is 0.

    Raises:
        ValueError: names the argument whose shape, value or range is wrong.
    """
    objective = Objective(
        divergence, beta, alpha, eta, temperature, interpolation, label_weight, softcap
    )
    check_backend(backend)
    check_shapes(
        student_hidden_NH, student_head_VH, teacher, weight_N, label_N, student_bias_V, objective
    )
    vocab = common_vocabulary(student_head_VH.shape[0], teacher, vocab_size)
    kind, teacher_tensors, teacher_softcap = _flatten(teacher)
    trained = [student_hidden_NH, student_head_VH, student_bias_V]
    loss, loss_N, *_ = _fused_linear_divergence(
        student_hidden_NH,
        student_head_VH,
        student_bias_V,
        kind,
        *teacher_tensors,
        teacher_softcap,
        weight_N,
        label_N if label_weight else None,
        vocab,
        compute_dtype or student_hidden_NH.dtype,
        chunk_bytes,
        backend,
        [torch.is_grad_enabled() and one is not None and one.requires_grad for one in trained],
        **asdict(objective),
    )
    return loss, loss_N.detach()


@torch.library.custom_op("draftsmith::fused_linear_divergence", mutates_args=())
def _fused_linear_divergence(
    hidden_NH: Tensor,
    head_VH: Tensor,
    bias_V: Tensor | None,
    teacher_kind: str,
    teacher_first: Tensor,
    teacher_second: Tensor | None,
    teacher_third: Tensor | None,
    teacher_more: Sequence[Tensor],
    teacher_softcap: float | None,
    weight_N: Tensor,
    label_N: Tensor | None,
    vocab: int,
    compute_dtype: torch.dtype,
    chunk_bytes: int | None,
    backend: str,
    needs: Sequence[bool],
    divergence: str,
    beta: float,
    alpha: float,
    eta: float,
    temperature: float,
    interpolation: float | None,
    label_weight: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, loss_N, gradients of hidden states, head and bias; empty where not needed)."""
    objective = Objective(
        divergence, beta, alpha, eta, temperature, interpolation, label_weight, softcap
    )
    teacher = _unflatten(
        teacher_kind,
        (teacher_first, teacher_second, teacher_third, teacher_more),
        teacher_softcap,
        vocab,
    )
    check_values(weight_N, label_N, teacher, vocab)
    student = Student(
        hidden_NH.to(compute_dtype),
        head_VH[:vocab].to(compute_dtype),
        head_VH[:vocab],
        None if bias_V is None else bias_V[:vocab],
    )
    projected = projected_bytes(teacher)
    size, device = compute_dtype.itemsize, hidden_NH.device
    result = run_chunks(
        student,
        teacher,
        weight_N,
        label_N,
        objective,
        row_function(backend, device, compute_dtype, vocab),
        tiling(len(weight_N), vocab, size, projected, device.type, chunk_bytes),
        Needs(*needs),
    )
    return (
        result.loss,
        result.loss_N,
        _like(result.grad_hidden_NH, hidden_NH),
        _like(result.grad_head_VH, head_VH),
        _like(result.grad_bias_V, bias_V),
    )


def _like(gradient: Tensor | None, input_: Tensor | None) -> Tensor:
    """A gradient in its input's dtype; rows beyond the common vocabulary get zeros."""
    if gradient is None:
        return torch.empty(0)
    assert input_ is not None, "only an input has a gradient"
    if gradient.shape == input_.shape:
        return gradient.to(input_.dtype)
    whole = torch.zeros_like(input_)
    whole[: len(gradient)] = gradient
    return whole


@_fused_linear_divergence.register_fake
def _(
    hidden_NH: Tensor,
    head_VH: Tensor,
    bias_V: Tensor | None,
    teacher_kind: str,
    teacher_first: Tensor,
    teacher_second: Tensor | None,
    teacher_third: Tensor | None,
    teacher_more: Sequence[Tensor],
    teacher_softcap: float | None,
    weight_N: Tensor,
    label_N: Tensor | None,
    vocab: int,
    compute_dtype: torch.dtype,
    chunk_bytes: int | None,
    backend: str,
    needs: Sequence[bool],
    *objective: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    exact = torch.promote_types(compute_dtype, torch.float32)
    gradients = [
        torch.empty_like(one) if need and one is not None else torch.empty(0)
        for one, need in zip((hidden_NH, head_VH, bias_V), needs, strict=True)
    ]
    loss_N = weight_N.new_empty(weight_N.shape, dtype=exact)
    return loss_N.new_empty(()), loss_N, gradients[0], gradients[1], gradients[2]


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.members = len(inputs[_MEMBERS])


def _scale_gradients(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    scaled = [
        saved * grad_loss.to(saved.dtype) if grad_loss is not None and saved.numel() else None
        for saved in ctx.saved_tensors
    ]
    gradients: list[Any] = [*scaled, *(None,) * (len(_NAMES) - 3)]
    gradients[_MEMBERS] = [None] * ctx.members  # a list of tensors has a list of gradients
    return tuple(gradients)


_NAMES = [one.name for one in _fused_linear_divergence._opoverload._schema.arguments]
_MEMBERS = _NAMES.index("teacher_more")
_fused_linear_divergence.register_autograd(_scale_gradients, setup_context=_save_gradients)


_TeacherTensors = tuple[Tensor, Tensor | None, Tensor | None, Sequence[Tensor]]


def _flatten(teacher: Teacher) -> tuple[str, _TeacherTensors, float | None]:
    """A signal as an operation of torch can take it."""
    if isinstance(teacher, HiddenSignal):
        return "hidden", (teacher.hidden_NG, teacher.head_VG, teacher.bias_V, []), teacher.softcap
    if isinstance(teacher, LogitsSignal):
        return "logits", (teacher.dense_NV, None, None, []), None
    if isinstance(teacher, MixtureSignal):
        members = [one for each in teacher.members for one in (each.hidden_NG, each.head_VG)]
        return "mixture", (teacher.weight_NM, teacher.token_D, None, members), None
    return "sparse", (teacher.ids_NK, teacher.log_p_NK, teacher.log_tail_N, []), None


def _unflatten(kind: str, tensors: _TeacherTensors, softcap: float | None, vocab: int) -> Teacher:
    first, second, third, more = tensors
    if kind == "logits":
        return LogitsSignal(first[:, :vocab])
    if kind == "mixture":
        pairs = zip(more[::2], more[1::2], strict=True)
        members = tuple(HiddenSignal(hidden_NG, head_VG) for hidden_NG, head_VG in pairs)
        return MixtureSignal(members, first, None if second is None else second[:vocab])
    assert second is not None, "only dense logits are a single tensor"
    if kind == "hidden":
        bias_V = None if third is None else third[:vocab]
        return HiddenSignal(first, second[:vocab], bias_V, softcap)
    return SparseSignal(first, second, vocab, third)
