"""Draws: pure functions of what is drawn, fair over prompts and sources."""

from __future__ import annotations

import pytest

from draftsmith.distill.draws import draw_uniform, prompts_of_step
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections import TrainSection


def recipe(batch_size: int, seed: int = 0) -> Recipe:
    return Recipe(name="x", seed=seed, train=TrainSection(steps=9, batch_size=batch_size))


def test_every_pass_sees_each_prompt_once_in_a_new_order() -> None:
    seen = [index for step in range(10) for index in prompts_of_step(recipe(6), step, 20)]
    first, second, third = seen[:20], seen[20:40], seen[40:60]
    assert sorted(first) == sorted(second) == sorted(third) == list(range(20))
    assert first != second != third


def test_the_batch_size_does_not_change_the_order() -> None:
    small = [index for step in range(12) for index in prompts_of_step(recipe(3), step, 7)]
    large = [index for step in range(3) for index in prompts_of_step(recipe(12), step, 7)]
    assert small == large


def test_seeds_give_other_orders() -> None:
    assert prompts_of_step(recipe(20), 0, 20) != prompts_of_step(recipe(20, seed=1), 0, 20)


def test_uniform_draws_are_uniform_and_repeatable() -> None:
    draws = [draw_uniform(7, "source", step, 0) for step in range(4000)]
    assert draws == [draw_uniform(7, "source", step, 0) for step in range(4000)]
    assert all(0 <= one < 1 for one in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.02)
    assert sum(one < 0.1 for one in draws) / len(draws) == pytest.approx(0.1, abs=0.02)
