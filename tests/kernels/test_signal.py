"""What can be done to a signal: few tokens, a small vocabulary, recalibration, noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.privacy import private_signal
from draftsmith.kernels.reliable import reliable_signal
from draftsmith.kernels.signal import (
    HiddenSignal,
    LogitsSignal,
    MixtureSignal,
    SparseSignal,
    Teacher,
    distinct_ids,
)
from draftsmith.kernels.top_k import top_k_signal

N, V, H = 6, 23, 5


def teacher(scale: float = 2.0) -> LogitsSignal:
    generator = torch.Generator().manual_seed(3)
    return LogitsSignal(scale * torch.randn(N, V, dtype=torch.float64, generator=generator))


def log_p(signal: Teacher) -> Tensor:
    return signal.logits_NV(slice(None)).log_softmax(-1)


def student() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return (
        torch.randn(N, H, dtype=torch.float64, generator=generator),
        torch.randn(V, H, dtype=torch.float64, generator=generator),
    )


def test_top_k_keeps_the_likeliest_tokens_and_the_texts_own() -> None:
    token_N = torch.arange(N) + 7
    sparse = top_k_signal(teacher(), 4, token_N, temperature=1.5)
    exact_NV = (teacher().dense_NV / 1.5).log_softmax(-1)
    assert sparse.ids_NK.shape == (N, 5)
    torch.testing.assert_close(sparse.log_p_NK, exact_NV.gather(-1, sparse.ids_NK))
    assert torch.equal(sparse.ids_NK[:, :4], exact_NV.topk(4).indices)
    assert (sparse.ids_NK == token_N[:, None]).sum(-1).eq(1).all()
    assert sparse.log_tail_N is not None
    mass_N = sparse.log_p_NK.exp().sum(-1) + sparse.log_tail_N.exp()
    torch.testing.assert_close(mass_N, torch.ones(N, dtype=torch.float64))
    everything = top_k_signal(teacher(), 999, token_N)
    assert everything.log_tail_N is None
    torch.testing.assert_close(log_p(everything), log_p(teacher()))


def test_a_tail_is_spread_evenly_where_logits_are_asked_for() -> None:
    sparse = top_k_signal(teacher(), 4)
    got_NV, exact_NV = log_p(sparse).exp(), log_p(teacher()).exp()
    assert sparse.log_tail_N is not None
    others = torch.ones(N, V, dtype=torch.bool).scatter(-1, sparse.ids_NK, False)
    expected_NV = torch.where(others, (sparse.log_tail_N.exp() / (V - 4))[:, None], exact_NV)
    torch.testing.assert_close(got_NV, expected_NV)
    overlap_error_N = (got_NV - exact_NV).abs().sum(-1) / 2
    assert (overlap_error_N <= sparse.log_tail_N.exp()).all()


@pytest.mark.parametrize("k", [2, 6, V])
def test_a_small_vocabulary_is_the_distribution_given_that_it_is_in_it(k: int) -> None:
    token_D = torch.tensor([0, 2, 3, 5, 8, 13, 21])
    sparse = top_k_signal(teacher(), k)
    expected_ND = log_p(sparse)[:, token_D].log_softmax(-1)
    got = sparse.restrict(token_D)
    assert got.vocab_size == len(token_D)
    torch.testing.assert_close(log_p(got), expected_ND)
    hidden_NH, head_VH = student()
    _, loss_N = fused_linear_divergence(
        hidden_NH, head_VH[token_D], got, torch.ones(N), divergence="forward_kl"
    )
    assert loss_N.isfinite().all()
    if k == V:
        _, dense_N = fused_linear_divergence(
            hidden_NH,
            head_VH[token_D],
            teacher().restrict(token_D),
            torch.ones(N),
            divergence="forward_kl",
        )
        torch.testing.assert_close(loss_N, dense_N)


def test_restricted_hidden_states_keep_bias_and_soft_cap() -> None:
    hidden_NG, head_VG = student()
    bias_V = torch.linspace(-1, 1, V, dtype=torch.float64)
    signal = HiddenSignal(hidden_NG, head_VG, bias_V, 5.0)
    token_D = torch.tensor([1, 4, 20])
    torch.testing.assert_close(
        signal.restrict(token_D).logits_NV(slice(None)), signal.logits_NV(slice(None))[:, token_D]
    )


def test_rows_with_fewer_tokens_leave_the_others_to_the_tail() -> None:
    """A column of -inf changes nothing, whichever token it names."""
    hidden_NH, head_VH = student()
    hidden_NH.requires_grad_()
    short = top_k_signal(teacher(), 3)
    blank_N1 = torch.full((N, 1), -torch.inf, dtype=torch.float64)
    ids_NK = distinct_ids(
        torch.cat([torch.zeros(N, 1, dtype=torch.long), short.ids_NK], -1),
        torch.tensor([[False, True, True, True]]).expand(N, 4),
    )
    padded = SparseSignal(ids_NK, torch.cat([blank_N1, short.log_p_NK], -1), V, short.log_tail_N)
    torch.testing.assert_close(log_p(padded), log_p(short))
    results = []
    for signal in (short, padded):
        loss, loss_N = fused_linear_divergence(
            hidden_NH, head_VH, signal, torch.ones(N), divergence="jsd", beta=0.3
        )
        results.append((loss_N, *torch.autograd.grad(loss, hidden_NH)))
    torch.testing.assert_close(results[1], results[0])


def test_distinct_ids_are_the_lowest_that_are_free() -> None:
    ids = torch.tensor([[5, 0, 9, 2, 0], [1, 1, 1, 1, 1], [4, 3, 2, 1, 0]])
    stored = torch.tensor([[False, True, False, True, False], [False] * 5, [True] * 5])
    assert distinct_ids(ids, stored).tolist() == [[1, 0, 3, 2, 4], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]


@pytest.mark.parametrize("tail", [False, True])
def test_reliable_mass_is_its_closed_form(tail: bool) -> None:
    """Rows of one distribution in float64, worked out by hand: 0.5 + 0.3 reach 0.7."""
    p_V = torch.tensor([0.05, 0.5, 0.15, 0.3], dtype=torch.float64)
    signal = LogitsSignal(p_V.log()[None])
    got = reliable_signal(signal, mass=0.7, temperature=0.5, tail=tail)
    assert isinstance(got, SparseSignal)
    assert got.ids_NK.tolist() == [[1, 3]]
    shares = torch.tensor([[0.25, 0.09]], dtype=torch.float64) / 0.34
    torch.testing.assert_close(got.log_p_NK.exp(), shares * (0.8 if tail else 1.0))
    if tail:
        assert got.log_tail_N is not None
        torch.testing.assert_close(got.log_tail_N.exp(), torch.tensor([0.2], dtype=torch.float64))
    else:
        assert got.log_tail_N is None


@pytest.mark.parametrize("tail", [False, True])
def test_reliable_mass_of_few_tokens_is_that_of_all(tail: bool) -> None:
    """A store of more tokens than are kept, and a live teacher, agree."""
    dense = reliable_signal(teacher(), mass=0.8, top_k=4, temperature=0.7, tail=tail)
    stored = reliable_signal(
        top_k_signal(teacher(), 9), mass=0.8, top_k=4, temperature=0.7, tail=tail
    )
    assert isinstance(dense, SparseSignal)
    assert isinstance(stored, SparseSignal)
    assert (dense.log_p_NK.isneginf()).any(), "rows must keep different numbers of tokens"
    torch.testing.assert_close(log_p(stored), log_p(dense))
    assert torch.equal(stored.ids_NK, dense.ids_NK)


def test_settings_that_change_nothing_give_the_signal_itself() -> None:
    signal = teacher()
    assert reliable_signal(signal) is signal
    assert reliable_signal(signal, top_k=V) is signal
    privacy_N, seeds = torch.ones(N), range(N)
    assert private_signal(signal, privacy_N, seeds) is signal
    assert private_signal(signal, 0 * privacy_N, seeds, temperature=4.0, noise=1.0) is signal
    kept = reliable_signal(signal, top_k=5, tail=True)
    assert isinstance(kept, SparseSignal)
    torch.testing.assert_close(
        kept.log_p_NK, log_p(signal).gather(-1, kept.ids_NK), msg="T = 1 with a tail"
    )


def test_a_self_teacher_is_at_rest_with_a_tail_and_sharpens_without() -> None:
    """With the student as its own teacher, the loss is 0 only as long as nothing is taken away."""
    hidden_NH, head_VH = student()
    itself = HiddenSignal(hidden_NH, head_VH)
    losses = {}
    for tail in (True, False):
        signal = reliable_signal(itself, top_k=5, tail=tail)
        _, loss_N = fused_linear_divergence(
            hidden_NH, head_VH, signal, torch.ones(N), divergence="forward_kl"
        )
        losses[tail] = loss_N
    kept_N = log_p(itself).topk(5).values.logsumexp(-1)
    torch.testing.assert_close(losses[True], torch.zeros(N, dtype=torch.float64))
    torch.testing.assert_close(losses[False], -kept_N)  # KL(p given S || p) = -log p(S)


def test_private_rows_are_softened_by_the_formula() -> None:
    privacy_N = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.0, 1.0])
    soft = private_signal(teacher(), privacy_N, range(N), temperature=5.0)
    assert isinstance(soft, LogitsSignal)
    divisor_N1 = 1 + 4 * privacy_N[:, None].double()
    torch.testing.assert_close(soft.dense_NV, teacher().dense_NV / divisor_N1)

    noisy = private_signal(teacher(), privacy_N, range(N), temperature=5.0, noise=0.3)
    assert isinstance(noisy, LogitsSignal)
    drawn_NV = (noisy.dense_NV - soft.dense_NV) / 0.3
    assert (drawn_NV[privacy_N == 0] == 0).all()
    assert 0.5 < drawn_NV[privacy_N == 1].std() < 1.5
    generator = torch.Generator().manual_seed(5)
    torch.testing.assert_close(drawn_NV[5].float(), torch.randn(V, generator=generator))


def test_noise_belongs_to_the_row_and_not_to_the_batch() -> None:
    privacy_N = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    for whole in (teacher(), top_k_signal(teacher(), 4)):
        every = private_signal(whole, privacy_N, range(N), noise=1.0)
        keep_N = torch.tensor([False, True, True, False, False, True])
        some = private_signal(whole.select(keep_N), privacy_N[keep_N], [1, 2, 5], noise=1.0)
        assert torch.equal(every.logits_NV(slice(None))[keep_N], some.logits_NV(slice(None)))
        mass_N = log_p(some).exp().sum(-1)
        assert mass_N.tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("mass", [0.0, 1.1, math.nan])
def test_settings_out_of_range_are_refused(mass: float) -> None:
    with pytest.raises(ValueError, match="mass"):
        reliable_signal(teacher(), mass=mass)
    with pytest.raises(ValueError, match="temperature"):
        private_signal(teacher(), torch.ones(N), range(N), temperature=0.5)
    with pytest.raises(ValueError, match="must be positive"):
        top_k_signal(teacher(), 0)


def members(count: int, width: int = 4) -> list[HiddenSignal]:
    generator = torch.Generator().manual_seed(9)
    return [
        HiddenSignal(
            torch.randn(N, width + index, dtype=torch.float64, generator=generator),
            torch.randn(V, width + index, dtype=torch.float64, generator=generator),
        )
        for index in range(count)
    ]


WEIGHTS = torch.tensor(
    [[0.2, 0.3, 0.5], [1, 0, 0], [0, 0.5, 0.5], [0, 1, 0], [0.2, 0.3, 0.5], [0, 0, 1]],
    dtype=torch.float64,
)


def mixture() -> tuple[MixtureSignal, Tensor]:
    """The signal, and its probabilities by the definition."""
    parts = members(3)
    p_NV = sum(WEIGHTS[:, index, None] * log_p(part).exp() for index, part in enumerate(parts))
    assert isinstance(p_NV, Tensor)
    return MixtureSignal(tuple(parts), WEIGHTS), p_NV


@pytest.mark.parametrize("token_D", [None, [0, 3, 4, 9, 22]])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "tvd"])
def test_a_mixture_is_one_teacher_in_probability_space(
    divergence: str, token_D: list[int] | None
) -> None:
    """Rows of weight 0, members chosen by row, and a small vocabulary; value and gradients."""
    signal, p_NV = mixture()
    columns = torch.arange(V) if token_D is None else torch.tensor(token_D)
    restricted = signal if token_D is None else signal.restrict(columns)
    torch.testing.assert_close(
        log_p(restricted).exp(), p_NV[:, columns] / p_NV[:, columns].sum(-1, keepdim=True)
    )
    dense = LogitsSignal(p_NV.log()[:, columns])
    hidden_NH, head_VH = student()
    head_DH = head_VH[columns]
    weight_N = torch.tensor([0.5, 1.0, 0.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    results = []
    for teacher_ in (restricted, dense):
        hidden, head = hidden_NH.clone().requires_grad_(), head_DH.clone().requires_grad_()
        loss, loss_N = fused_linear_divergence(
            hidden, head, teacher_, weight_N, divergence=divergence, chunk_bytes=8 * V * 2 * 4
        )
        results.append((loss_N, *torch.autograd.grad(loss, (hidden, head))))
    torch.testing.assert_close(results[0], results[1])


def test_a_mixture_of_one_is_its_member() -> None:
    (alone,) = members(1)
    signal = MixtureSignal((alone,), torch.ones(N, 1, dtype=torch.float64))
    torch.testing.assert_close(log_p(signal), log_p(alone))
    few = top_k_signal(signal, 3)
    torch.testing.assert_close(few.log_p_NK, top_k_signal(alone, 3).log_p_NK)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (MixtureSignal(tuple(members(2)), WEIGHTS), "a column for each member"),
        (
            MixtureSignal((members(1)[0], members(1)[0].restrict(torch.arange(3))), WEIGHTS[:, :2]),
            "the same vocabulary",
        ),
    ],
)
def test_wrong_mixtures_are_refused(signal: MixtureSignal, message: str) -> None:
    hidden_NH, head_VH = student()
    with pytest.raises(ValueError, match=message):
        fused_linear_divergence(hidden_NH, head_VH, signal, torch.ones(N), divergence="tvd")
