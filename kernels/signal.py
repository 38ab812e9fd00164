"""What a teacher says about N tokens, wherever it came from.

Objectives and kernels ask a signal for the logits of some rows and never learn whether they were
stored or are projected on demand from hidden states, which need V / H times less memory.

Legend: N tokens, V vocabulary, G teacher width, K stored tokens a row.
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
        return _at_least_float32(self.dense_NV[rows])

    def select(self, keep_N: Tensor) -> LogitsSignal:
        return LogitsSignal(self.dense_NV[keep_N])


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
        logits_NV = _at_least_float32(self.hidden_NG[rows] @ self.head_VG.T)
        if self.bias_V is not None:
            logits_NV = logits_NV + self.bias_V
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV

    def select(self, keep_N: Tensor) -> HiddenSignal:
        return HiddenSignal(self.hidden_NG[keep_N], self.head_VG, self.bias_V, self.softcap)


@dataclass(frozen=True)
class SparseSignal:
    """The teacher's probability of K tokens a row, as a server or a store gives it.

    ids_NK: distinct token ids. log_p_NK: their log-probabilities, taken at the temperature of the
    objective; -inf fills up rows that have fewer. log_tail_N: log-probability of all other tokens
    together, which becomes one ghost token that the student's other tokens share; without it the
    K tokens are the whole distribution. Rows are normalised to 1 either way.
    """

    ids_NK: Tensor
    log_p_NK: Tensor
    vocab_size: int
    log_tail_N: Tensor | None = None

    def __len__(self) -> int:
        return self.ids_NK.shape[0]

    def select(self, keep_N: Tensor) -> SparseSignal:
        tail_N = None if self.log_tail_N is None else self.log_tail_N[keep_N]
        return SparseSignal(self.ids_NK[keep_N], self.log_p_NK[keep_N], self.vocab_size, tail_N)


Teacher = HiddenSignal | LogitsSignal | SparseSignal


def _at_least_float32(logits_NV: Tensor) -> Tensor:
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
