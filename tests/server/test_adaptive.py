"""A real engine that chooses its lookahead by itself, beside one without a draft."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from draftsmith.server.engine.calibrate import calibrate
from draftsmith.server.engine.load import measure_load
from draftsmith.server.engine.process import EngineProcess
from tests.server.conftest import Fleet, Models

K = 3
PROMPTS = [[7, 20, 31, 45], [9, 77, 12], [150, 3, 8, 61, 40]]


@pytest.fixture(scope="module")
def adaptive(
    fleet: Fleet, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProcess]:
    """Its draft is the target itself: always right, and as costly."""
    config = replace(
        fleet.plain.config,
        draft=models.target,
        num_speculative_tokens=K,
        lookahead_control="adaptive",
    )
    with EngineProcess(config, tmp_path_factory.mktemp("adaptive") / "engine.log") as engine:
        yield engine


def test_steps_are_timed_for_each_load_and_lookahead(fleet: Fleet, adaptive: EngineProcess) -> None:
    plain_seconds, seconds = calibrate(
        fleet.plain, adaptive, PROMPTS, batch_sizes=[1, 4], lookaheads=[0, K], temperature=0.0
    )
    assert plain_seconds.keys() == seconds.keys() == {1, 4}
    for row in seconds.values():
        assert 0 < row[0] < row[K] < 1
        # Three more passes of a model as large as the target cost something.
        assert row[K] > 1.1 * row[0]
    # Without proposals the draft rests: what is left beside a plain step is less than a pass of it.
    # At one of the two loads at least, for the machine may be busy.
    assert any(
        row[0] - plain_seconds[size] < 1.2 * (row[K] - row[0]) / K for size, row in seconds.items()
    ), (plain_seconds, seconds)
    with pytest.raises(ValueError, match="powers of two"):
        calibrate(fleet.plain, adaptive, PROMPTS, batch_sizes=[3], lookaheads=[0], temperature=0.0)


def test_it_settles_on_what_its_own_figures_say_and_changes_no_token(
    fleet: Fleet, adaptive: EngineProcess
) -> None:
    found = measure_load(
        {"plain": fleet.plain, "adaptive": adaptive},
        PROMPTS,
        baseline="plain",
        concurrency=1,
        rounds=2,
        sampling={"temperature": 0.0, "max_tokens": 120, "ignore_eos": True},
    )
    assert found["adaptive"].answers == found["plain"].answers
    assert found["plain"].speedup == 1.0
    assert found["plain"].block_efficiency is None
    report = adaptive.step_report()
    assert report is not None
    # The draft is the target: whatever it missed while no lookahead was best, it has read again.
    assert report.acceptance[0] > 0.98
    assert settles(adaptive), adaptive.step_report()


def settles(engine: EngineProcess) -> bool:
    """Whether it comes to stand on a lookahead that its figures call good, as they change."""
    for _ in range(5):
        report = engine.step_report()
        assert report is not None
        goodput = report.goodput(1)
        if goodput[report.chosen[1]] >= 0.9 * max(goodput.values()):
            return True
        sampling = {"temperature": 0.0, "max_tokens": 120, "ignore_eos": True}
        measure_load(
            {"one": engine}, PROMPTS, baseline="one", concurrency=1, rounds=1, sampling=sampling
        )
    return False


def test_several_at_a_time(fleet: Fleet, adaptive: EngineProcess) -> None:
    found = measure_load(
        {"adaptive": adaptive},
        PROMPTS * 2,
        baseline="adaptive",
        concurrency=4,
        rounds=1,
        sampling={"temperature": 0.0, "max_tokens": 30, "ignore_eos": True},
    )["adaptive"]
    assert found.answers[:3] == found.answers[3:]
    assert [len(one) for one in found.answers] == [30] * 6
    assert found.seconds_p50 <= found.seconds_p95
