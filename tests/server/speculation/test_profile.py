"""What follows from a profile, by hand, and the choice between two engines."""

from pathlib import Path

import pytest

from draftsmith.server.speculation.profile import Profile, check_profile, read_profile
from draftsmith.server.speculation.report import StepReport
from draftsmith.server.speculation.routing import EngineChoice
from draftsmith.server.speculation.step_times import bucket_of, fill_in

PROFILE = Profile(
    target="big",
    draft="small",
    temperature=0.0,
    machine="a test",
    versions={},
    # Each drafted token adds a fifth of a plain step at B = 1, and a whole one at B = 8.
    seconds={1: {0: 0.011, 1: 0.012, 2: 0.014, 3: 0.016}, 8: {0: 0.022, 1: 0.04, 3: 0.08}},
    plain_seconds={1: 0.01, 8: 0.02},
    acceptance=[0.8, 0.5, 0.5],
)


def test_speedup_break_even_and_cost_ratio() -> None:
    assert PROFILE.tokens_per_call == pytest.approx([1, 1.8, 2.2, 2.4])
    assert PROFILE.break_even(1, 2) == pytest.approx(1.4)
    assert PROFILE.speedup(1, 2) == pytest.approx(2.2 / 1.4)
    assert PROFILE.best_lookahead(1) == 2
    assert PROFILE.pays(1)
    assert PROFILE.cost_ratio(1) == pytest.approx(0.2)
    # At 8 requests nothing pays, and no drafting is the least loss.
    assert PROFILE.best_lookahead(8) == 0
    assert not PROFILE.pays(8)
    assert PROFILE.cost_ratio(8) == pytest.approx(1.0)


def test_a_profile_is_read_back_and_held_against_the_pair(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(PROFILE.model_dump_json(indent=2))
    assert read_profile(path) == PROFILE
    check_profile(PROFILE, Path("x/big"), Path("y/small"))
    for draft in (Path("y/other"), None):
        with pytest.raises(ValueError, match="measured with the draft small"):
            check_profile(PROFILE, Path("x/big"), draft)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ('"acceptance":[]', "acceptance"),
        ('"plain_seconds":{"1":0.01}', "same batch sizes"),
        ('"seconds":{"1":{"9":1.0},"8":{"0":1.0}}', "every lookahead"),
        ('"other":1', "other"),
    ],
)
def test_wrong_profiles_are_refused(tmp_path: Path, change: str, complaint: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(PROFILE.model_dump_json()[:-1] + "," + change + "}")
    with pytest.raises(ValueError, match=complaint):
        read_profile(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_profile(tmp_path / "missing.json")


def test_step_times_between_measured_lookaheads() -> None:
    assert fill_in({0: 1.0, 4: 3.0}, range(6)) == pytest.approx(
        {0: 1.0, 1: 1.5, 2: 2.0, 3: 2.5, 4: 3.0, 5: 3.5}
    )
    assert fill_in({2: 5.0}, range(4)) == {2: 5.0}
    assert fill_in({}, range(4)) == {}
    assert [bucket_of(number) for number in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]


def steps(seconds: dict[int, float], acceptance: float = 0.8) -> StepReport:
    top = max(seconds)
    return StepReport(
        max_lookahead=top, chosen={}, seconds={1: seconds}, acceptance=[acceptance] * top
    )


def test_traffic_goes_where_goodput_is_higher() -> None:
    now = 10.0
    reports: list[StepReport | None] = [None, None]

    def prefers(speculative: StepReport | None, plain: StepReport | None) -> bool:
        nonlocal now
        now += 2.0
        reports[:] = [speculative, plain]
        return choice.prefers_plain(0)

    choice = EngineChoice(lambda: reports[0], lambda: reports[1], clock=lambda: now)
    costly, cheap = steps({0: 0.02, 2: 0.08}), steps({0: 0.012, 2: 0.014})
    assert not prefers(None, steps({0: 0.01}))  # nothing known of the draft: as configured
    assert not prefers(cheap, steps({0: 0.01}))
    assert prefers(costly, steps({0: 0.01}))
    assert not prefers(costly, steps({0: 0.03}))  # a plain step is slower still
    assert prefers(costly, None)  # not timed, and drafting does not pay by itself
    assert not prefers(cheap, None)
    # Once a minute the engine is tried that looks slower, whichever it is.
    for minute, speculative, tries_plain in ((10, costly, False), (11, cheap, True)):
        now = 60.0 * minute + 0.5 - 2.0
        assert prefers(speculative, steps({0: 0.01})) == tries_plain
    now = 720.5 - 2.0
    assert not prefers(None, steps({0: 0.01}))
