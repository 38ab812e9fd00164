"""The law of acceptance: parameters found again, intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from draftsmith.distill.sizing.acceptance_law import (
    AcceptanceLaw,
    Observation,
    effective_tokens,
    fit_law,
)

TRUE = AcceptanceLaw(
    terms={"cut": 0.55, "narrow": 0.65},
    size_exponent=0.05,
    token_exponent=0.15,
    layer_weights_unit=4e6,
    tokens_unit=50_000,
)


def points(noise: float = 0.0, seed: int = 0) -> list[Observation]:
    draws = np.random.default_rng(seed)
    found = []
    for start, size in (("cut", 3e6), ("cut", 12e6), ("narrow", 1e6), ("narrow", 5e6)):
        for tokens in (10_000, 20_000, 40_000, 80_000, 160_000):
            coverage = 0.9 if start == "narrow" else 1.0
            alpha = TRUE.alpha(start, int(size), tokens, coverage)
            alpha += noise * draws.standard_normal()
            found.append(Observation(start, int(size), tokens, alpha, coverage))
    return found


def test_the_fit_finds_a_known_law() -> None:
    fitted = fit_law(points(), refits=2)
    law = fitted.law
    assert law.size_exponent == pytest.approx(0.05, rel=1e-6)
    assert law.token_exponent == pytest.approx(0.15, rel=1e-6)
    for start, tokens in (("cut", 2_000_000), ("narrow", 500_000)):
        expected = TRUE.alpha(start, 8_000_000, tokens, 0.95)
        assert law.alpha(start, 8_000_000, tokens, 0.95) == pytest.approx(expected, abs=1e-9)
    assert fitted.residual < 1e-9
    assert not fitted.undecided
    assert fitted.points == 20


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    truth, inside = TRUE.alpha("cut", 6_000_000, 640_000), 0
    for seed in range(12):
        interval = fit_law(points(0.01, seed), refits=25).predict("cut", 6_000_000, 640_000)
        assert interval.low <= interval.value + 0.02
        assert interval.high - interval.low < 0.2
        inside += interval.low <= truth <= interval.high
    assert inside >= 8, "of twelve, at 90 %"


def test_coverage_bounds_what_a_draft_can_reach() -> None:
    perfect = TRUE.model_copy(update={"terms": {"cut": 0.0}})
    assert perfect.alpha("cut", 1_000_000, 1_000, 0.8) == 0.8
    hopeless = TRUE.model_copy(update={"terms": {"cut": 9.0}})
    assert hopeless.alpha("cut", 1_000_000, 1_000, 0.8) == 0


def test_text_that_comes_back_counts_for_less() -> None:
    assert effective_tokens(900, unique=1_000) == 900
    once_more = effective_tokens(2_000, unique=1_000)
    assert 1_960 < once_more < 2_000, "a second reading is nearly worth the first"
    assert effective_tokens(1e9, unique=1_000) == pytest.approx(16_400), "R* = 15.4"
    # Half of the text is the student's own, and new each time.
    half = effective_tokens(4_000, unique=1_000, fresh_share=0.5)
    assert half == pytest.approx(2_000 + once_more)


def test_a_law_that_the_points_do_not_decide_says_so() -> None:
    flat = [
        Observation("cut", size, tokens, 0.5)
        for size in (1_000_000, 4_000_000)
        for tokens in (1_000, 2_000, 4_000)
    ]
    fitted = fit_law(flat, refits=5)
    assert fitted.law.alpha("cut", 2_000_000, 9_000) == pytest.approx(0.5, abs=1e-6)
    assert fitted.undecided == ["size", "tokens"]


def test_too_few_points_or_sizes_are_refused() -> None:
    one_size = [Observation("cut", 1_000_000, tokens, 0.5) for tokens in range(1_000, 9_000, 1_000)]
    with pytest.raises(ValueError, match="two sizes"):
        fit_law(one_size)
    confounded = [one for one in points() if one.layer_weights in (3_000_000, 1_000_000)]
    with pytest.raises(ValueError, match="start alike"):
        fit_law(confounded)
    with pytest.raises(ValueError, match="needs more"):
        fit_law([*points()[:1], *points()[5:6], *points()[10:12]])
