"""The law of capacity gap on sweeps whose best teachers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from draftsmith.distill.sizing.capacity_gap import CapacityGap, Pair, Sweep, fit_gap
from draftsmith.distill.sizing.gap_picture import plot_gap

STUDENTS = (1_000_000, 2_000_000, 4_000_000)
TEACHERS = (1_500_000, 3_000_000, 6_000_000, 12_000_000, 24_000_000)


def sweep(loss: Callable[[float, float], float], noise: float = 0.0) -> Sweep:
    """Losses of 30 answers of 20 tokens, as `loss` of student and teacher says."""
    draws = np.random.default_rng(0)
    easy = draws.uniform(0.5, 1.5, 30)  # answers differ, for all models alike
    easy /= easy.mean()

    def nats(student: int, teacher: int) -> list[float]:
        values = 20 * (loss(student, teacher) * easy + noise * draws.standard_normal(30))
        return [float(one) for one in values]

    return Sweep(
        family="known",
        budget="none",
        tokens=[20] * 30,
        pairs=[Pair(student=s, teacher=t, nats=nats(s, t)) for s in STUDENTS for t in TEACHERS],
        teacher_losses=dict.fromkeys(TEACHERS, 1.0),
    )


def parabola(student: float, teacher: float) -> float:
    """Lowest where the teacher has 2.5 times the student's parameters."""
    return 3 - np.log(student) / 10 + 0.05 * float(np.log(teacher / (2.5 * student))) ** 2


def test_a_known_law_is_found_exactly() -> None:
    gap = fit_gap(sweep(parabola), refits=20)
    assert gap.ratio.value == pytest.approx(2.5, rel=1e-9)
    assert gap.ratio.low == pytest.approx(2.5, rel=1e-6)
    assert gap.slope is not None
    assert gap.slope.value == pytest.approx(1, rel=1e-9)
    assert gap.best_teachers == pytest.approx({one: 2.5 * one for one in STUDENTS})
    assert not gap.at_edge
    assert gap.shows_gap
    assert "shows the gap" in gap.verdict
    assert gap.sweep.losses(1_000_000)[3_000_000] == pytest.approx(parabola(1e6, 3e6))


def test_noise_widens_the_interval_around_the_truth() -> None:
    gap = fit_gap(sweep(parabola, noise=0.02), refits=100)
    assert gap.ratio.low < 2.5 < gap.ratio.high
    assert 0.05 < gap.ratio.high - gap.ratio.low < 2


def test_where_larger_is_better_there_is_no_gap() -> None:
    gap = fit_gap(sweep(lambda student, teacher: 3 - np.log(teacher) / 10), refits=20)
    assert gap.at_edge == list(STUDENTS)
    assert not gap.shows_gap
    assert "no gap" in gap.verdict


def test_one_best_teacher_for_all_is_no_law() -> None:
    def same(student: float, teacher: float) -> float:
        return 3 + 0.05 * float(np.log(teacher / 6e6)) ** 2

    gap = fit_gap(sweep(same), refits=20)
    assert gap.slope is not None
    assert gap.slope.value == pytest.approx(0, abs=1e-9)
    assert not gap.shows_gap
    assert "larger students want larger teachers" in gap.verdict


def test_two_teachers_show_nothing() -> None:
    whole = sweep(parabola)
    few = whole.model_copy(
        update={"pairs": [one for one in whole.pairs if one.teacher < 6_000_000]}
    )
    with pytest.raises(ValueError, match="at least three"):
        fit_gap(few)


def test_a_fit_is_kept_and_drawn(tmp_path: Path) -> None:
    gap = fit_gap(sweep(parabola, noise=0.02), refits=20)
    gap.write(tmp_path / "plans" / "gap.json")
    assert CapacityGap.read(tmp_path / "plans" / "gap.json") == gap
    plot_gap(gap, tmp_path / "gap.png")
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="plan fit"):
        CapacityGap.read(tmp_path / "other.json")
