"""TAID's t: monotone, linear without adaptation, at its end after the last step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from draftsmith.distill.objectives import TAIDSection
from draftsmith.distill.objectives.taid import TAID
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections import TrainSection


def course(steps: int, **fields: float) -> TAID:
    section = TAIDSection.model_validate(fields)
    return section.start(Recipe(name="x", train=TrainSection(steps=steps), objective=section))


def run(taid: TAID, losses: list[float]) -> list[float]:
    seen = []
    for step, loss in enumerate(losses):
        assert taid.charge(step).interpolation == taid.t
        seen.append(taid.t)
        taid.after_step(step, loss)
    return [*seen, taid.t]


@pytest.mark.parametrize("alpha", [0.0, 5e-4, 0.5])
@pytest.mark.parametrize("t_end", [1.0, 0.8])
def test_t_grows_from_start_to_end(alpha: float, t_end: float) -> None:
    losses = [3 + math.sin(step) - step / 20 for step in range(50)]
    seen = run(course(50, alpha=alpha, t_start=0.2, t_end=t_end), losses)
    assert seen[0] == 0.2
    assert seen[-1] == t_end
    assert all(before <= after for before, after in pairwise(seen))


def test_t_is_linear_without_adaptation() -> None:
    seen = run(course(10, alpha=0), [1.0] * 10)
    assert seen == pytest.approx([0.4 + 0.06 * step for step in range(11)])


def test_the_update_is_that_of_the_paper() -> None:
    """Computed once more, by hand, where the adaptive part is the faster one."""
    taid = course(10**6, alpha=0.3, beta=0.9, t_start=0.1)
    run(taid, [2.0, 1.5, 1.8])
    m_1 = 0.1 * (2.0 - 1.5) / 2.0
    t_1 = 0.1 + 0.3 / (1 + math.exp(-m_1)) * (1 - 0.1)  # the first step only moves it linearly
    m_2 = 0.9 * m_1 + 0.1 * (1.5 - 1.8) / 1.5
    t_2 = t_1 + 0.3 / (1 + math.exp(-m_2)) * (1 - t_1)
    assert taid.momentum == pytest.approx(m_2)
    assert taid.t == pytest.approx(t_2, abs=1e-5)


def test_a_loss_that_jumps_from_zero_overflows_nothing() -> None:
    taid = course(10)
    run(taid, [0.0, 5.0, 1e300])
    assert 0.4 <= taid.t <= 1


def test_the_state_is_whole() -> None:
    losses = [2.0, 1.5, 1.8, 1.1, 1.0, 0.7]
    whole, first, second = (course(6, alpha=0.3) for _ in range(3))
    expected = run(whole, losses)
    seen = run(first, losses[:3])
    second.restore(first.state())
    for step, loss in enumerate(losses[3:], start=3):
        second.after_step(step, loss)
        seen.append(second.t)
    assert seen == expected
    assert second.state() == whole.state()


def test_too_short_a_run_is_told() -> None:
    assert course(4000).warnings() == []
    (warning,) = course(3999).warnings()
    assert "4000 steps" in warning
    (warning,) = course(400).warnings()
    assert "objective.alpha above 0.005" in warning
    assert course(400, alpha=0.005).warnings() == []
    assert course(10, alpha=0).warnings() == [], "linear is what was asked for"
