"""The reliable part of a teacher: its few most likely tokens, recalibrated.

FIRST (arXiv 2408.12168) keeps five of them, without a tail.

Of each row the smallest set S of most likely tokens is kept whose mass reaches a share, and of
those at most the first k. Their log-probabilities are divided by a temperature:

    r_v = M p_v^(1/T) / sum_{u in S} p_u^(1/T),   v in S

with M = 1, so that S is the whole distribution, or M = sum_{u in S} p_u where the tail is kept as
one outcome of mass 1 - M. With T = 1 the tail changes no probability.

Legend: N tokens, R rows of a block, V vocabulary, K stored tokens a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from draftsmith.kernels.signal import SparseSignal, Teacher, at_least_float32
from draftsmith.kernels.top_k import log_p_blocks


class _Ranked(NamedTuple):
    """Outcomes of a block of rows, the most likely first; log_rest_R is the mass of all others."""

    ids_RK: Tensor
    log_p_RK: Tensor
    log_rest_R: Tensor


@torch.no_grad()
def reliable_signal(
    signal: Teacher,
    *,
    mass: float = 1.0,
    top_k: int | None = None,
    temperature: float = 1.0,
    tail: bool = False,
    divergence_temperature: float = 1.0,
) -> Teacher:
    """The most likely tokens of each row, recalibrated; the signal itself where nothing changes.

    Args:
        mass: share of the probability that the kept tokens reach, in (0, 1].
        top_k: most of them that are kept; None sets no limit.
        temperature: T of the recalibration, positive; below 1 sharpens.
        tail: keep what is left as one outcome instead of spreading it over the kept tokens.
        divergence_temperature: the objective's. A sparse signal is taken at it already.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < mass <= 1 or temperature <= 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"mass ({mass}) must lie in (0, 1], temperature ({temperature}) must be positive and "
            f"top_k ({top_k}) at least 1."
        )
    whole = mass == 1 and (top_k is None or top_k >= signal.vocab_size)
    if whole and temperature == 1:
        return signal
    parts = []
    for ranked in _blocks(signal, top_k, divergence_temperature):
        log_p_RK, log_rest_R = _cut(ranked, mass)
        kept_R1 = log_p_RK.logsumexp(-1, keepdim=True)
        log_r_RK = (log_p_RK / temperature).log_softmax(-1)
        parts.append((ranked.ids_RK, log_r_RK + kept_R1 if tail else log_r_RK, log_rest_R))
    # Rows keep different numbers of tokens: as many columns as the longest one needs.
    columns = max(int((~log_r_RK.isneginf()).sum(-1).amax()) for _, log_r_RK, _ in parts)
    return SparseSignal(
        torch.cat([ids_RK[:, :columns] for ids_RK, _, _ in parts]),
        torch.cat([log_r_RK[:, :columns] for _, log_r_RK, _ in parts]),
        signal.vocab_size,
        torch.cat([log_rest_R for _, _, log_rest_R in parts]) if tail else None,
    )


def _blocks(signal: Teacher, top_k: int | None, divergence_temperature: float) -> Iterator[_Ranked]:
    if isinstance(signal, SparseSignal):
        yield _ranked_sparse(signal, top_k)
        return
    most = min(top_k or signal.vocab_size, signal.vocab_size)
    for _, log_p_RV in log_p_blocks(signal, divergence_temperature):
        log_p_RK, ids_RK = log_p_RV.topk(most, dim=-1)
        rest_RV = log_p_RV.scatter(-1, ids_RK, -torch.inf)
        yield _Ranked(ids_RK, log_p_RK, rest_RV.logsumexp(-1))


def _ranked_sparse(signal: SparseSignal, top_k: int | None) -> _Ranked:
    log_p_NK, order_NK = at_least_float32(signal.log_p_NK).sort(-1, descending=True)
    ids_NK = signal.ids_NK.gather(-1, order_NK)
    tail_N = log_p_NK.new_full((len(signal),), -torch.inf)
    if signal.log_tail_N is not None:
        tail_N = signal.log_tail_N.to(log_p_NK.dtype)
    log_z_N = torch.logaddexp(log_p_NK.logsumexp(-1), tail_N)
    most = min(top_k or log_p_NK.shape[1], log_p_NK.shape[1])
    # A column of nothing, so that there is something to sum where none is dropped.
    dropped_NK = functional.pad(log_p_NK[:, most:], (0, 1), value=-torch.inf)
    dropped_N = dropped_NK.logsumexp(-1)
    return _Ranked(
        ids_NK[:, :most],
        log_p_NK[:, :most] - log_z_N[:, None],
        torch.logaddexp(dropped_N, tail_N) - log_z_N,
    )


def _cut(ranked: _Ranked, mass: float) -> tuple[Tensor, Tensor]:
    """-inf for what lies beyond the share, and the mass of everything that is not kept."""
    if mass == 1:
        return ranked.log_p_RK, ranked.log_rest_R
    p_RK = ranked.log_p_RK.exp()
    beyond_RK = p_RK.cumsum(-1) - p_RK >= mass
    cut_RK = ranked.log_p_RK.masked_fill(~beyond_RK, -torch.inf)
    rest_R = torch.logaddexp(ranked.log_rest_R, cut_RK.logsumexp(-1))
    return ranked.log_p_RK.masked_fill(beyond_RK, -torch.inf), rest_R
