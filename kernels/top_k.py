"""From any signal to the few tokens a row that carry most of it.

Legend: N tokens, R rows of a block, V vocabulary, K stored tokens a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from draftsmith.kernels.signal import SparseSignal, Teacher

_BLOCK_BYTES = 64 * 2**20
"""Of one [R, V] tensor in float32; a handful of them live at a time."""


@torch.no_grad()
def top_k_signal(
    signal: Teacher, k: int, token_N: Tensor | None = None, *, temperature: float = 1.0
) -> SparseSignal:
    """The k most likely tokens of each row with their exact log-probabilities, and the tail's.

    Args:
        k: at least 1; where it reaches the vocabulary, every token is kept and there is no tail.
        token_N: tokens of the text, kept beside the k: a divergence that is averaged over the
            student's own tokens looks there. One more column holds it, or the next likely token.
        temperature: divides the logits.

    Raises:
        ValueError: k or the temperature is not positive.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k ({k}) and temperature ({temperature}) must be positive.")
    vocab_size = signal.vocab_size
    columns = min(k + (token_N is not None), vocab_size)
    parts = []
    for rows, log_p_RV in log_p_blocks(signal, temperature):
        log_p_RK, ids_RK = log_p_RV.topk(columns, dim=-1)
        if token_N is not None:
            ids_RK = _with_token(ids_RK, token_N[rows])
            log_p_RK = log_p_RV.gather(-1, ids_RK)
        log_tail_R = log_p_RV.scatter(-1, ids_RK, -torch.inf).logsumexp(-1)
        parts.append((ids_RK, log_p_RK, log_tail_R))
    ids_NK, log_p_NK, log_tail_N = (torch.cat(part) for part in zip(*parts, strict=True))
    whole = columns == vocab_size
    return SparseSignal(ids_NK, log_p_NK, vocab_size, None if whole else log_tail_N)


def log_p_blocks(signal: Teacher, temperature: float = 1.0) -> Iterator[tuple[slice, Tensor]]:
    """The signal's log-probabilities in blocks of rows: (rows, log_p_RV), at least one block."""
    size = max(1, _BLOCK_BYTES // (4 * signal.vocab_size))
    for start in range(0, max(1, len(signal)), size):
        rows = slice(start, min(start + size, len(signal)))
        yield rows, (signal.logits_NV(rows) / temperature).log_softmax(-1)


def _with_token(ids_RK: Tensor, token_R: Tensor) -> Tensor:
    """The last column replaced by the token, where it is in no other."""
    missing_R = ~(ids_RK == token_R[:, None]).any(-1)
    ids_RK = ids_RK.clone()
    ids_RK[missing_R, -1] = token_R[missing_R]
    return ids_RK
