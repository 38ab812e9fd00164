"""Statistics of a pair against their definitions, and vLLM's use of top-p."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch

from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.lossy import Lenience, LossyRule, TypicalAcceptance, lossy_stats
from draftsmith.kernels.pair_stats import PairStats, nucleus_NV, pair_stats
from draftsmith.kernels.signal import HiddenSignal, LogitsSignal

VOCAB, COUNT = 23, 9


def pair() -> tuple[LogitsSignal, LogitsSignal, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    draft, target = 3 * torch.randn(2, COUNT, VOCAB, dtype=torch.float64, generator=generator)
    return LogitsSignal(draft), LogitsSignal(target), torch.arange(COUNT)


def tensors(stats: PairStats) -> dict[str, torch.Tensor]:
    found = {one.name: getattr(stats, one.name) for one in fields(stats) if one.name != "lossy"}
    for index, rule in enumerate(stats.lossy):
        found |= {f"{index}.{one.name}": getattr(rule, one.name) for one in fields(rule)}
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_definitions(temperature: float, top_p: float) -> None:
    draft, target, token = pair()
    q = (draft.dense_NV / temperature).softmax(-1)
    p = (target.dense_NV / temperature).softmax(-1)
    served = nucleus_NV(p, top_p)
    rows = torch.arange(COUNT)
    rules: list[LossyRule] = [Lenience(0.5), TypicalAcceptance()]
    stats = pair_stats(
        draft, target, token, temperature=temperature, top_p=top_p, lossy_rules=rules
    )
    expected = {
        "overlap_N": torch.minimum(served, q).sum(-1),
        "tvd_N": 1 - torch.minimum(served, q).sum(-1),
        "p_draft_argmax_N": served[rows, q.argmax(-1)],
        "log_p_N": served[rows, token].log(),
        "log_q_N": q[rows, token].log(),
        "forward_kl_N": (p * (p / q).log()).sum(-1),
        "reverse_kl_N": (q * (q / p).log()).sum(-1),
        "entropy_p_N": -(p * p.log()).sum(-1),
        "entropy_q_N": -(q * q.log()).sum(-1),
        "target_argmax_N": p.argmax(-1),
        "draft_argmax_N": q.argmax(-1),
    }
    for index, rule in enumerate(rules):
        one = lossy_stats(rule, served, q, token)
        expected |= {f"{index}.{name.name}": getattr(one, name.name) for name in fields(one)}
    torch.testing.assert_close(tensors(stats), expected)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "tvd"])
def test_divergences_are_those_that_are_trained(name: str) -> None:
    draft, target, token = pair()
    _, loss_N = fused_linear_divergence(
        draft.dense_NV,
        torch.eye(VOCAB, dtype=torch.float64),
        target,
        torch.ones(COUNT, dtype=torch.float64),
        divergence=name,
    )
    torch.testing.assert_close(getattr(pair_stats(draft, target, token), f"{name}_N"), loss_N)


def test_identical_models_overlap_fully() -> None:
    draft, _, token = pair()
    stats = pair_stats(draft, draft, token)
    torch.testing.assert_close(stats.overlap_N, torch.ones(COUNT, dtype=torch.float64))
    assert torch.equal(stats.draft_argmax_N, stats.target_argmax_N)
    for distance_N in (stats.forward_kl_N, stats.reverse_kl_N, stats.tvd_N):
        assert float(distance_N.abs().max()) < 1e-12


def test_float32_stays_near_float64_on_peaked_logits() -> None:
    generator = torch.Generator().manual_seed(8)
    draft, target = 12 * torch.randn(2, 16, 5000, dtype=torch.float64, generator=generator)
    token = target.argmax(-1)
    rules: list[LossyRule] = [Lenience(0.5), TypicalAcceptance()]
    exact = pair_stats(LogitsSignal(draft), LogitsSignal(target), token, lossy_rules=rules)
    rough = pair_stats(
        LogitsSignal(draft.float()), LogitsSignal(target.float()), token, lossy_rules=rules
    )
    for name, value in tensors(exact).items():
        assert torch.allclose(tensors(rough)[name].double(), value.double(), 1e-4, 2e-5), name


def test_impossible_tokens_make_no_nan() -> None:
    """Padding of the vocabulary has logits of -inf, and a target may rule out what is drafted."""
    inf = math.inf
    target = LogitsSignal(torch.tensor([[0.0, 1.0, -inf, -inf], [0.0, -inf, -inf, -inf]]))
    draft = LogitsSignal(torch.tensor([[1.0, 0.0, 0.5, -inf], [2.0, -inf, -inf, -inf]]))
    stats = pair_stats(draft, target, torch.tensor([1, 0]), lossy_rules=[Lenience(0.5)])
    for name, value in tensors(stats).items():
        assert not bool(value.isnan().any()), name
    assert stats.forward_kl_N.isfinite().all()
    assert stats.reverse_kl_N.tolist() == [inf, 0.0]
    assert stats.overlap_N[1] == 1
    assert pair_stats(target, draft, torch.tensor([2, 0])).forward_kl_N.tolist() == [inf, 0.0]


def test_nan_logits_are_not_hidden() -> None:
    draft, target, token = pair()
    target.dense_NV[4, 2] = math.nan
    for name, value in tensors(pair_stats(draft, target, token)).items():
        if name not in ("entropy_q_N", "log_q_N", "target_argmax_N", "draft_argmax_N"):
            assert value.isnan().nonzero().tolist() == [[4]], name


def test_a_log_probability_does_not_underflow() -> None:
    logits = LogitsSignal(torch.tensor([[0.0, -300.0]]))
    stats = pair_stats(logits, logits, torch.tensor([1]))
    assert (stats.log_p_N.item(), stats.log_q_N.item()) == (-300.0, -300.0)


def test_nucleus_is_the_smallest_set_that_reaches_the_mass() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(nucleus_NV(p, 0.7), torch.tensor([[0, 2 / 3, 0, 1 / 3]]).double())
    torch.testing.assert_close(nucleus_NV(p, 0.5), torch.tensor([[0.0, 1, 0, 0]]).double())
    torch.testing.assert_close(nucleus_NV(p, 1.0), p)


@dataclass(frozen=True)
class Watched(LogitsSignal):
    """A signal that remembers how many rows were asked for at a time."""

    asked: list[int] = field(default_factory=list)

    def logits_NV(self, rows: slice) -> torch.Tensor:
        logits_NV = super().logits_NV(rows)
        self.asked.append(len(logits_NV))
        return logits_NV


def test_chunks_keep_to_the_budget_and_change_nothing() -> None:
    draft, target, token = pair()
    settings: dict[str, Any] = {"top_p": 0.8, "lossy_rules": [Lenience(0.4)]}
    whole = pair_stats(draft, target, token, **settings)
    for budget in (1, 4 * 10 * 8 * VOCAB):
        watched = Watched(target.dense_NV)
        parts = pair_stats(draft, watched, token, budget_bytes=budget, **settings)
        assert max(watched.asked) == max(1, budget // (10 * 8 * VOCAB))
        torch.testing.assert_close(tensors(parts), tensors(whole), rtol=1e-13, atol=0)
    for name, value in tensors(whole).items():
        assert value.shape == (COUNT,), name


def test_no_token_gives_empty_statistics() -> None:
    draft, target, token = pair()
    none = torch.zeros(COUNT, dtype=torch.bool)
    stats = pair_stats(
        draft.select(none), target.select(none), token[none], lossy_rules=[Lenience(0.4)]
    )
    assert all(len(value) == 0 for value in tensors(stats).values())


def test_hidden_states_of_other_widths_give_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    draft = HiddenSignal(
        torch.randn(COUNT, 5, generator=generator), torch.randn(VOCAB, 5, generator=generator)
    )
    target = HiddenSignal(
        torch.randn(COUNT, 8, generator=generator), torch.randn(VOCAB, 8, generator=generator)
    )
    dense_draft, dense_target = (
        LogitsSignal(one.hidden_NG @ one.head_VG.T) for one in (draft, target)
    )
    token = torch.arange(COUNT)
    torch.testing.assert_close(
        tensors(pair_stats(draft, target, token)),
        tensors(pair_stats(dense_draft, dense_target, token)),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": math.nan}, "temperature must be positive"),
        ({"top_p": 0.0}, "top_p must lie"),
        ({"top_p": 1.1}, "top_p must lie"),
        ({"budget_bytes": 0}, "budget_bytes must be positive"),
        ({"token_N": torch.arange(COUNT - 1)}, "token_N must cover the same tokens"),
        ({"token_N": torch.arange(COUNT).float()}, "token_N must be one-dimensional"),
        ({"token_N": torch.arange(COUNT)[:, None]}, "token_N must be one-dimensional"),
        ({"token_N": torch.full((COUNT,), VOCAB)}, "token_N must lie in"),
        ({"token_N": torch.full((COUNT,), -100)}, "token_N must lie in"),
        ({"draft": LogitsSignal(torch.zeros(COUNT, VOCAB - 1))}, "same vocabulary"),
        ({"draft": LogitsSignal(torch.zeros(COUNT + 1, VOCAB))}, "draft, target and token_N"),
    ],
)
def test_wrong_use_is_refused(change: dict[str, Any], message: str) -> None:
    draft, target, token = pair()
    arguments: dict[str, Any] = {"draft": draft, "target": target, "token_N": token} | change
    with pytest.raises(ValueError, match=message):
        pair_stats(**arguments)
