"""The recursion against closed forms, brute force, and simulated speculative decoding."""

from __future__ import annotations

import itertools

import pytest
import torch

from draftsmith.kernels.acceptance import (
    acceptance_probability_T,
    block_efficiency,
    expected_target_calls,
)


def test_no_acceptance_means_one_call_a_token() -> None:
    assert expected_target_calls([0.0] * 17, 5) == 17


@pytest.mark.parametrize("lookahead", [0, 1, 3, 8])
def test_full_acceptance_means_lookahead_plus_one_tokens_a_call(lookahead: int) -> None:
    assert block_efficiency([[1.0] * (lookahead + 1) * 6], lookahead) == lookahead + 1


def test_equal_acceptance_tends_to_the_iid_formula() -> None:
    alpha, lookahead = 0.7, 4
    iid = (1 - alpha ** (lookahead + 1)) / (1 - alpha)
    assert block_efficiency([[alpha] * 20_000], lookahead) == pytest.approx(iid, rel=1e-4)


def test_equals_enumeration_of_every_outcome() -> None:
    accept, lookahead = [0.9, 0.2, 0.6, 0.5, 0.8], 2
    expected = 0.0
    for outcome in itertools.product([True, False], repeat=len(accept)):
        chance = 1.0
        for taken, a in zip(outcome, accept, strict=True):
            chance *= a if taken else 1 - a
        calls = position = 0
        while position < len(accept):
            calls += 1
            drafted = 0
            while drafted < lookahead and (position >= len(accept) or outcome[position]):
                drafted, position = drafted + 1, position + 1
            position += 1
        expected += chance * calls
    assert expected_target_calls(accept, lookahead) == pytest.approx(expected, rel=1e-12)


def test_equals_simulated_speculative_decoding() -> None:
    """A Markov pair decoded by the real accept/reject rule takes as many target calls as the
    recursion says from text sampled by the target alone."""
    generator = torch.manual_seed(5)
    vocab, lookahead, length, runs = 12, 3, 30, 600
    p = torch.distributions.Dirichlet(torch.full((vocab,), 0.4)).sample((vocab,))
    q = 0.5 * p + 0.5 * torch.distributions.Dirichlet(torch.full((vocab,), 0.4)).sample((vocab,))

    def draw(row: torch.Tensor) -> int:
        return int(torch.multinomial(row, 1, generator=generator))

    def simulate() -> int:
        text, calls = [0], 0
        while len(text) <= length:
            calls += 1
            for _ in range(lookahead):
                current = text[-1]
                token = draw(q[current])
                if torch.rand((), generator=generator) < p[current, token] / q[current, token]:
                    text.append(token)
                    continue
                text.append(draw((p[current] - q[current]).clamp(min=0)))
                break
            else:
                text.append(draw(p[text[-1]]))
        return calls

    def predict() -> float:
        text, accept = [0], []
        for _ in range(length):
            current = text[-1]
            token = draw(p[current])
            accept.append(min(1.0, float(q[current, token] / p[current, token])))
            text.append(token)
        return expected_target_calls(accept, lookahead)

    simulated = torch.tensor([simulate() for _ in range(runs)], dtype=torch.float64)
    predicted = torch.tensor([predict() for _ in range(runs)], dtype=torch.float64)
    error = (simulated.var() / runs + predicted.var() / runs).sqrt()
    assert abs(simulated.mean() - predicted.mean()) < 4 * error


def test_acceptance_probability_is_capped_ratio() -> None:
    log_p, log_q = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log()
    torch.testing.assert_close(acceptance_probability_T(log_p, log_q), torch.tensor([0.5, 1.0]))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        expected_target_calls([0.5], -1)
    with pytest.raises(ValueError, match="at least one token"):
        block_efficiency([[]], 2)
