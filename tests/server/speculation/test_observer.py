"""Which steps are timed, and what reaches the report's reader."""

from pathlib import Path

import pytest

from draftsmith.server.speculation.controller import LookaheadController
from draftsmith.server.speculation.observer import StepObserver
from draftsmith.server.speculation.report import STEPS_NAME, read_step_report


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_only_steps_of_one_kind_are_timed(tmp_path: Path) -> None:
    clock, controller = Clock(), LookaheadController(3, adaptive=False)
    observer = StepObserver(controller, tmp_path, clock)

    def step(verified: list[int], drafted: int, decoding: bool, took: float, busy: bool) -> None:
        observer.step_begins(busy=busy)
        observer.step_scheduled(verified, drafted, decoding=decoding)
        clock.now += took

    step([3, 3], 3, True, 0.5, True)
    step([3, 0], 3, True, 9.0, True)  # one request verifies less
    step([3, 3], 1, True, 9.0, True)  # the lookahead changes
    step([3, 3], 3, False, 9.0, True)  # somebody's prompt is read
    step([3, 3], 3, True, 9.0, True)  # and then nothing was left to do
    step([1], 1, True, 0.25, False)
    observer.step_begins(busy=True)
    assert controller.times.table() == {1: {1: 0.25}, 2: {3: 0.5}}


def test_steps_in_which_the_lookahead_changes_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, controller = Clock(), LookaheadController(3)
    changes: list[tuple[int, float]] = []
    monkeypatch.setattr(controller, "observe_change", lambda *step: changes.append(step))
    observer = StepObserver(controller, tmp_path, clock)
    for verified, drafted, decoding, took in (
        ([0, 0], 2, True, 0.5),
        ([2, 2], 2, True, 0.125),
        ([2, 0], 2, False, 9.0),  # somebody's prompt is read
        ([2, 2], 0, True, 0.25),
    ):
        observer.step_begins(busy=True)
        observer.step_scheduled(verified, drafted, decoding=decoding)
        clock.now += took
    observer.step_begins(busy=True)
    assert changes == [(2, 0.5), (2, 0.25)]


def test_the_report_is_whole_or_absent(tmp_path: Path) -> None:
    clock, controller = Clock(), LookaheadController(2, adaptive=False)
    observer = StepObserver(controller, tmp_path, clock)
    assert read_step_report(tmp_path) is None
    for _ in range(8):
        observer.step_begins(busy=True)
        observer.step_scheduled([2], 2, decoding=True)
        observer.step_ended([(2, 1)])
        clock.now += 0.5
    report = read_step_report(tmp_path)
    assert report is not None
    assert report.seconds == {1: {2: 0.5}}
    first, second = report.acceptance
    assert report.goodput(1) == {2: pytest.approx((1 + first + first * second) / 0.5)}
    assert [path.name for path in tmp_path.iterdir()] == [STEPS_NAME]

    (tmp_path / STEPS_NAME).write_text("{")
    with pytest.raises(ValueError, match="not a report"):
        read_step_report(tmp_path)
