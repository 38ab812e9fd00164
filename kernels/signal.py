"""What a teacher says about N tokens, wherever it came from.

Objectives and kernels ask a signal for the logits of some rows and never learn whether they were
stored or are projected on demand from hidden states, which need V / H times less memory.

Legend: N tokens, V vocabulary, G teacher width.
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
    """Teacher hidden states [N, G] and its head [V, G], multiplied chunk by chunk."""

    hidden_NG: Tensor
    head_VG: Tensor

    @property
    def vocab_size(self) -> int:
        return self.head_VG.shape[0]

    def __len__(self) -> int:
        return self.hidden_NG.shape[0]

    def logits_NV(self, rows: slice) -> Tensor:
        return _at_least_float32(self.hidden_NG[rows] @ self.head_VG.T)

    def select(self, keep_N: Tensor) -> HiddenSignal:
        return HiddenSignal(self.hidden_NG[keep_N], self.head_VG)


def _at_least_float32(logits_NV: Tensor) -> Tensor:
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
