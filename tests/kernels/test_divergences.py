"""Closed forms against autograd of the textbook formulas, in float64, on peaked rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from draftsmith.kernels.divergences import DIVERGENCES, RowPair, row_function

BETA = 0.3


def textbook_N(name: str, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    p, q = teacher_NV.softmax(-1), student_NV.softmax(-1)
    if name == "forward_kl":
        return (p * (p.log() - q.log())).sum(-1)
    if name == "reverse_kl":
        return (q * (q.log() - p.log())).sum(-1)
    if name == "tvd":
        return 0.5 * (p - q).abs().sum(-1)
    m = BETA * p + (1 - BETA) * q
    teacher_side = (p * (p.log() - m.log())).sum(-1)
    student_side = (q * (q.log() - m.log())).sum(-1)
    return BETA * teacher_side + (1 - BETA) * student_side


def random_rows(count: int = 7, vocab: int = 41) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, count, vocab)
    student, teacher = 4 * torch.randn(shape, dtype=torch.float64, generator=generator)
    return student, teacher


@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradient_equal_autograd(name: str) -> None:
    student, teacher = random_rows()
    student.requires_grad_()
    expected = textbook_N(name, student, teacher)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student)
    loss, gradient = row_function(name, BETA)(RowPair.from_logits(student.detach(), teacher))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_self_teacher_has_no_loss_and_no_gradient(name: str) -> None:
    student, _ = random_rows()
    loss, gradient = row_function(name, BETA)(RowPair.from_logits(student, student.clone()))
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_disagreeing_point_masses_stay_finite_in_float32(name: str) -> None:
    student = torch.full((1, 41), -90.0)
    teacher = student.clone()
    student[0, 3], teacher[0, 7] = 90.0, 90.0
    loss, gradient = row_function(name, BETA)(RowPair.from_logits(student, teacher))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    limits = {"forward_kl": 180.0, "reverse_kl": 180.0, "tvd": 1.0}
    entropy_of_beta = -(BETA * torch.tensor(BETA).log() + 0.7 * torch.tensor(0.7).log()).item()
    assert loss.item() == pytest.approx(limits.get(name, entropy_of_beta), rel=1e-5)


def test_tvd_is_one_minus_overlap() -> None:
    student, teacher = random_rows()
    loss, _ = row_function("tvd")(RowPair.from_logits(student, teacher))
    overlap = torch.minimum(student.softmax(-1), teacher.softmax(-1)).sum(-1)
    torch.testing.assert_close(loss, 1 - overlap)


def test_jsd_leans_on_the_teacher_with_beta() -> None:
    """jsd / beta tends to KL(p || q) as beta tends to 0: a swapped orientation gives KL(q || p)."""
    student, teacher = random_rows()
    loss, _ = row_function("jsd", 1e-9)(RowPair.from_logits(student, teacher))
    torch.testing.assert_close(
        loss / 1e-9, textbook_N("forward_kl", student, teacher), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5])
def test_jsd_refuses_the_ends_where_it_vanishes(beta: float) -> None:
    with pytest.raises(ValueError, match="0 < beta < 1"):
        row_function("jsd", beta)


def test_unknown_divergence_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="forward_kl, reverse_kl, jsd, tvd"):
        row_function("kl")
