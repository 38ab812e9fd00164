"""Arguments of the fused loss: what is wrong with them, in one sentence that names one.

Legend: N tokens, V vocabulary, H student width, K stored tokens a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftsmith.kernels.objective import Objective, check_softcap
from draftsmith.kernels.signal import HiddenSignal, MixtureSignal, SparseSignal, Teacher


def check_shapes(
    hidden_NH: Tensor,
    head_VH: Tensor,
    teacher: Teacher,
    weight_N: Tensor,
    label_N: Tensor | None,
    bias_V: Tensor | None,
    objective: Objective,
) -> None:
    """Raises ValueError where shapes or kinds disagree; reads no values."""
    for name, tensor in (("student_hidden_NH", hidden_NH), ("student_head_VH", head_VH)):
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point matrix, not {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}."
            )
    if hidden_NH.shape[1] != head_VH.shape[1]:
        raise ValueError(
            f"student_head_VH has width {head_VH.shape[1]}, but student_hidden_NH has width "
            f"{hidden_NH.shape[1]}."
        )
    tokens = hidden_NH.shape[0]
    _check_length("weight_N", weight_N, tokens)
    if not isinstance(teacher, Teacher):
        raise ValueError(
            "teacher must be a HiddenSignal, a LogitsSignal, a SparseSignal or a MixtureSignal, "
            f"not {type(teacher).__name__}."
        )
    if len(teacher) != tokens:
        raise ValueError(
            f"teacher covers {len(teacher)} tokens and student_hidden_NH {tokens}: both must be "
            "the same tokens."
        )
    _check_teacher(teacher)
    if bias_V is not None and bias_V.shape != head_VH.shape[:1]:
        raise ValueError(
            f"student_bias_V must have shape ({head_VH.shape[0]},), not {tuple(bias_V.shape)}."
        )
    if objective.label_weight and label_N is None:
        raise ValueError("label_weight needs label_N, the token id of each hard label.")
    if label_N is not None:
        _check_length("label_N", label_N, tokens)
        if label_N.dtype != torch.int64:
            raise ValueError(f"label_N must hold int64 token ids, not {label_N.dtype}.")


def common_vocabulary(student_vocab: int, teacher: Teacher, vocab_size: int | None) -> int:
    """How many tokens are compared.

    Raises:
        ValueError: the vocabularies differ and vocab_size does not say how many are common, or
            it asks for more than there are.
    """
    smaller = min(student_vocab, teacher.vocab_size)
    if vocab_size is None:
        if student_vocab != teacher.vocab_size:
            raise ValueError(
                f"The student has {student_vocab} tokens and the teacher {teacher.vocab_size}: "
                "both need the same vocabulary, or vocab_size must say how many are common."
            )
        return student_vocab
    if not 0 < vocab_size <= smaller:
        raise ValueError(f"vocab_size must lie in [1, {smaller}], not {vocab_size}.")
    return vocab_size


def check_values(weight_N: Tensor, label_N: Tensor | None, teacher: Teacher, vocab: int) -> None:
    """Raises ValueError for weights that are not finite, and for ids outside the vocabulary."""
    wrong = {"weight_N": ~weight_N.isfinite().all()}
    kept_N = weight_N != 0
    if label_N is not None:
        wrong["label_N"] = (kept_N & ((label_N < 0) | (label_N >= vocab))).any()
    if isinstance(teacher, SparseSignal):
        ids_NK = teacher.ids_NK
        wrong["ids_NK"] = ((ids_NK < 0) | (ids_NK >= vocab)).any()
        sorted_NK = ids_NK.sort(-1).values
        wrong["distinct"] = (sorted_NK[:, 1:] == sorted_NK[:, :-1]).any()
    # One transfer tells about all of them.
    found = dict(zip(wrong, torch.stack(list(wrong.values())).tolist(), strict=True))
    if found["weight_N"]:
        raise ValueError("weight_N must be finite: it holds NaN or inf.")
    for name in ("label_N", "ids_NK"):
        if found.get(name):
            raise ValueError(f"{name} must hold token ids in [0, {vocab}).")
    if found.get("distinct"):
        raise ValueError("ids_NK of a sparse teacher must be distinct within a row.")


def _check_teacher(teacher: Teacher) -> None:
    if isinstance(teacher, HiddenSignal):
        hidden_NG, head_VG = teacher.hidden_NG, teacher.head_VG
        if hidden_NG.shape[1] != head_VG.shape[1] or hidden_NG.dtype != head_VG.dtype:
            raise ValueError(
                f"teacher.hidden_NG ({hidden_NG.shape[1]} wide, {hidden_NG.dtype}) does not fit "
                f"teacher.head_VG ({head_VG.shape[1]} wide, {head_VG.dtype})."
            )
        if teacher.bias_V is not None and teacher.bias_V.shape != head_VG.shape[:1]:
            raise ValueError(f"teacher.bias_V must have shape ({head_VG.shape[0]},).")
        check_softcap("teacher.softcap", teacher.softcap)
    elif isinstance(teacher, MixtureSignal):
        _check_mixture(teacher)
    elif isinstance(teacher, SparseSignal):
        if teacher.ids_NK.dtype != torch.int64 or teacher.ids_NK.dim() != 2:
            raise ValueError("teacher.ids_NK must be a matrix of int64 token ids.")
        if teacher.ids_NK.shape != teacher.log_p_NK.shape:
            raise ValueError("teacher.log_p_NK must have the shape of teacher.ids_NK.")
        if teacher.log_tail_N is not None:
            _check_length("teacher.log_tail_N", teacher.log_tail_N, len(teacher))


def _check_mixture(teacher: MixtureSignal) -> None:
    if teacher.weight_NM.dim() != 2 or teacher.weight_NM.shape[1] != len(teacher.members):
        raise ValueError("teacher.weight_NM must have a column for each member.")
    for member in teacher.members:
        _check_teacher(member)
        _check_length("a member's hidden_NG[:, 0]", member.hidden_NG[:, 0], len(teacher))
        if member.vocab_size != teacher.members[0].vocab_size:
            raise ValueError("All members of a mixture must have the same vocabulary.")
        if member.bias_V is not None or member.softcap is not None:
            raise ValueError("Members of a mixture have neither a bias nor a soft-cap here.")


def _check_length(name: str, tensor: Tensor, tokens: int) -> None:
    if tensor.shape != (tokens,):
        raise ValueError(f"{name} must have shape ({tokens},), not {tuple(tensor.shape)}.")
