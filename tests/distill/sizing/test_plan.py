"""Ranking, break-even, cost and recipe of a plan, beside what they must be by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draftsmith.distill.recipe import Recipe, load_recipe, parse_recipe
from draftsmith.distill.sizing.check import Outcome, Speed, check_plan, read_outcome
from draftsmith.distill.sizing.plan import Plan, Target, make_plan
from draftsmith.distill.sizing.positions import block_efficiency
from draftsmith.distill.sizing.recipe_text import recipe_toml
from tests.distill.sizing.plans import (
    STEPS,
    TOKENS_A_STEP,
    alpha,
    drafts,
    make,
    pilots,
    recipe,
)

BUDGET = int(STEPS * TOKENS_A_STEP)


def test_the_deeper_draft_wins_where_layers_are_free(tiny_target: Path) -> None:
    plan = make(tiny_target, layer_s=0.0)
    assert [row.name for row in plan.rows] == ["cut-2l", "cut-1l", "cut-2l-v100", "cut-1l-v100"]
    assert plan.tokens == BUDGET
    assert plan.tokens_beyond_pilots == 2
    assert not any(row.beyond_pilots for row in plan.rows)
    expected = alpha(2, BUDGET)
    winner, load = plan.winner, plan.winner.loads[0]
    assert winner.alpha.value == pytest.approx(expected, abs=2e-3)
    assert plan.rows[2].alpha.value == pytest.approx(0.6 * expected, abs=2e-3)
    # All steps take a second, so that speed is tau, and the longest lookahead is the best.
    assert load.best_lookahead == 4
    tau = block_efficiency([winner.alpha.value] * 4)[4]
    assert load.speedup.value == pytest.approx(tau, rel=1e-6)
    assert load.break_even == 0


def test_the_shallow_draft_wins_where_layers_are_all(tiny_target: Path) -> None:
    plan = make(tiny_target, layer_s=1.0)
    assert plan.winner.name == "cut-1l"
    load = plan.winner.loads[0]
    # Alone 1 + 2 s a step, with K drafts of a layer K s more.
    assert load.plain_seconds == 3
    assert load.seconds == {1: 4, 2: 5, 3: 6, 4: 7}
    assert load.cost_ratio == pytest.approx(1 / 3)
    # 1 + a = 4/3 for one draft; longer lookaheads pay later.
    assert load.break_even == pytest.approx(1 / 3, abs=1e-6)
    assert plan.winner.speedup(4, 2) == pytest.approx(plan.winner.tau(2) * 3 / 5)
    with pytest.raises(ValueError, match="no figures for 2 requests"):
        plan.winner.speedup(2, 2)


def test_a_draft_that_can_never_pay(tiny_target: Path) -> None:
    plan = make(tiny_target, layer_s=1.0)
    deep = next(row for row in plan.rows if row.name == "cut-2l")
    # A draft as deep as the target: a sure token costs as much as a plain step's layers.
    assert deep.loads[0].seconds[1] == 5
    assert deep.loads[0].break_even == pytest.approx(2 / 3, abs=1e-6)


def test_the_training_cost_grows_with_products(tiny_target: Path) -> None:
    plan = make(tiny_target, layer_s=0.0)
    by_name = {row.name: row for row in plan.rows}
    layer, head = 64 * 576 + 128, 366 * 64
    flops = 2 * (layer + 64 + head)
    expected = BUDGET * (1e-3 + 1e-9 * flops) / 60
    assert by_name["cut-1l"].training_minutes == pytest.approx(expected, rel=1e-6)


def test_the_winners_recipe_is_one_that_distill_takes(tiny_target: Path, tmp_path: Path) -> None:
    plan = make(tiny_target, layer_s=1.0)
    path = tmp_path / "best.toml"
    planned = load_recipe_of(plan.recipe)
    path.write_text(recipe_toml(planned, "two lines\nof comment"))
    assert load_recipe(path) == planned
    assert planned.name == f"tiny-{plan.winner.name}"
    assert planned.student == plan.winner.student
    assert planned.train == recipe(tiny_target).train
    assert planned.evaluate.num_speculative_tokens == plan.winner.loads[0].best_lookahead
    lines = path.read_text().splitlines()
    assert lines[:2] == ["# two lines", "# of comment"]
    assert "learning_rate" not in path.read_text(), "defaults are left out"


def load_recipe_of(content: dict[str, Any]) -> Recipe:
    return parse_recipe(content, "plan")


def test_a_check_gives_the_error_of_every_prediction(tiny_target: Path) -> None:
    plan = make(tiny_target, layer_s=1.0)
    row = plan.winner
    run = load_recipe_of(plan.recipe)
    tau = {1: 1 + 0.8 * row.alpha.value, 2: 1.9}
    check = check_plan(plan, Outcome(run, tau, 1000, 2.0, [Speed(1, 2, 1.25)]))
    first, one, two, tokens, minutes, speed = check.lines
    assert first.relative_error == pytest.approx(0.25)
    assert first.inside is False
    assert one.relative_error == pytest.approx((1 + row.alpha.value) / tau[1] - 1)
    assert two.measured == 1.9
    assert tokens.relative_error == pytest.approx(BUDGET / 1000 - 1)
    assert minutes.predicted == row.training_minutes
    assert speed.relative_error == pytest.approx(row.tau(2) * 3 / 5 / 1.25 - 1)


def test_a_check_refuses_what_was_not_planned(tiny_target: Path, tmp_path: Path) -> None:
    plan = make(tiny_target, layer_s=1.0)
    other = load_recipe_of(plan.recipe | {"student": {"init": "random", "num_layers": 7}})
    with pytest.raises(ValueError, match="no candidate with this run's"):
        check_plan(plan, Outcome(other, {1: 1.5}, None, None, []))
    longer = load_recipe_of(plan.recipe | {"train": plan.recipe["train"] | {"steps": 99}})
    with pytest.raises(ValueError, match="for 50 steps and the run took 99"):
        check_plan(plan, Outcome(longer, {1: 1.5}, None, None, []))
    with pytest.raises(ValueError, match="neither a run nor a draft"):
        read_outcome(tmp_path)
    (tmp_path / "speed.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no speed"):
        read_outcome(tmp_path, tmp_path / "speed.json")


def test_a_plan_is_read_as_it_was_written(tiny_target: Path, tmp_path: Path) -> None:
    plan = make(tiny_target, layer_s=0.5)
    plan.write(tmp_path / "plans" / "plan.json")
    assert Plan.read(tmp_path / "plans" / "plan.json") == plan
    (tmp_path / "plan.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match="is not a plan"):
        Plan.read(tmp_path / "plan.json")


def test_a_vocabulary_that_was_not_counted_is_refused(tiny_target: Path) -> None:
    few = pilots(tiny_target).model_copy(update={"coverage": {}})
    target = Target("tiny-target", "f" * 64, drafts(tiny_target)[0].size)
    latency = make(tiny_target, layer_s=1.0).latency
    with pytest.raises(ValueError, match="What 100 tokens cover"):
        make_plan(recipe(tiny_target), target, drafts(tiny_target), few, latency, [1], [1])
