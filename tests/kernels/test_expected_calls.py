"""The recursion against closed forms, brute force, and simulated speculative decoding."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from draftsmith.kernels.acceptance import log_ratio_T, token_survival_TS
from draftsmith.kernels.block_rule import block_survival_TS
from draftsmith.kernels.expected_calls import block_starts_GT, expected_calls
from tests.kernels.speculation import Prefix, drawn_calls, log_probabilities, markov_pair


def survival(accept: list[float], lookahead: int) -> torch.Tensor:
    return token_survival_TS(torch.tensor(accept, dtype=torch.float64).log(), lookahead)


def test_no_acceptance_means_one_call_a_token() -> None:
    assert expected_calls([survival([0.0] * 17, 5)]).calls_G.tolist() == [17] * 5


def test_full_acceptance_means_lookahead_plus_one_tokens_a_call() -> None:
    for lookahead in range(1, 17):
        found = expected_calls([survival([1.0] * (lookahead + 1) * 3, 16)])
        assert found.block_efficiency[lookahead] == lookahead + 1
        assert found.acceptance_per_position(lookahead) == [1.0] * lookahead


def test_one_draft_gives_one_plus_alpha() -> None:
    alpha = 0.37
    found = expected_calls([survival([alpha] * 20_000, 1)])
    assert found.block_efficiency[1] == pytest.approx(1 + alpha, rel=1e-4)


def test_equal_acceptance_tends_to_the_iid_formula() -> None:
    alpha = 0.7
    found = expected_calls([survival([alpha] * 10_000, 16)])
    for lookahead, tau in found.block_efficiency.items():
        iid = (1 - alpha ** (lookahead + 1)) / (1 - alpha)
        assert tau == pytest.approx(iid, rel=1e-3)
    shares = [alpha, alpha**2, alpha**3]
    assert found.acceptance_per_position(3) == pytest.approx(shares, rel=1e-9)


def test_equals_enumeration_of_every_outcome() -> None:
    accept, lookahead = [0.9, 0.2, 0.6, 0.5, 0.8], 2
    expected = 0.0
    offered, accepted = np.zeros(lookahead), np.zeros(lookahead)
    for outcome in itertools.product([True, False], repeat=len(accept)):
        taken = zip(outcome, accept, strict=True)
        chance = float(np.prod([a if take else 1 - a for take, a in taken]))
        calls = position = 0
        while position < len(accept):
            calls += 1
            good = True
            for i, place in enumerate(range(position, position + lookahead)):
                inside = place < len(accept)
                good = good and (not inside or outcome[place])
                offered[i] += chance * inside
                accepted[i] += chance * (inside and good)
            length = 0
            while length < lookahead and all(outcome[position : position + length + 1]):
                length += 1
            position += length + 1
        expected += chance * calls
    found = expected_calls([survival(accept, 4)])
    assert float(found.calls_G[lookahead - 1]) == pytest.approx(expected, rel=1e-12)
    shares = (accepted / offered).tolist()
    assert found.acceptance_per_position(lookahead) == pytest.approx(shares, rel=1e-12)


@pytest.mark.parametrize(
    ("rule", "by_block"), [(token_survival_TS, False), (block_survival_TS, True)]
)
def test_equals_simulated_speculative_decoding(
    rule: Callable[[torch.Tensor, int], torch.Tensor], by_block: bool
) -> None:
    """Drawn decodings take as many target calls as is computed from text of the target alone."""
    pair, lookahead, length, runs = markov_pair(8, seed=5), 4, 24, 800
    rng = np.random.default_rng(3)

    def predict() -> float:
        text: Prefix = ()
        for _ in range(length):
            text += (int(rng.choice(pair.vocab, p=pair.p(text))),)
        log_ratio = log_ratio_T(*log_probabilities(pair, text))
        return float(expected_calls([rule(log_ratio, lookahead)]).calls_G[-1])

    simulated = [drawn_calls(pair, length, lookahead, by_block, rng) for _ in range(runs)]
    predicted = [predict() for _ in range(runs)]
    error = np.sqrt((np.var(simulated) + np.var(predicted)) / runs)
    assert abs(np.mean(simulated) - np.mean(predicted)) < 4 * error
    assert error < 0.2, "the comparison must be able to fail"


def test_responses_weigh_by_their_tokens() -> None:
    found = expected_calls([survival([1.0] * 8, 1), survival([0.0] * 2, 1)])
    assert (found.tokens, found.calls_G.tolist()) == (10, [6])
    assert found.block_efficiency == {1: pytest.approx(10 / 6)}
    assert found.acceptance_per_position(1) == pytest.approx([4 / 6])


def test_positions_past_every_end_are_left_out() -> None:
    assert expected_calls([survival([0.5, 0.5], 4)]).acceptance_per_position(4) == [0.5, 0.25]


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        expected_calls([survival([], 2)])
    with pytest.raises(ValueError, match="same lookahead"):
        expected_calls([survival([1.0], 2), survival([1.0], 3)])
    with pytest.raises(ValueError, match="lookahead must be from 1 to 2"):
        expected_calls([survival([1.0], 2)]).acceptance_per_position(3)
    with pytest.raises(ValueError, match="survival_TS must fall"):
        block_starts_GT(torch.tensor([[1.0, 0.5, 0.6]]))
    with pytest.raises(ValueError, match="survival_TS must have a row"):
        block_starts_GT(torch.ones(3))
