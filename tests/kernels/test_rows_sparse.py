"""A teacher of K tokens and a tail, against the dense divergence of the merged outcomes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.signal import LogitsSignal, SparseSignal
from tests.kernels.textbook import KNOBS, divergence_N

N, V, H, K = 7, 31, 5, 4


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    hidden, head = (
        torch.randn(size, H, dtype=torch.float64, generator=generator).requires_grad_()
        for size in (N, V)
    )
    teacher_NV = 2 * torch.randn(N, V, dtype=torch.float64, generator=generator)
    weight_N = torch.rand(N, dtype=torch.float64, generator=generator)
    weight_N[3] = 0
    return hidden, head, teacher_NV.log_softmax(-1), weight_N


def top(log_p_NV: Tensor, count: int, *, tail: bool = True) -> SparseSignal:
    log_p_NK, ids_NK = log_p_NV.topk(count, dim=-1)
    log_tail_N = (1 - log_p_NK.exp().sum(-1)).log() if tail else None
    return SparseSignal(ids_NK, log_p_NK, V, log_tail_N)


def merged_NJ(log_q_NV: Tensor, ids_NK: Tensor) -> Tensor:
    others_NV = log_q_NV.scatter(-1, ids_NK, -torch.inf)
    return torch.cat([log_q_NV.gather(-1, ids_NK), others_NV.logsumexp(-1, keepdim=True)], -1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equals_autograd_on_the_merged_outcomes(name: str, temperature: float) -> None:
    hidden, head, log_p_NV, weight_N = inputs()
    signal = top(log_p_NV, K)
    assert signal.log_tail_N is not None
    label_N = torch.arange(N)
    logits_NV = hidden @ head.T
    student_NJ = merged_NJ((logits_NV / temperature).log_softmax(-1), signal.ids_NK)
    teacher_NJ = torch.cat([signal.log_p_NK, signal.log_tail_N[:, None]], -1)
    entropy_N = functional.cross_entropy(logits_NV, label_N, reduction="none")
    expected = (weight_N * (divergence_N(name, student_NJ, teacher_NJ) + 0.3 * entropy_N)).sum()
    loss, _ = fused_linear_divergence(
        hidden, head, signal, weight_N, divergence=name, **KNOBS, temperature=temperature,
        label_N=label_N, label_weight=0.3, chunk_bytes=8 * V * 3,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (hidden, head)), torch.autograd.grad(expected, (hidden, head))
    )


@pytest.mark.parametrize("name", ["forward_kl", "jsd", "tvd"])
def test_all_tokens_are_the_dense_teacher(name: str) -> None:
    hidden, head, log_p_NV, weight_N = inputs()
    options: dict[str, Any] = {"divergence": name, **KNOBS}
    dense, _ = fused_linear_divergence(hidden, head, LogitsSignal(log_p_NV), weight_N, **options)
    sparse, _ = fused_linear_divergence(
        hidden, head, top(log_p_NV, V, tail=False), weight_N, **options
    )
    torch.testing.assert_close(sparse, dense)
    torch.testing.assert_close(
        torch.autograd.grad(sparse, (hidden, head)), torch.autograd.grad(dense, (hidden, head))
    )


def test_without_a_tail_the_tokens_are_all_there_is() -> None:
    hidden, head, log_p_NV, weight_N = inputs()
    signal = top(log_p_NV, K, tail=False)
    _, loss_N = fused_linear_divergence(hidden, head, signal, weight_N, divergence="forward_kl")
    log_q_NK = (hidden @ head.T).log_softmax(-1).gather(-1, signal.ids_NK)
    p_NK = signal.log_p_NK.softmax(-1)
    expected_N = (p_NK * (p_NK.log() - log_q_NK)).sum(-1) * (weight_N != 0)
    torch.testing.assert_close(loss_N, expected_N.detach())


def test_a_tail_too_thin_for_a_difference_still_counts() -> None:
    """1 - q is 0 in float32 where the student's mass outside of the K is 1e-9."""
    logits_NV = torch.tensor([[20.0, 0.0, -1.0]])
    signal = SparseSignal(torch.tensor([[0]]), torch.tensor([[-0.1]]), 3, torch.tensor([-2.4]))
    _, loss_N = fused_linear_divergence(
        torch.ones(1, 1), logits_NV.T.contiguous(), signal, torch.ones(1), divergence="forward_kl"
    )
    student_NJ = merged_NJ(logits_NV.double().log_softmax(-1), signal.ids_NK)
    teacher_NJ = torch.tensor([[-0.1, -2.4]]).double()
    expected = divergence_N("forward_kl", student_NJ, teacher_NJ)
    torch.testing.assert_close(loss_N.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([[0, V]], "ids_NK must hold token ids"), ([[2, 2]], "ids_NK of a sparse teacher must be")],
)
def test_wrong_ids_are_refused(ids: list[list[int]], message: str) -> None:
    signal = SparseSignal(torch.tensor(ids), torch.zeros(1, 2), V)
    with pytest.raises(ValueError, match=message):
        fused_linear_divergence(
            torch.zeros(1, H), torch.zeros(V, H), signal, torch.ones(1), divergence="tvd"
        )
