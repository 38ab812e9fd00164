"""The chunked head against plain autograd: value, both gradients, any chunk, mask and dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.signal import HiddenSignal, LogitsSignal
from tests.kernels.test_divergences import textbook_N

N, V, H, G = 11, 37, 5, 6


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, HiddenSignal, Tensor]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    weight_N = torch.rand(N, dtype=torch.float64, generator=generator)
    weight_N[2] = weight_N[9] = 0
    hidden, head = normal(N, H), normal(V, H)
    return (
        hidden.requires_grad_(),
        head.requires_grad_(),
        HiddenSignal(normal(N, G), normal(V, G)),
        weight_N,
    )


@pytest.mark.parametrize("chunk_rows", [1, 3, N, 1000])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equals_autograd_for_any_chunk(name: str, chunk_rows: int) -> None:
    hidden, head, teacher, weight_N = inputs()
    temperature = 1.7
    student_NV = hidden @ head.T / temperature
    expected_N = textbook_N(name, student_NV, teacher.logits_NV(slice(None)) / temperature)
    expected = (weight_N * expected_N).sum()
    expected_grads = torch.autograd.grad(expected, (hidden, head))

    loss, loss_N = fused_linear_divergence(
        hidden, head, teacher, weight_N,
        divergence=name, beta=0.3, temperature=temperature, chunk_bytes=4 * V * chunk_rows,
    )  # fmt: skip
    grads = torch.autograd.grad(loss, (hidden, head))

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_N, (expected_N * (weight_N != 0)).detach())
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradcheck(name: str) -> None:
    hidden, head, teacher, weight_N = inputs()

    def loss(hidden: Tensor, head: Tensor) -> Tensor:
        return fused_linear_divergence(
            hidden, head, teacher, weight_N, divergence=name, chunk_bytes=4 * V * 4
        )[0]

    assert torch.autograd.gradcheck(loss, (hidden, head))


def test_gradient_scales_with_what_comes_from_above() -> None:
    hidden, head, teacher, weight_N = inputs()
    loss, _ = fused_linear_divergence(hidden, head, teacher, weight_N, divergence="forward_kl")
    single = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    triple = torch.autograd.grad(3 * loss, (hidden, head))
    torch.testing.assert_close(triple, tuple(3 * grad for grad in single))


def test_hidden_and_dense_signals_are_the_same_teacher() -> None:
    hidden, head, teacher, weight_N = inputs()
    dense = LogitsSignal(teacher.logits_NV(slice(None)))
    from_hidden, _ = fused_linear_divergence(hidden, head, teacher, weight_N, divergence="jsd")
    from_dense, _ = fused_linear_divergence(hidden, head, dense, weight_N, divergence="jsd")
    torch.testing.assert_close(from_hidden, from_dense)


def test_a_frozen_head_changes_no_other_gradient() -> None:
    hidden, head, teacher, weight_N = inputs()
    free, _ = fused_linear_divergence(hidden, head, teacher, weight_N, divergence="jsd")
    frozen, _ = fused_linear_divergence(hidden, head.detach(), teacher, weight_N, divergence="jsd")
    torch.testing.assert_close(
        torch.autograd.grad(frozen, hidden), torch.autograd.grad(free, hidden)
    )


def test_all_tokens_masked_gives_zero_gradients() -> None:
    hidden, head, teacher, weight_N = inputs()
    loss, _ = fused_linear_divergence(
        hidden, head, teacher, torch.zeros_like(weight_N), divergence="forward_kl"
    )
    grads = torch.autograd.grad(loss, (hidden, head))
    assert loss.item() == 0
    assert all(not grad.any() for grad in grads)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_bfloat16_products_stay_near_float64(name: str) -> None:
    hidden, head, teacher, weight_N = inputs()
    exact, _ = fused_linear_divergence(hidden, head, teacher, weight_N, divergence=name)
    (exact_grad,) = torch.autograd.grad(exact, head)
    low_hidden, low_head, low_teacher, _ = inputs(torch.bfloat16)
    low, _ = fused_linear_divergence(
        low_hidden, low_head, low_teacher, weight_N.float(), divergence=name
    )
    (low_grad,) = torch.autograd.grad(low, low_head)
    assert low.dtype == torch.float32, "the divergence itself must not be taken in bfloat16"
    assert low.item() == pytest.approx(exact.item(), rel=0.03)
    error = (low_grad.double() - exact_grad).norm() / exact_grad.norm()
    assert error < 0.05


def test_unequal_vocabularies_are_refused_in_one_sentence() -> None:
    hidden, head, teacher, weight_N = inputs()
    with pytest.raises(ValueError, match="same vocabulary"):
        fused_linear_divergence(hidden, head[:-1], teacher, weight_N, divergence="tvd")
