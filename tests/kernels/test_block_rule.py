"""The block rule from two scalars a token, against the published algorithm's every outcome."""

from __future__ import annotations

import math

import pytest
import torch

from draftsmith.kernels.acceptance import log_ratio_T, token_survival_TS
from draftsmith.kernels.block_rule import block_survival_TS
from draftsmith.kernels.expected_calls import expected_calls
from tests.kernels.speculation import (
    block_rule,
    decode,
    log_probabilities,
    probability,
    random_pair,
    texts,
)

LENGTH, VOCAB = 4, 3


@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_equals_every_outcome_of_the_algorithm(lookahead: int) -> None:
    """For each single text: probability as if there were no draft, and calls as computed."""
    pair = random_pair(VOCAB, seed=lookahead)
    decoded = decode(pair, LENGTH, lookahead, block_rule)
    assert len(decoded) == VOCAB**LENGTH
    for text, (chance, calls) in decoded.items():
        assert chance == pytest.approx(probability(pair.p, text), rel=1e-12)
        survival_TS = block_survival_TS(log_ratio_T(*log_probabilities(pair, text)), 3)
        computed = expected_calls([survival_TS]).calls_G[lookahead - 1]
        assert float(computed) == pytest.approx(calls, rel=1e-12)


def test_equals_the_published_expectation_over_drafts() -> None:
    """E over drafts of sum w_i, w_i = min(1, w_{i-1} p / q): the paper's accepted length."""
    pair, lookahead = random_pair(VOCAB, seed=11), 3
    over_drafts = over_text = 0.0
    for text in texts(VOCAB, lookahead):
        weight = 1.0
        log_ratio = log_ratio_T(*log_probabilities(pair, text))
        for step in (-log_ratio).tolist():
            weight = min(1.0, weight * math.exp(step))
            over_drafts += probability(pair.q, text) * weight
        survival_S = block_survival_TS(log_ratio, lookahead)[0]
        over_text += probability(pair.p, text) * float(survival_S[1:].sum())
    assert over_text == pytest.approx(over_drafts, rel=1e-12)


def test_never_worse_than_the_token_rule_and_equal_for_one_draft() -> None:
    log_ratio_T = torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
    token_TS, block_TS = (rule(log_ratio_T, 8) for rule in (token_survival_TS, block_survival_TS))
    assert bool((block_TS >= token_TS).all())
    assert bool((block_TS[:, 2:] > token_TS[:, 2:]).any())
    torch.testing.assert_close(block_TS[:, :2], token_TS[:, :2])


def test_a_greedy_draft_gains_nothing() -> None:
    matches_T = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 0, 1]).log()
    surplus_T = matches_T + 0.4  # q / p > 1 where the draft is sure and the target is not
    assert torch.equal(block_survival_TS(surplus_T, 4), token_survival_TS(matches_T, 4))


def test_identical_models_are_never_refused() -> None:
    survival_TS = block_survival_TS(torch.zeros(12), 3)
    assert expected_calls([survival_TS]).block_efficiency == {1: 2, 2: 3, 3: 4}


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="lookahead must be at least 1"):
        block_survival_TS(torch.zeros(3), 0)
    with pytest.raises(ValueError, match="log_ratio_T must not hold NaN"):
        block_survival_TS(torch.tensor([math.nan]), 2)
