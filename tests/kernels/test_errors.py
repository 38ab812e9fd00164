"""Errors of bfloat16 products, never more than twice those that torch itself makes.

Both are measured against float64 autograd of the same bfloat16 inputs: the value, and the gradients
of hidden states and head.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.signal import LogitsSignal
from tests.kernels.textbook import KNOBS, divergence_N

H = 8
CASES = {
    "flat": (11, 37, 0.3),
    "peaked": (11, 37, 3.0),
    "odd vocabulary": (5, 1031, 2.0),
    "one token": (1, 37, 2.0),
    "large vocabulary": (3, 151936, 2.0),
}


def inputs(tokens: int, vocab: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and teacher logits in bfloat16."""
    generator = torch.Generator().manual_seed(9)
    hidden, head = (torch.randn(rows, H, generator=generator) for rows in (tokens, vocab))
    # A teacher that resembles the student, as it does while training.
    noise = torch.randn(tokens, vocab, generator=generator)
    teacher = scale * (hidden @ head.T / H**0.5 + 0.5 * noise)
    return (scale * hidden / H**0.5).bfloat16(), head.bfloat16(), teacher.bfloat16()


def errors_at_most_twice_those_of_torch(
    name: str, hidden: Tensor, head: Tensor, teacher: Tensor
) -> None:
    def textbook(dtype: torch.dtype) -> list[Tensor]:
        product = torch.float64 if dtype == torch.float64 else torch.bfloat16
        leaves = [one.to(product).requires_grad_() for one in (hidden, head)]
        logits_NV = (leaves[0] @ leaves[1].T).to(dtype)
        # Finite, since autograd makes NaN of 0 * inf.
        loss = divergence_N(name, logits_NV, teacher.to(dtype).clamp_min(-1e4)).sum()
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    leaves = [one.clone().requires_grad_() for one in (hidden, head)]
    loss, _ = fused_linear_divergence(
        leaves[0], leaves[1], LogitsSignal(teacher), torch.ones(len(hidden)),
        divergence=name, **KNOBS, backend="eager",
    )  # fmt: skip
    got = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    assert loss.dtype == torch.float32, "the divergence itself must not be taken in bfloat16"
    for exact, theirs, ours in zip(
        textbook(torch.float64), textbook(torch.float32), got, strict=True
    ):
        size = exact.norm() + 1e-6 * len(hidden)
        their_error = (theirs.double() - exact).norm() / size
        assert (ours.double() - exact).norm() / size <= 2 * their_error + 2e-6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_error_is_that_of_torch(name: str, case: str) -> None:
    errors_at_most_twice_those_of_torch(name, *inputs(*CASES[case]))


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "reverse_kl"])
def test_with_tokens_that_the_teacher_excludes(name: str) -> None:
    """Without reverse_kl, which is infinite there."""
    hidden, head, teacher = inputs(11, 37, 2.0)
    teacher[:, 20:] = -torch.inf
    errors_at_most_twice_those_of_torch(name, hidden, head, teacher)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_point_masses_that_agree_and_disagree(name: str) -> None:
    hidden, head, teacher = inputs(4, 37, 1.0)
    teacher[:] = -20.0
    likeliest = (hidden @ head.T).argmax(-1)
    teacher[0, likeliest[0]] = teacher[1, (likeliest[1] + 1) % 37] = 20.0
    hidden *= 20
    errors_at_most_twice_those_of_torch(name, hidden, head, teacher)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_a_teacher_equal_to_the_student(name: str) -> None:
    hidden, head, _ = inputs(11, 37, 2.0)
    errors_at_most_twice_those_of_torch(name, hidden, head, hidden @ head.T)
