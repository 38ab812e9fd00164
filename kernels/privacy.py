"""Soft targets that hide what is private (in the manner of Swing distillation, arXiv 2212.08349).

The paper raises the temperature of a token with the likelihood that it is private, and adds noise
to the soft targets. With s in [0, 1], the privacy of the token at a position:

    p' = softmax(z / T + sigma s e),   T = 1 + (T_max - 1) s,   e ~ N(0, 1) for each token of V

where z are the teacher's logits there. s = 0 changes nothing. How s is found and that the noise is
Gaussian, on the logits and scaled by s, is decided here.

Legend: N tokens, V vocabulary, K stored tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from draftsmith.kernels.signal import LogitsSignal, SparseSignal, Teacher


@torch.no_grad()
def private_signal(
    signal: Teacher,
    privacy_N: Tensor,
    seeds: Sequence[int],
    *,
    temperature: float = 1.0,
    noise: float = 0.0,
) -> Teacher:
    """The signal with its private rows softened; the signal itself where none is private.

    A sparse signal stays one, of K tokens and a tail. Any other becomes dense: one [N, V] tensor
    in float32.

    Args:
        privacy_N: s of each row, in [0, 1].
        seeds: of each row's noise, so that it depends on no other row.
        temperature: T_max, at least 1. noise: sigma, at least 0.

    Raises:
        ValueError: temperature or noise is out of its range.
    """
    if temperature < 1 or noise < 0:
        raise ValueError(f"temperature ({temperature}) must be at least 1 and noise ({noise}) 0.")
    rows = privacy_N.nonzero().squeeze(-1).tolist()
    if not rows or (temperature == 1 and noise == 0):
        return signal
    if isinstance(signal, SparseSignal):
        return _private_sparse(signal, privacy_N, seeds, rows, temperature, noise)
    logits_NV = signal.logits_NV(slice(None)).clone()
    for row in rows:
        logits_NV[row] = _soften(
            logits_NV[row], float(privacy_N[row]), seeds[row], temperature, noise
        )
    return LogitsSignal(logits_NV)


def _private_sparse(
    signal: SparseSignal,
    privacy_N: Tensor,
    seeds: Sequence[int],
    rows: Sequence[int],
    temperature: float,
    noise: float,
) -> SparseSignal:
    """The tail is one outcome among the others."""
    log_p_NK = signal.log_p_NK.clone()
    log_tail_N = None if signal.log_tail_N is None else signal.log_tail_N.clone()
    for row in rows:
        outcomes = log_p_NK[row]
        if log_tail_N is not None:
            outcomes = torch.cat([outcomes, log_tail_N[row : row + 1]])
        soft = _soften(outcomes, float(privacy_N[row]), seeds[row], temperature, noise)
        soft = soft.log_softmax(-1)
        log_p_NK[row] = soft[: log_p_NK.shape[1]]
        if log_tail_N is not None:
            log_tail_N[row] = soft[-1]
    return SparseSignal(signal.ids_NK, log_p_NK, signal.vocab_size, log_tail_N)


def _soften(
    logits_V: Tensor, privacy: float, seed: int, temperature: float, noise: float
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn_V = torch.randn(len(logits_V), generator=generator).to(logits_V)
    return logits_V / (1 + (temperature - 1) * privacy) + noise * privacy * drawn_V
