"""The law and speed of lossy decoding, against every outcome of really doing it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from draftsmith.kernels.acceptance import log_ratio_T, token_survival_TS
from draftsmith.kernels.expected_calls import expected_calls
from draftsmith.kernels.lossy import Lenience, LossyRule, TypicalAcceptance, lossy_stats
from draftsmith.kernels.lossy_decoding import lossy_decoding, lossy_walk
from tests.kernels.speculation import (
    Pair,
    Prefix,
    Row,
    decode,
    log_probabilities,
    markov_pair,
    position_by_position,
    probability,
    random_pair,
    texts,
)

LENGTH, VOCAB = 4, 3
RULES = [Lenience(0.3), Lenience(0.7, "exponential"), TypicalAcceptance(0.2, 0.5)]


def split(rule: LossyRule, p: Row, q: Row) -> tuple[Row, Row]:
    masses = rule.split_CV(torch.from_numpy(p)[None], torch.from_numpy(q)[None])
    return masses[0][0].numpy(), masses[1][0].numpy()


def ratios(rule: LossyRule, pair: Pair, text: Prefix) -> tuple[torch.Tensor, torch.Tensor]:
    p_TV, q_TV = (
        torch.tensor([model(text[:t]).tolist() for t in range(len(text))], dtype=torch.float64)
        for model in (pair.p, pair.q)
    )
    stats = lossy_stats(rule, p_TV, q_TV, torch.tensor(text))
    return stats.accepted_ratio_N, stats.resampled_ratio_N


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_equals_every_outcome_of_real_decoding(rule: LossyRule, lookahead: int) -> None:
    pair = random_pair(VOCAB, seed=4)
    real = partial(position_by_position, split=partial(split, rule))
    decoded = decode(pair, LENGTH, lookahead, real)
    assert sum(chance for chance, _ in decoded.values()) == pytest.approx(1, rel=1e-12)
    distance = 0.0
    for text in texts(VOCAB, LENGTH):
        chance, calls = decoded.get(text, (0.0, 0.0))
        p = probability(pair.p, text)
        distance += 0.5 * abs(chance - p)
        log_ratio_G, calls_G = lossy_walk(*ratios(rule, pair, text), 3)
        assert p * math.exp(log_ratio_G[lookahead - 1]) == pytest.approx(chance, rel=1e-9)
        assert float(calls_G[lookahead - 1]) == pytest.approx(calls, rel=1e-9)
    shortfall = sum(
        probability(pair.p, text)
        * max(0.0, -math.expm1(lossy_walk(*ratios(rule, pair, text), 3)[0][lookahead - 1]))
        for text in texts(VOCAB, LENGTH)
    )
    assert shortfall == pytest.approx(distance, rel=1e-9)
    assert distance > 0.01, "a rule that costs nothing proves nothing"


def test_estimates_from_drawn_text_are_near_the_truth() -> None:
    pair, rule, lookahead = markov_pair(VOCAB, seed=4), Lenience(0.5), 2
    real = partial(position_by_position, split=partial(split, rule))
    decoded = decode(pair, LENGTH, lookahead, real)
    truth = 0.5 * sum(abs(decoded[y][0] - probability(pair.p, y)) for y in decoded)
    calls = sum(chance * calls for chance, calls in decoded.values())

    every = texts(VOCAB, LENGTH)
    chances = torch.tensor([probability(pair.p, text) for text in every])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(chances, 600, replacement=True, generator=generator).tolist()
    found = lossy_decoding([ratios(rule, pair, every[index]) for index in drawn], lookahead)
    assert float(found.total_variation_G[-1]) == pytest.approx(truth, abs=0.04)
    assert float(found.block_efficiency_G[-1]) == pytest.approx(LENGTH / calls, rel=0.04)
    assert 100 < float(found.effective_responses_G[-1]) <= 600


def test_lenience_one_is_exact_decoding() -> None:
    pair, lookahead = markov_pair(VOCAB, seed=9), 16
    drawn = [text * 5 for text in texts(VOCAB, LENGTH)[::9]]
    found = lossy_decoding([ratios(Lenience(1.0), pair, text) for text in drawn], lookahead)
    exact = expected_calls(
        token_survival_TS(log_ratio_T(*log_probabilities(pair, text)), lookahead) for text in drawn
    )
    assert float(found.total_variation_G.max()) < 1e-13
    tau_G = torch.tensor(list(exact.block_efficiency.values()), dtype=torch.float64)
    torch.testing.assert_close(found.block_efficiency_G, tau_G, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.effective_responses_G, torch.full((16,), 9.0).double())


def test_long_and_unlikely_responses_stay_in_range() -> None:
    accepted, none = torch.full((4000,), 10.0), torch.zeros(4000)
    log_ratio_G, calls_G = lossy_walk(accepted, none, 4)
    assert bool(log_ratio_G.isfinite().all())
    assert calls_G.tolist() == pytest.approx([2000, 1334, 1000, 800])
    found = lossy_decoding([(accepted, none), (none, none)], 1)
    assert found.total_variation_G.tolist() == [0.5]
    assert found.block_efficiency_G.tolist() == [2.0]


def test_wrong_use_is_refused() -> None:
    one = torch.ones(3)
    with pytest.raises(ValueError, match="at least one response"):
        lossy_decoding([], 2)
    with pytest.raises(ValueError, match="max_lookahead must be at least 1"):
        lossy_walk(one, one, 0)
    with pytest.raises(ValueError, match="accepted_ratio_T must be finite"):
        lossy_walk(-one, one, 1)
    with pytest.raises(ValueError, match="resampled_ratio_T must be finite"):
        lossy_walk(one, one * math.nan, 1)
    with pytest.raises(ValueError, match="at least one token"):
        lossy_walk(one[:0], one[:0], 1)
    with pytest.raises(ValueError, match="same tokens"):
        lossy_walk(one, one[:2], 1)
