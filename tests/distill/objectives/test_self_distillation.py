"""The weight of the ground truth: PS-KD's line, and the closed form where fits are linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from draftsmith.distill.objectives import Course, Residuals, SelfDistillationSection
from draftsmith.distill.objectives.self_distillation import ClosedForm
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.residuals import squares
from draftsmith.distill.sections import TrainSection


def course(**fields: object) -> Course:
    section = SelfDistillationSection.model_validate(fields)
    recipe = Recipe(name="x", train=TrainSection(steps=4), objective=section)
    return section.start(recipe)


def weights(course: Course) -> list[float]:
    return [course.charge(step).label_weight for step in range(4)]


def test_the_linear_schedule_ends_at_the_given_weight() -> None:
    assert weights(course(schedule="linear")) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert weights(course(schedule="constant")) == [0.2] * 4
    charge = course(schedule="constant", ground_truth_weight=0.3).charge(0)
    assert charge.divergence_weight + charge.label_weight == 1


@pytest.mark.parametrize("ridge", [0.01, 1.0, 10.0])
def test_the_closed_form_is_the_best_weight_of_a_kernel_regression(ridge: float) -> None:
    """Against a search over weights, where the theory holds: fits linear in their targets."""
    random = np.random.default_rng(3)
    x, x_heldout = random.uniform(-2, 2, 40), random.uniform(-2, 2, 60)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-((a[:, None] - b[None]) ** 2)))

    def truth(a: np.ndarray) -> np.ndarray:
        return np.asarray(np.sin(2 * a) + 0.5 * random.standard_normal(len(a)))

    y, y_heldout = truth(x), truth(x_heldout)
    inverse = np.linalg.inv(kernel(x, x) + ridge * np.eye(40))

    def fit(targets: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.asarray(kernel(at, x) @ inverse @ targets)

    teacher, at_heldout = fit(y, x), fit(y, x_heldout)
    used = 0.3
    student = fit(used * y + (1 - used) * teacher, x_heldout)
    away = student - at_heldout
    closed = ClosedForm(
        SelfDistillationSection(ground_truth_weight=used),
        Recipe(name="x", train=TrainSection(steps=4)),
    )
    closed.after_step(0, 1.0)
    aligned = float((y_heldout - at_heldout) @ away)
    closed.after_evaluation(0.0, Residuals(aligned, float(away @ away)))

    grid = np.linspace(0, 1, 1001)
    errors = [np.square(y_heldout - fit(w * y + (1 - w) * teacher, x_heldout)).sum() for w in grid]
    assert closed.weight == pytest.approx(grid[int(np.argmin(errors))], abs=1e-3)


def test_nothing_is_estimated_before_the_first_step() -> None:
    closed = course()
    closed.after_evaluation(1.0, Residuals(5.0, 1.0))
    assert closed.metrics() == {"ground_truth_weight": 0.2}
    closed.after_step(0, 1.0)
    closed.after_evaluation(1.0, Residuals(0.5, 1.0))
    assert closed.metrics()["ground_truth_weight"] == pytest.approx(1 - 0.8 * 0.5)


def test_the_state_is_whole() -> None:
    one, other = course(), course()
    one.after_step(0, 1.0)
    one.after_evaluation(1.0, Residuals(0.5, 1.0))
    other.restore(one.state())
    assert other.state() == one.state()
    assert other.charge(1) == one.charge(1)


def test_squares_are_those_of_dense_vectors() -> None:
    torch.manual_seed(0)
    teacher_CD, student_CD = torch.randn(2, 5, 7, dtype=torch.float64).softmax(-1)
    label_C = torch.tensor([3, -1, 0, 6, 6])
    kept = label_C >= 0
    y_CD = torch.nn.functional.one_hot(label_C[kept], 7)
    away_CD = (student_CD - teacher_CD)[kept]
    aligned = ((y_CD - teacher_CD[kept]) * away_CD).sum().item()
    expected = [aligned, away_CD.square().sum().item()]
    assert squares(teacher_CD, student_CD, label_C).tolist() == pytest.approx(expected)
