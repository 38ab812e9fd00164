"""Draws by one random number each: exactly the distribution that they are said to have.

Legend: N rows, V vocabulary, G points of an even grid in [0, 1).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draftsmith.server.engine.draws import draw, propose, recover, uniforms

GRID = 200_000


def grid_G() -> torch.Tensor:
    return (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID


def shares(weight_V: torch.Tensor) -> torch.Tensor:
    """How much of [0, 1) leads to each token: what `draw` samples from, without any noise."""
    token_G = draw(weight_V.expand(GRID, -1), grid_G())
    return torch.bincount(token_G, minlength=len(weight_V)).double() / GRID


@pytest.mark.parametrize("vocabulary", [1, 5, 255, 256, 257, 700])
def test_each_token_has_its_share(vocabulary: int) -> None:
    torch.manual_seed(vocabulary)
    weight_V = torch.rand(vocabulary) ** 4
    weight_V[torch.rand(vocabulary) < 0.3] = 0
    weight_V[-1] = 0.5  # also where the last piece is not a whole one
    found_V, want_V = shares(weight_V), weight_V.double() / weight_V.double().sum()
    # A token's interval holds its share of the grid, but for the points at its two ends.
    assert (found_V - want_V).abs().max() <= 2 / GRID + 1e-6
    assert not found_V[weight_V == 0].any()


def test_the_ends_of_the_interval_have_weight() -> None:
    """Rounding must not lead past the last token that is possible, nor before the first."""
    weight_V = torch.zeros(49_152)
    weight_V[[700, 40_000]] = torch.tensor([1e-6, 3e-7])
    ends_N = torch.tensor([0.0, 5e-324, 1 - 2**-53], dtype=torch.float64)
    assert draw(weight_V.expand(3, -1), ends_N).tolist() == [700, 700, 40_000]


def test_a_row_without_weight_gets_some_token() -> None:
    """Where draft and target agree exactly: the proposal passes, and nothing replaces it."""
    assert 0 <= int(draw(torch.zeros(1, 300), torch.tensor([0.5], dtype=torch.float64))) < 300


def test_a_peaked_distribution_keeps_its_tail() -> None:
    """Tokens of 1e-9 exist: noise in float32 would never draw them."""
    weight_V = torch.full((1000,), 1e-9)
    weight_V[3] = 1.0
    tail_N = 1 - torch.linspace(1e-8, 9e-7, 100, dtype=torch.float64)
    assert (draw(weight_V.expand(100, -1), tail_N) > 3).all()


def batch(temperature: list[float], **options: Any) -> SimpleNamespace:
    random = [one > 0 for one in temperature]
    values = {"generators": {}, "all_random": all(random), "all_greedy": not any(random)}
    return SimpleNamespace(temperature=torch.tensor(temperature), **(values | options))


def test_proposals_follow_the_temperature_of_their_request() -> None:
    torch.manual_seed(0)
    logits_V = torch.randn(300)
    rows = 30_000
    temperature = [0.5, 0.0, 2.0] * rows
    token_N, prob_NV = propose(logits_V.repeat(3 * rows, 1), batch(temperature))
    for at, one in enumerate(temperature[:3]):
        found = token_N[at::3]
        if one == 0:
            assert (found == logits_V.argmax()).all()
            continue
        want_V = (logits_V / one).softmax(-1)
        torch.testing.assert_close(prob_NV[at], want_V)
        count_V = torch.bincount(found, minlength=300)
        chi2 = ((count_V - rows * want_V) ** 2 / (rows * want_V)).sum()
        assert chi2 < 299 + 5 * (2 * 299) ** 0.5  # mean and deviation of chi2 with 299 degrees


def test_greedy_batches_get_their_logits_back() -> None:
    logits_NV = torch.randn(2, 50)
    token_N, found_NV = propose(logits_NV, batch([0.0, 0.0]))
    assert token_N.tolist() == logits_NV.argmax(-1).tolist()
    assert found_NV is logits_NV


def replaced(
    target_prob_V: torch.Tensor, draft_prob_V: torch.Tensor | None, proposal: int, tries: int
) -> torch.Tensor:
    """Relative frequencies of what replaces `proposal`."""
    token_N = torch.full((tries,), proposal, dtype=torch.int32)
    draft_prob_NV = None if draft_prob_V is None else draft_prob_V.expand(tries, -1)
    target_prob_NV = target_prob_V.expand(tries, -1)
    counts = [1] * tries
    found_N = recover(
        1, counts, token_N, token_N, draft_prob_NV, target_prob_NV, batch([1.0]), token_N.device
    )
    assert found_N.dtype == torch.int32
    return torch.bincount(found_N.long(), minlength=len(target_prob_V)) / tries


def test_what_replaces_a_proposal_comes_from_the_residual() -> None:
    torch.manual_seed(1)
    p_V, q_V = torch.rand(2, 20).softmax(-1)
    residual_V = (p_V - q_V).clamp(min=0)
    found_V = replaced(p_V, q_V, 0, 200_000)
    torch.testing.assert_close(found_V, residual_V / residual_V.sum(), atol=0.006, rtol=0)
    assert not found_V[residual_V == 0].any()


def test_what_replaces_a_certain_proposal_is_anything_else() -> None:
    torch.manual_seed(2)
    p_V = torch.rand(20).softmax(-1)
    found_V = replaced(p_V, None, 7, 200_000)
    want_V = p_V.index_fill(0, torch.tensor([7]), 0)
    torch.testing.assert_close(found_V, want_V / want_V.sum(), atol=0.006, rtol=0)


def test_seeded_rows_draw_from_their_generators_alone() -> None:
    def once(noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        return uniforms(3, {1: torch.Generator().manual_seed(5)})

    first, second = once(0), once(1)
    assert first[1] == second[1]
    assert first[0] != second[0]
    assert first[2] != second[2]


def test_a_request_without_proposals_draws_nothing() -> None:
    """Or a seeded answer would depend on who else is in the batch."""
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    p_NV = torch.rand(2, 20).softmax(-1)
    token_N = torch.tensor([3, 4], dtype=torch.int32)
    seeded = batch([1.0, 1.0], generators={0: generator})
    recover(2, [0, 2], token_N, token_N, None, p_NV, seeded, token_N.device)
    assert torch.equal(generator.get_state(), before)
    recover(2, [2, 0], token_N, token_N, None, p_NV, seeded, token_N.device)
    assert not torch.equal(generator.get_state(), before)
