"""What a teacher says about N tokens, wherever it came from.

Objectives and kernels ask a signal for the logits of some rows and never learn whether they were
stored or are projected on demand from hidden states, which need V / H times less memory.

Legend: N tokens, R rows, V vocabulary, G teacher width, K stored tokens a row, M members,
D columns of a student that proposes some tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class TeacherSignal(Protocol):
    @property
    def vocab_size(self) -> int: ...

    def __len__(self) -> int: ...

    def logits_NV(self, rows: slice) -> Tensor:
        """float32 logits of the chosen rows (float64 where the signal is)."""
        ...

    def select(self, keep_N: Tensor) -> TeacherSignal:
        """The signal of the tokens where the boolean mask is true."""
        ...


@dataclass(frozen=True)
class LogitsSignal:
    """Dense teacher logits [N, V]."""

    dense_NV: Tensor

    @property
    def vocab_size(self) -> int:
        return self.dense_NV.shape[-1]

    def __len__(self) -> int:
        return self.dense_NV.shape[0]

    def logits_NV(self, rows: slice) -> Tensor:
        return at_least_float32(self.dense_NV[rows])

    def select(self, keep_N: Tensor) -> LogitsSignal:
        return LogitsSignal(self.dense_NV[keep_N])

    def restrict(self, token_D: Tensor) -> LogitsSignal:
        """The distribution given that the token is one of the ascending ids `token_D`."""
        return LogitsSignal(self.dense_NV.index_select(-1, token_D))


@dataclass(frozen=True)
class HiddenSignal:
    """Teacher hidden states [N, G] and its head [V, G], multiplied chunk by chunk.

    bias_V is added to the products; softcap then makes them softcap * tanh(logits / softcap).
    """

    hidden_NG: Tensor
    head_VG: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.head_VG.shape[0]

    def __len__(self) -> int:
        return self.hidden_NG.shape[0]

    def logits_NV(self, rows: slice) -> Tensor:
        logits_NV = at_least_float32(self.hidden_NG[rows] @ self.head_VG.T)
        if self.bias_V is not None:
            logits_NV = logits_NV + self.bias_V
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    def select(self, keep_N: Tensor) -> HiddenSignal:
        return HiddenSignal(self.hidden_NG[keep_N], self.head_VG, self.bias_V, self.softcap)

    def restrict(self, token_D: Tensor) -> HiddenSignal:
        """The distribution given that the token is one of the ascending ids `token_D`."""
        bias_D = None if self.bias_V is None else self.bias_V[token_D]
        head_DG = self.head_VG.index_select(0, token_D)
        return HiddenSignal(self.hidden_NG, head_DG, bias_D, self.softcap)


@dataclass(frozen=True)
class SparseSignal:
    """The teacher's probability of K tokens a row, as a server or a store gives it.

    ids_NK: distinct token ids. log_p_NK: their log-probabilities, taken at the temperature of the
    objective; where it is -inf the token is not stored, for rows that have fewer. log_tail_N:
    log-probability of all tokens that are not stored together, which becomes one ghost token that
    the student's other tokens share; without it the K tokens are the whole distribution. Rows are
    normalised to 1 either way.
    """

    ids_NK: Tensor
    log_p_NK: Tensor
    vocab_size: int
    log_tail_N: Tensor | None = None

    def __len__(self) -> int:
        return self.ids_NK.shape[0]

    def logits_NV(self, rows: slice) -> Tensor:
        """Log-probabilities with the tail spread evenly over the tokens that are not stored.

        A probability is wrong by no more than the tail.
        """
        log_p_RK = at_least_float32(self.log_p_NK[rows])
        share_R1 = self._log_share_N()[rows, None].to(log_p_RK.dtype)
        log_p_RV = share_R1.repeat(1, self.vocab_size)
        stored_RK = torch.where(log_p_RK.isneginf(), share_R1, log_p_RK)
        return log_p_RV.scatter_(-1, self.ids_NK[rows], stored_RK)

    def select(self, keep_N: Tensor) -> SparseSignal:
        tail_N = None if self.log_tail_N is None else self.log_tail_N[keep_N]
        return SparseSignal(self.ids_NK[keep_N], self.log_p_NK[keep_N], self.vocab_size, tail_N)

    def restrict(self, token_D: Tensor) -> SparseSignal:
        """The distribution given that the token is one of the ascending ids `token_D`.

        Of the tail, those that are not stored get the share of an even spread, as in `logits_NV`.
        """
        columns = len(token_D)
        column_NK = torch.searchsorted(token_D, self.ids_NK).clamp_max(columns - 1)
        stored_NK = (token_D[column_NK] == self.ids_NK) & ~self.log_p_NK.isneginf()
        # Stored columns first, and no more than there are columns at all.
        order_NK = stored_NK.int().argsort(dim=-1, descending=True, stable=True)[:, :columns]
        stored_NK, column_NK = stored_NK.gather(-1, order_NK), column_NK.gather(-1, order_NK)
        log_p_NK = self.log_p_NK.gather(-1, order_NK).masked_fill(~stored_NK, -torch.inf)
        tail_N = None
        if self.log_tail_N is not None:
            others_N = (columns - stored_NK.sum(-1)).to(self.log_tail_N.dtype)
            tail_N = self._log_share_N() + others_N.log()
        return SparseSignal(distinct_ids(column_NK, stored_NK), log_p_NK, columns, tail_N)

    def _log_share_N(self) -> Tensor:
        """log-probability of each token that is not stored."""
        if self.log_tail_N is None:
            return self.log_p_NK.new_full((len(self),), -torch.inf)
        others_N = self.vocab_size - (~self.log_p_NK.isneginf()).sum(-1)
        return self.log_tail_N - others_N.clamp_min(1).to(self.log_tail_N.dtype).log()


def distinct_ids(ids_NK: Tensor, stored_NK: Tensor) -> Tensor:
    """ids_NK where stored_NK, and elsewhere the lowest ids that the row does not store.

    The j-th lowest of them is j plus the number of stored ids s_i, ascending, with s_i - i <= j.
    """
    largest = torch.iinfo(ids_NK.dtype).max
    sorted_NK = ids_NK.masked_fill(~stored_NK, largest).sort(-1).values
    place_K = torch.arange(ids_NK.shape[1], device=ids_NK.device)
    rank_NK = (~stored_NK).cumsum(-1) - 1
    below_NK = torch.searchsorted(sorted_NK - place_K, rank_NK.clamp_min(0), right=True)
    return torch.where(stored_NK, ids_NK, rank_NK + below_NK)


@dataclass(frozen=True)
class MixtureSignal:
    """Several teachers: p_n = sum_m weight_nm p_nm, a mixture of their distributions.

    members: each over the N tokens, with its own width; rows of weight 0 are not read.
    weight_NM: not negative, and 1 in sum over the M members of each row.
    token_D: ascending token ids of the columns; None where there are all. The distribution is
        then the mixture's given that the token is one of them, not a mixture of the members'.

    A block of logits costs three [R, V] tensors in float32 however many members there are.
    """

    members: tuple[HiddenSignal, ...]
    weight_NM: Tensor
    token_D: Tensor | None = None

    @property
    def vocab_size(self) -> int:
        return self.members[0].vocab_size if self.token_D is None else len(self.token_D)

    def __len__(self) -> int:
        return self.weight_NM.shape[0]

    def logits_NV(self, rows: slice) -> Tensor:
        """Log-probabilities of the mixture, up to a constant a row."""
        weight_RM = self.weight_NM[rows]
        log_p_RV: Tensor | None = None
        for member, weight_R in zip(self.members, weight_RM.unbind(-1), strict=True):
            taught_R = weight_R > 0
            if not taught_R.any():
                continue
            hidden_RG = member.hidden_NG[rows][taught_R]
            part_RV = HiddenSignal(hidden_RG, member.head_VG, member.bias_V, member.softcap)
            log_part_RV = part_RV.logits_NV(slice(None)).log_softmax(-1)
            log_part_RV += weight_R[taught_R].log()[:, None]
            if log_p_RV is None:
                log_p_RV = log_part_RV.new_full((len(weight_R), log_part_RV.shape[1]), -torch.inf)
            log_p_RV[taught_R] = torch.logaddexp(log_p_RV[taught_R], log_part_RV)
        assert log_p_RV is not None, "every row has a teacher"
        return log_p_RV if self.token_D is None else log_p_RV.index_select(-1, self.token_D)

    def select(self, keep_N: Tensor) -> MixtureSignal:
        members = tuple(member.select(keep_N) for member in self.members)
        return MixtureSignal(members, self.weight_NM[keep_N], self.token_D)

    def restrict(self, token_D: Tensor) -> MixtureSignal:
        """The distribution given that the token is one of the ascending ids `token_D`."""
        assert self.token_D is None, "restricted once"
        return MixtureSignal(self.members, self.weight_NM, token_D)


Teacher = HiddenSignal | LogitsSignal | SparseSignal | MixtureSignal


def at_least_float32(logits_NV: Tensor) -> Tensor:
    """float64 stays; everything else becomes float32."""
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
