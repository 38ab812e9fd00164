"""Statistics of a pair against their definitions, and vLLM's use of top-p."""

from __future__ import annotations

import pytest
import torch

from draftsmith.kernels.pair_stats import nucleus_NV, pair_stats
from draftsmith.kernels.signal import LogitsSignal


def pair(vocab: int = 23, count: int = 9) -> tuple[LogitsSignal, LogitsSignal, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    draft, target = 3 * torch.randn(2, count, vocab, dtype=torch.float64, generator=generator)
    return LogitsSignal(draft), LogitsSignal(target), torch.arange(count)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_definitions(temperature: float) -> None:
    draft, target, token = pair()
    q = (draft.dense_NV / temperature).softmax(-1)
    p = (target.dense_NV / temperature).softmax(-1)
    stats = pair_stats(draft, target, token, temperature=temperature, chunk_bytes=4 * 23 * 2)
    rows = torch.arange(len(token))
    torch.testing.assert_close(stats.overlap_N, torch.minimum(p, q).sum(-1))
    torch.testing.assert_close(stats.p_draft_argmax_N, p[rows, q.argmax(-1)])
    assert stats.draft_argmax_N.tolist() == q.argmax(-1).tolist()
    torch.testing.assert_close(stats.log_p_N, p[rows, token].log())
    torch.testing.assert_close(stats.log_q_N, q[rows, token].log())
    torch.testing.assert_close(stats.forward_kl_N, (p * (p / q).log()).sum(-1))


def test_identical_models_overlap_fully() -> None:
    draft, _, token = pair()
    stats = pair_stats(draft, draft, token)
    torch.testing.assert_close(stats.overlap_N, torch.ones(9, dtype=torch.float64))
    assert stats.draft_argmax_N.tolist() == draft.dense_NV.argmax(-1).tolist()
    assert stats.forward_kl_N.abs().max() < 1e-12


def test_top_p_cuts_the_target_and_not_the_draft() -> None:
    draft, target, token = pair()
    p = nucleus_NV(target.dense_NV.softmax(-1), 0.6)
    stats = pair_stats(draft, target, token, top_p=0.6)
    expected = torch.minimum(p, draft.dense_NV.softmax(-1)).sum(-1)
    torch.testing.assert_close(stats.overlap_N, expected)


def test_nucleus_is_the_smallest_set_that_reaches_the_mass() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(nucleus_NV(p, 0.7), torch.tensor([[0, 2 / 3, 0, 1 / 3]]).double())
    torch.testing.assert_close(nucleus_NV(p, 0.5), torch.tensor([[0.0, 1, 0, 0]]).double())
    torch.testing.assert_close(nucleus_NV(p, 1.0), p)


def test_wrong_use_is_refused() -> None:
    draft, target, token = pair()
    with pytest.raises(ValueError, match="positive temperature"):
        pair_stats(draft, target, token, temperature=0)
    with pytest.raises(ValueError, match="same vocabulary"):
        pair_stats(LogitsSignal(draft.dense_NV[:, :-1]), target, token)
