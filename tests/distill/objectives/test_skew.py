"""DistiLLM's schedule: student text when the held-out divergence rises, more and more replayed."""

from __future__ import annotations

from collections import Counter

import pytest

from draftsmith.distill.objectives import Course, SkewKLSection
from draftsmith.distill.objectives.skew import AdaptiveOffPolicy
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections import RolloutSection, TrainSection


def course(rollout: RolloutSection | None = None, **fields: float) -> AdaptiveOffPolicy:
    section = SkewKLSection.model_validate(fields)
    recipe = Recipe(
        name="x",
        train=TrainSection(steps=100),
        rollout=rollout or RolloutSection(),
        objective=section,
    )
    started = section.start(recipe)
    assert isinstance(started, AdaptiveOffPolicy)
    return started


def shares(course: Course, step: int, stored: int) -> dict[str, float]:
    counts = Counter(course.source(step, draw / 1000, stored) for draw in range(1000))
    return {source: count / 1000 for source, count in counts.items()}


def test_the_chance_rises_when_the_divergence_does() -> None:
    adaptive = course(rise=0.4)
    seen = []
    for forward_kl in (2.0, 2.05, 2.1, 2.15, 1.0, 2.3, 9.0, 9.1):
        adaptive.after_evaluation(forward_kl)
        seen.append(adaptive.student_chance)
    # 2.1 is 0.1 above 2.0 and becomes what the next ones are compared with; so is 2.3.
    assert seen == pytest.approx([0, 0, 0.4, 0.4, 0.4, 0.8, 1.0, 1.0])


def test_before_it_rises_all_text_is_recorded() -> None:
    assert shares(course(), 0, 0) == {"teacher": 1}
    mixed = course(RolloutSection(given_fraction=0.25))
    assert shares(mixed, 0, 0) == {"teacher": 0.75, "given": 0.25}


def test_a_full_buffer_replaces_more_and_more_of_the_generation() -> None:
    adaptive = course(replay_capacity=10)
    adaptive.student_chance = 0.5
    assert shares(adaptive, 80, 9) == {"teacher": 0.5, "student": 0.5}
    assert shares(adaptive, 0, 10) == {"teacher": 0.5, "student": 0.5}
    assert shares(adaptive, 80, 10) == {"teacher": 0.5, "student": 0.1, "replay": 0.4}


def test_student_text_waits_for_its_first_step() -> None:
    adaptive = course(RolloutSection(student_from_step=50))
    adaptive.student_chance = 1.0
    assert shares(adaptive, 49, 0) == {"teacher": 1}
    assert shares(adaptive, 50, 0) == {"student": 1}


def test_the_state_is_whole() -> None:
    one, other = course(), course()
    for forward_kl in (2.0, 2.2, 2.25):
        one.after_evaluation(forward_kl)
    other.restore(one.state())
    assert other.state() == one.state()
    assert other.student_chance == 0.1


def test_a_fixed_schedule_is_the_recipes_mixture() -> None:
    section = SkewKLSection(schedule="fixed")
    rollout = RolloutSection(student_fraction=0.3, given_fraction=0.5)
    recipe = Recipe(name="x", train=TrainSection(steps=9), rollout=rollout, objective=section)
    fixed = section.start(recipe)
    assert fixed.replay_capacity == 0
    assert shares(fixed, 0, 0) == pytest.approx({"student": 0.3, "given": 0.5, "teacher": 0.2})
