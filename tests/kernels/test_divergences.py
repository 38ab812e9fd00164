"""Closed forms against autograd of the textbook formulas, in float64, on peaked rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.objective import Objective
from draftsmith.kernels.rows_torch import Block, row_block
from tests.kernels.textbook import ALPHA, BETA, ETA, KNOBS, divergence_N


def evaluate(name: str, student_RV: Tensor, teacher_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each row, and its gradient by the student's logits."""
    objective = Objective(name, **KNOBS)
    gradient_RV = student_RV.clone()
    block = Block(gradient_RV, teacher_RV, student_RV.new_ones(len(student_RV)))
    knobs = objective.knobs(None, student_RV.dtype, student_RV.device)
    return row_block(block, knobs, objective.terms(None), gradient=True), gradient_RV


def random_rows(count: int = 7, vocab: int = 41) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, count, vocab)
    student, teacher = 4 * torch.randn(shape, dtype=torch.float64, generator=generator)
    return student, teacher


@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradient_equal_autograd(name: str) -> None:
    student, teacher = random_rows()
    student.requires_grad_()
    expected = divergence_N(name, student, teacher)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student)
    loss, gradient = evaluate(name, student.detach(), teacher)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "lk_hybrid"])
def test_gradient_equals_finite_differences(name: str) -> None:
    """lk_hybrid is left out: its weight is held fixed, which a difference does not do."""
    student, teacher = random_rows(count=2, vocab=11)
    _, gradient = evaluate(name, student, teacher)
    step = 1e-6
    for column in range(11):
        shifted = torch.zeros(11, dtype=torch.float64)
        shifted[column] = step
        above, _ = evaluate(name, student + shifted, teacher)
        below, _ = evaluate(name, student - shifted, teacher)
        slope = (above - below) / (2 * step)
        torch.testing.assert_close(gradient[:, column], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_self_teacher_has_no_loss_and_no_gradient(name: str, dtype: torch.dtype) -> None:
    student, _ = random_rows()
    student = student.to(dtype)
    loss, gradient = evaluate(name, student, student.clone())
    atol = 1e-13 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=atol)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=atol)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_disagreeing_point_masses_stay_finite_in_float32(name: str) -> None:
    student = torch.full((1, 41), -90.0)
    teacher = student.clone()
    student[0, 3], teacher[0, 7] = 90.0, 90.0
    loss, gradient = evaluate(name, student, teacher)
    assert torch.isfinite(gradient).all()
    limits = {
        "forward_kl": 180.0,
        "reverse_kl": 180.0,
        "tvd": 1.0,
        "jsd": -(BETA * math.log(BETA) + (1 - BETA) * math.log(1 - BETA)),
        "skew_kl": -math.log(ALPHA),
        "skew_reverse_kl": -math.log(ALPHA),
        "lk": -math.log(1e-30),
        "lk_hybrid": 180.0,
    }
    assert loss.item() == pytest.approx(limits[name], rel=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_tokens_that_both_exclude_change_nothing(name: str) -> None:
    student, teacher = (rows.float() for rows in random_rows())
    expected, expected_gradient = evaluate(name, student[:, :30], teacher[:, :30])
    student[:, 30:] = teacher[:, 30:] = -torch.inf
    loss, gradient = evaluate(name, student, teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[:, :30], expected_gradient)
    assert not gradient[:, 30:].any()


@pytest.mark.parametrize("name", ["forward_kl", "jsd", "tvd", "skew_kl", "skew_reverse_kl", "lk"])
def test_a_top_k_teacher_is_exact(name: str) -> None:
    """Tokens that only the teacher excludes: finite wherever the divergence is."""
    student, teacher = random_rows()
    teacher[:, 10:] = -torch.inf
    student.requires_grad_()
    expected = divergence_N(name, student, teacher.clamp_min(-1e4))
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student)
    loss, gradient = evaluate(name, student.detach(), teacher)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_failing_support_is_huge_and_never_nan() -> None:
    student, teacher = (rows.float() for rows in random_rows())
    teacher[:, 10:] = -torch.inf
    loss, gradient = evaluate("reverse_kl", student, teacher)
    assert (loss > 1e20).all()
    assert gradient.isfinite().all()


def test_tvd_is_one_minus_overlap() -> None:
    student, teacher = random_rows()
    loss, _ = evaluate("tvd", student, teacher)
    overlap = torch.minimum(student.softmax(-1), teacher.softmax(-1)).sum(-1)
    torch.testing.assert_close(loss, 1 - overlap)


def test_lk_hybrid_goes_from_kl_to_total_variation() -> None:
    """With eta 0 it is KL; a large eta leaves total variation wherever there is overlap."""
    student, teacher = random_rows()
    ones = torch.ones(len(student), dtype=torch.float64)
    for eta, name in ((0.0, "forward_kl"), (1e6, "tvd")):
        objective = Objective("lk_hybrid", eta=eta)
        knobs = objective.knobs(None, torch.float64, student.device)
        block = Block(student.clone(), teacher, ones)
        loss = row_block(block, knobs, objective.terms(None), gradient=False)
        torch.testing.assert_close(loss, divergence_N(name, student, teacher))


def test_jsd_leans_on_the_teacher_with_beta() -> None:
    """jsd / beta tends to KL(p || q) as beta tends to 0: a swapped orientation gives KL(q || p)."""
    student, teacher = random_rows()
    objective = Objective("jsd", beta=1e-9)
    knobs = objective.knobs(None, torch.float64, student.device)
    block = Block(student.clone(), teacher, torch.ones(len(student), dtype=torch.float64))
    loss = row_block(block, knobs, objective.terms(None), gradient=False)
    torch.testing.assert_close(
        loss / 1e-9, divergence_N("forward_kl", student, teacher), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"divergence": "kl"}, "forward_kl, reverse_kl, jsd, tvd"),
        ({"divergence": "jsd", "beta": 0.0}, "beta must lie inside"),
        ({"divergence": "jsd", "beta": 1.0}, "beta must lie inside"),
        ({"divergence": "jsd", "beta": math.nan}, "beta must lie inside"),
        ({"divergence": "skew_kl", "alpha": 1.0}, "alpha must lie inside"),
        ({"divergence": "lk_hybrid", "eta": -1.0}, "eta must be finite"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": math.inf}, "temperature must be positive"),
        ({"interpolation": 1.5}, "interpolation must lie"),
        ({"label_weight": -1.0}, "label_weight must be finite"),
        ({"softcap": 0.0}, "softcap must be positive"),
    ],
)
def test_numbers_out_of_range_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**fields)  # type: ignore[arg-type]


def test_knobs_of_the_tests_are_not_the_defaults() -> None:
    assert Objective().beta != BETA
    assert Objective().alpha != ALPHA
    assert Objective().eta == ETA
