"""The picture of a sweep: losses over teachers, and the best teacher over students."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from draftsmith.distill.sizing.capacity_gap import PUBLISHED_RATIO, CapacityGap


def plot_gap(gap: CapacityGap, output: Path) -> None:
    """Draw a fitted sweep as a PNG of two panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    _plot_losses(left, gap)
    _plot_best(right, gap)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def _plot_losses(axes: Any, gap: CapacityGap) -> None:
    for student in gap.sweep.students:
        losses = sorted(gap.sweep.losses(student).items())
        x, y = zip(*losses, strict=True)
        (line,) = axes.plot(x, y, marker="o", label=f"student {student / 1e6:.1f} M")
        axes.axvline(gap.best_teachers[student], color=line.get_color(), linestyle=":")
    axes.set(xscale="log", xlabel="teacher, parameters", ylabel="student, nats a token",
             title=f"Students of {gap.sweep.family}")  # fmt: skip
    _mark_sizes(axes.xaxis, gap.sweep.teacher_losses)
    axes.legend(frameon=False)


def _plot_best(axes: Any, gap: CapacityGap) -> None:
    students = sorted(gap.best_teachers)
    inside = [one for one in students if one not in gap.at_edge]
    for chosen, marker, label in (
        (inside, "o", "best teacher"),
        (gap.at_edge, "^", "best at the edge of the sweep"),
    ):
        if chosen:
            best = [gap.best_teachers[one] for one in chosen]
            axes.plot(chosen, best, marker, color="black", label=label)
    ratio = gap.ratio
    axes.plot(students, [ratio.value * one for one in students], label=f"{ratio.value:.2f} times")
    low, high = ([bound * one for one in students] for bound in (ratio.low, ratio.high))
    axes.fill_between(students, low, high, alpha=0.2)
    published = [PUBLISHED_RATIO * one for one in students]
    axes.plot(students, published, linestyle="--", label=f"{PUBLISHED_RATIO} times, published")
    axes.set(xscale="log", yscale="log", xlabel="student, parameters",
             ylabel="best teacher, parameters", title="Law of capacity gap")  # fmt: skip
    _mark_sizes(axes.xaxis, students)
    _mark_sizes(axes.yaxis, gap.sweep.teacher_losses)
    axes.legend(frameon=False)


def _mark_sizes(axis: Any, sizes: Iterable[int]) -> None:
    """Those that were tried: powers of ten say nothing within one family."""
    marks = sorted(sizes)
    axis.set_ticks(marks, [f"{one / 1e6:,.0f} M" for one in marks])
    axis.set_ticks([], minor=True)
