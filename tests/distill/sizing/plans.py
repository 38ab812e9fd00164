"""A plan for the tiny target from made-up pilots, whose best draft is known."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from draftsmith.distill.models import load_shape
from draftsmith.distill.recipe import Recipe, load_recipe
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.sizing.candidates import Candidate, Grid, candidates, start_of
from draftsmith.distill.sizing.latency import LatencyModel
from draftsmith.distill.sizing.pilots import Pilot, Pilots, Point, setting_of
from draftsmith.distill.sizing.plan import Plan, Target, make_plan
from draftsmith.distill.student.sizing import size_of

GRID = Grid(
    starts=("cut",),
    layers=(1, 2),
    hidden_sizes=(),
    key_value_heads=(None,),
    intermediate_sizes=(None,),
    vocabularies=(100, None),
)
COVERAGE = {100: 0.6}
STEPS, TOKENS_A_STEP = 50, 40.0


def recipe(target: Path) -> Recipe:
    return load_recipe("tiny", [f"teacher.model={target}", f"train.steps={STEPS}"])


def drafts(target: Path) -> list[Candidate]:
    return candidates(load_shape(target).config, GRID, torch.bfloat16, StudentSection())


def alpha(layers: int, tokens: int) -> float:
    """What the pilots found: deeper drafts learn to accept more; exact in the law's own form."""
    return 1 - 0.7 * layers**-0.3 * (tokens / 100) ** -0.4


def pilot(one: Candidate) -> Pilot:
    coverage = COVERAGE.get(one.section.vocabulary or 0, 1.0)
    layers = one.section.num_layers or 0
    points = [
        Point(step=step, tokens=40 * step, chances=[coverage * alpha(layers, 40 * step)] * 4)
        for step in (5, 10, 15, 20, 25)
    ]
    return Pilot(
        name=one.name,
        student=one.section,
        layer_weights=one.size.layers,
        flops_a_token=one.size.flops_a_token,
        coverage=coverage,
        tokens_a_step=TOKENS_A_STEP,
        seconds_a_token=1e-3 + 1e-9 * one.size.flops_a_token,
        points=points,
    )


def pilots(target: Path) -> Pilots:
    whole = [one for one in drafts(target) if one.section.vocabulary is None]
    assert [start_of(one.section) for one in whole] == ["cut", "cut"]
    return Pilots(
        teacher="f" * 64,
        setting=setting_of(recipe(target)),
        coverage=COVERAGE,
        answers="removed",
        unique_tokens=1_000_000,
        fresh_share=0.0,
        pilots=[pilot(one) for one in whole],
    )


@cache
def make(target: Path, *, layer_s: float) -> Plan:
    """`layer_s` beside a step of 1 s decides which depth is the best."""
    latency = LatencyModel(
        step_s=1.0, pass_s=0.0, layer_s=layer_s, byte_s=0.0, flop_s=0.0, source="test"
    )
    size = size_of(load_shape(target).config, torch.bfloat16)
    return make_plan(
        recipe(target),
        Target("tiny-target", "f" * 64, size),
        drafts(target),
        pilots(target),
        latency,
        [1, 4],
        [1, 2, 3, 4],
    )
