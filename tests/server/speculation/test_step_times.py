"""Step times on a machine that is now faster, now slower: simulated, so that the truth is known."""

import math
import random

import pytest

from draftsmith.server.speculation.step_times import StepTimes

TRUE = {0: 0.030, 1: 0.036, 2: 0.041}


def steps(times: StepTimes, lookahead: int, count: int, noise: random.Random, slow: float) -> None:
    for _ in range(count):
        times.observe(1, lookahead, slow * TRUE[lookahead] * math.exp(noise.gauss(0, 0.1)))


def learnt(seed: int) -> tuple[StepTimes, random.Random]:
    times, noise = StepTimes(), random.Random(seed)
    for _ in range(6):
        for lookahead in TRUE:
            steps(times, lookahead, 16, noise, 1.0)
    return times, noise


def test_all_lookaheads_follow_the_machine() -> None:
    """It gets 1.5 times as slow, and only steps without drafts are seen: so do the others."""
    times, noise = learnt(0)
    steps(times, 0, 400, noise, 1.5)
    for lookahead, seconds in times.row(1).items():
        assert seconds == pytest.approx(1.5 * TRUE[lookahead], rel=0.12)


def test_differences_are_as_sure_as_claimed() -> None:
    errors = []
    for seed in range(200):
        times, _ = learnt(seed)
        row = times.row(1)
        error = math.log(row[1] / row[0]) - math.log(TRUE[1] / TRUE[0])
        errors.append(error / math.sqrt(times.doubt(1, 1, 0)))
    spread = math.sqrt(sum(one**2 for one in errors) / len(errors))
    assert 0.4 < spread < 1.3, "a doubt that is too small decides too early"


def test_one_slow_step_changes_little_and_many_change_all() -> None:
    times, noise = learnt(1)
    before = times.row(1)[2]
    times.observe(1, 2, 40 * TRUE[2])
    assert times.row(1)[2] == pytest.approx(before, rel=0.1)
    steps(times, 2, 100, noise, 3.0)
    assert times.row(1)[2] == pytest.approx(3 * TRUE[2], rel=0.15)


def test_what_is_not_seen_gets_doubtful() -> None:
    times, noise = learnt(2)
    before = times.doubt(1, 0, 2)
    steps(times, 0, 3000, noise, 1.0)
    assert times.doubt(1, 0, 2) > 3 * before
    assert times.doubt(1, 0, 0) == 0
    assert times.doubt(1, 5, 2) == 0, "beyond the measured ones the nearest speaks"


def test_a_profile_is_known_well_and_not_for_ever() -> None:
    times, noise = StepTimes(), random.Random(3)
    times.restore(1, TRUE)
    assert times.row(1) == pytest.approx(TRUE)
    for _ in range(20):
        steps(times, 0, 16, noise, 1.0)
        for _ in range(16):
            times.observe(1, 1, 2 * TRUE[1] * math.exp(noise.gauss(0, 0.1)))
    assert times.row(1)[1] == pytest.approx(2 * TRUE[1], rel=0.15)
