"""The token rule, judged against every outcome of real speculative decoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from draftsmith.kernels.acceptance import greedy_log_ratio_T, log_ratio_T, token_survival_TS
from draftsmith.kernels.expected_calls import expected_calls
from tests.kernels.speculation import (
    Pair,
    Prefix,
    decode,
    log_probabilities,
    markov_pair,
    probability,
    random_pair,
    texts,
    token_rule,
)

LENGTH, VOCAB = 4, 3


@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_equals_every_outcome_of_real_decoding(lookahead: int) -> None:
    """For each single text: probability as if there were no draft, and calls as computed."""
    pair = random_pair(VOCAB, seed=lookahead)
    decoded = decode(pair, LENGTH, lookahead, token_rule)
    assert len(decoded) == VOCAB**LENGTH
    for text, (chance, calls) in decoded.items():
        assert chance == pytest.approx(probability(pair.p, text), rel=1e-12)
        survival_TS = token_survival_TS(log_ratio_T(*log_probabilities(pair, text)), 3)
        computed = expected_calls([survival_TS]).calls_G[lookahead - 1]
        assert float(computed) == pytest.approx(calls, rel=1e-12)


def test_one_draft_accepts_the_overlap_on_average() -> None:
    pair = random_pair(VOCAB, seed=7)
    mean = sum(
        probability(pair.p, text)
        * float(token_survival_TS(log_ratio_T(*log_probabilities(pair, text)), 1)[0, 1])
        for text in texts(VOCAB, 1)
    )
    assert mean == pytest.approx(float(np.minimum(pair.p(()), pair.q(())).sum()), rel=1e-12)


def test_greedy_ratio_is_agreement() -> None:
    log_ratio = greedy_log_ratio_T(torch.tensor([4, 2, 7]), torch.tensor([4, 3, 7]))
    assert log_ratio.tolist() == [0.0, -math.inf, 0.0]
    survival = token_survival_TS(log_ratio, 2)
    assert survival.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]


def test_greedy_drafts_of_a_sampled_target_are_accepted_where_they_are_the_token() -> None:
    """A draft that proposes its argmax is a draft whose q is a point mass."""
    sampled = markov_pair(VOCAB, seed=2)

    def point_mass(prefix: Prefix) -> np.ndarray:
        return np.eye(VOCAB)[sampled.q(prefix).argmax()]

    pair = Pair(VOCAB, sampled.p, point_mass)
    for text, (chance, calls) in decode(pair, LENGTH, 2, token_rule).items():
        assert chance == pytest.approx(probability(pair.p, text), rel=1e-12)
        argmax = torch.tensor([int(point_mass(text[:t]).argmax()) for t in range(LENGTH)])
        survival_TS = token_survival_TS(greedy_log_ratio_T(torch.tensor(text), argmax), 2)
        assert float(expected_calls([survival_TS]).calls_G[1]) == pytest.approx(calls, rel=1e-12)


def test_a_token_that_the_target_cannot_write_is_refused() -> None:
    log_p_T = torch.tensor([-1.0, -math.inf, -math.inf])
    log_q_T = torch.tensor([-0.5, -1.0, -math.inf])
    assert log_ratio_T(log_p_T, log_q_T).tolist() == [0.5, -math.inf, -math.inf]


@pytest.mark.parametrize(
    ("log_p_T", "log_q_T", "message"),
    [
        (torch.tensor([0.5]), torch.tensor([-1.0]), "log_p_T must hold log-prob"),
        (torch.tensor([-1.0]), torch.tensor([math.nan]), "log_q_T must hold log-prob"),
        (torch.zeros(1, 1), torch.zeros(1), "log_p_T must have one dimension"),
        (torch.zeros(2), torch.zeros(3), "log_p_T has 2 tokens and log_q_T 3"),
    ],
)
def test_wrong_log_probabilities_are_refused(
    log_p_T: torch.Tensor, log_q_T: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        log_ratio_T(log_p_T, log_q_T)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="lookahead must be at least 1"):
        token_survival_TS(torch.zeros(3), 0)
    with pytest.raises(ValueError, match="log_ratio_T must not hold NaN"):
        token_survival_TS(torch.tensor([math.inf]), 2)
    with pytest.raises(ValueError, match="log_ratio_T must have one dimension"):
        token_survival_TS(torch.zeros(3, 1), 2)
    with pytest.raises(ValueError, match="draft_argmax_T"):
        greedy_log_ratio_T(torch.zeros(2), torch.zeros(3))
