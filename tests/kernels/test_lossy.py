"""Lossy rules against the law of the token that a literal accept-or-replace step gives."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch

from draftsmith.kernels.lossy import (
    Lenience,
    LossyRule,
    Relaxation,
    TypicalAcceptance,
    lossy_stats,
)

RULES = [
    *(Lenience(factor, form) for factor in (1.0, 0.6, 0.1) for form in get_args(Relaxation)),
    TypicalAcceptance(),
    TypicalAcceptance(0.3, 0.7),
]


def rows(count: int = 40, vocab: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    logits = 2 * torch.randn(2, count, vocab, generator=torch.Generator().manual_seed(2)).double()
    p_CV, q_CV = logits.softmax(-1)
    return p_CV, q_CV


def step(rule: LossyRule, p_V: list[float], q_V: list[float]) -> tuple[float, list[float]]:
    """One drafted position written out token by token: (chance accepted, law of the output)."""
    entropy = -sum(p * math.log(p) for p in p_V)
    law, accepted = [0.0] * len(p_V), 0.0
    for token, (p, q) in enumerate(zip(p_V, q_V, strict=True)):
        if isinstance(rule, TypicalAcceptance):
            chance = float(p > min(rule.threshold, rule.scale * math.exp(-entropy)))
        else:
            assert isinstance(rule, Lenience)
            e = rule.factor
            relaxed = {"linear": p / e, "square": p / e**2, "exponential": p**e}[rule.form]
            chance = min(1.0, relaxed / q)
        law[token] += q * chance
        accepted += q * chance
    residual = [max(p - q, 0.0) for p, q in zip(p_V, q_V, strict=True)]
    replacement = p_V if isinstance(rule, TypicalAcceptance) else residual
    total = sum(replacement)
    return accepted, [
        mass + (1 - accepted) * r / total for mass, r in zip(law, replacement, strict=True)
    ]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equals_the_step_written_out(rule: LossyRule) -> None:
    p_CV, q_CV = rows()
    token_C = torch.arange(len(p_CV)) % p_CV.shape[1]
    stats = lossy_stats(rule, p_CV, q_CV, token_C)
    for n, (p_V, q_V) in enumerate(zip(p_CV.tolist(), q_CV.tolist(), strict=True)):
        accepted, law = step(rule, p_V, q_V)
        tvd = 0.5 * sum(abs(o - p) for o, p in zip(law, p_V, strict=True))
        token = int(token_C[n])
        both = float(stats.accepted_ratio_N[n] + stats.resampled_ratio_N[n])
        assert float(stats.accept_N[n]) == pytest.approx(accepted, rel=1e-12)
        assert float(stats.tvd_N[n]) == pytest.approx(tvd, rel=1e-9, abs=1e-14)
        assert both * p_V[token] == pytest.approx(law[token], rel=1e-9)


@pytest.mark.parametrize("form", get_args(Relaxation))
def test_lenience_one_is_the_exact_rule(form: Relaxation) -> None:
    p_CV, q_CV = rows()
    stats = lossy_stats(Lenience(1.0, form), p_CV, q_CV, torch.zeros(len(p_CV), dtype=torch.long))
    torch.testing.assert_close(stats.accept_N, torch.minimum(p_CV, q_CV).sum(-1))
    assert float(stats.tvd_N.max()) < 1e-15
    exact = (stats.accepted_ratio_N + stats.resampled_ratio_N - 1).abs()
    assert float(exact.max()) < 1e-14


def test_more_lenience_accepts_more_and_strays_further() -> None:
    p_CV, q_CV = rows()
    token_C = torch.zeros(len(p_CV), dtype=torch.long)
    found = [lossy_stats(Lenience(e), p_CV, q_CV, token_C) for e in (1.0, 0.8, 0.4, 0.1)]
    for stricter, laxer in itertools.pairwise(found):
        assert bool((laxer.accept_N >= stricter.accept_N).all())
        assert bool((laxer.tvd_N >= stricter.tvd_N - 1e-15).all())
    assert float(found[-1].tvd_N.mean()) > 0.1


def test_no_token_exceeds_the_lenient_bound() -> None:
    """Leviathan et al., appendix: no token becomes likelier than p / lenience."""
    p_CV, q_CV = rows()
    accepted_CV, resampled_CV = Lenience(0.3).split_CV(p_CV, q_CV)
    assert bool((accepted_CV + resampled_CV <= p_CV / 0.3 + 1e-15).all())


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("same", [True, False])
def test_point_masses_and_equal_models(rule: LossyRule, same: bool) -> None:
    p_CV = torch.tensor([[0.0, 1.0, 0.0]])
    q_CV = p_CV if same else torch.tensor([[1.0, 0.0, 0.0]])
    stats = lossy_stats(rule, p_CV, q_CV, torch.tensor([1]))
    assert stats.accept_N.tolist() == [float(same)]
    assert stats.tvd_N.tolist() == [0.0]
    assert stats.accepted_ratio_N.tolist() == [float(same)]
    assert stats.resampled_ratio_N.tolist() == [float(not same)]


def test_a_token_that_the_target_cannot_write_counts_as_replaced() -> None:
    p_CV, q_CV = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
    stats = lossy_stats(Lenience(0.5), p_CV, q_CV, torch.tensor([0]))
    assert (stats.accepted_ratio_N.item(), stats.resampled_ratio_N.item()) == (0.0, 1.0)


def test_wrong_rules_are_refused() -> None:
    for factor in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="factor must lie in"):
            Lenience(factor)
    with pytest.raises(ValueError, match="form must be one of linear"):
        Lenience(0.5, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold must be positive"):
        TypicalAcceptance(threshold=0.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        TypicalAcceptance(scale=math.nan)
