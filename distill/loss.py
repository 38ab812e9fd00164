"""From an objective's charge to the loss of a micro-batch.

Hard labels are those of recorded text. A student that may propose only some tokens has no
probability for the others: where the label is one of them, the token is charged its divergence
alone, and costs nothing where the objective has none.

Legend: N tokens, D columns of the student's head (its draft vocabulary, or all), H width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from draftsmith.distill.batch import Batch, Example
from draftsmith.distill.objectives import Charge
from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.signal import SparseSignal
from draftsmith.kernels.signal import Teacher as Signal


def charged_loss(
    hidden_NH: Tensor,
    head_DH: Tensor,
    signal: Signal | None,
    label_N: Tensor,
    charge: Charge,
    weight_N: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """sum_n weight_n charge_n, differentiable in hidden states and head.

    Args:
        signal: of the teacher, over the same D columns; None where the charge has no divergence.
        label_N: column of each hard label, -1 where there is none.
        weight_N: 0 for tokens that are not trained.
        dtype: of the student's matrix products.

    Returns:
        (loss, loss_N): the weighted sum, and each token's charge, detached; 0 where it is not
        trained.
    """
    compare = partial(
        fused_linear_divergence,
        hidden_NH,
        head_DH,
        divergence=charge.divergence,
        beta=charge.beta,
        alpha=charge.alpha,
        eta=charge.eta,
        temperature=charge.temperature,
        interpolation=charge.interpolation,
        compute_dtype=dtype,
    )
    soft, hard = charge.divergence_weight, charge.label_weight
    if soft == 0:
        loss, loss_N = fused_linear_divergence(
            hidden_NH,
            head_DH,
            _one_hot(label_N, head_DH.shape[0]),
            weight_N * hard * (label_N >= 0),
            divergence="forward_kl",  # from a one-hot teacher: the cross-entropy
            compute_dtype=dtype,
        )
        return loss, loss_N * hard
    assert signal is not None, "a divergence needs a teacher"
    if hard == 0:
        loss, loss_N = compare(signal, weight_N * soft)
        return loss, loss_N * soft
    labelled_N = label_N >= 0
    loss, loss_N = compare(
        signal, weight_N * soft * labelled_N, label_N=label_N, label_weight=hard / soft
    )
    if not labelled_N.all():
        other, other_N = compare(signal, weight_N * soft * ~labelled_N)
        loss, loss_N = loss + other, loss_N + other_N
    return loss, loss_N * soft


def label_columns(batch: Batch, token_D: Tensor | None) -> Tensor:
    """Column of each label in the student's head; -1 where there is no label, or no column.

    Args:
        token_D: ascending token ids of the columns; None where the head has all.
    """
    label_N = batch.labels_N
    if token_D is not None:
        column_N = torch.searchsorted(token_D, label_N).clamp_max(len(token_D) - 1)
        label_N = torch.where(token_D[column_N] == label_N, column_N, -1)
    return torch.where(batch.recorded_N, label_N, -1)


def count_trained(
    examples: Sequence[Example], charge: Charge, share: float, token_D: Tensor | None
) -> int:
    """Tokens of `examples` that are charged anything, known before any forward pass.

    Args:
        share: of each response's tokens that is trained.
    """
    if charge.divergence_weight:
        return sum(num_kept(len(example.response), share) for example in examples)
    tokens = [token for one in examples if one.has_labels for token in one.response]
    if token_D is None:
        return len(tokens)
    return int(torch.isin(torch.tensor(tokens, device=token_D.device), token_D).sum())


def hardest_tokens(gap_N: Tensor, lengths: Sequence[int], share: float) -> Tensor:
    """True for the `share` of each response's tokens with the largest gap; see `adaspec`."""
    keep_N = torch.zeros_like(gap_N, dtype=torch.bool)
    start = 0
    for length in lengths:
        order = gap_N[start : start + length].argsort(descending=True, stable=True)
        keep_N[start + order[: num_kept(length, share)]] = True
        start += length
    return keep_N


def num_kept(length: int, share: float) -> int:
    """The share of `length` tokens, rounded up but for rounding errors of the product."""
    return math.ceil(share * length - 1e-9)


def _one_hot(label_N: Tensor, vocab_size: int) -> SparseSignal:
    ids_N1 = label_N.clamp_min(0)[:, None]
    return SparseSignal(ids_N1, torch.zeros_like(ids_N1, dtype=torch.float32), vocab_size)
