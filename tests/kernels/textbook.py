"""The losses as papers write them, for autograd: the reference of every test, in float64.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETA, ALPHA, ETA = 0.3, 0.2, 3.0
KNOBS = {"beta": BETA, "alpha": ALPHA, "eta": ETA}


def divergence_N(name: str, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Divergence of each row from logits that are already divided by the temperature."""
    log_p, log_q = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    overlap = torch.minimum(p, q).sum(-1)
    tvd = 0.5 * (p - q).abs().sum(-1)
    if name == "forward_kl":
        return _kl(log_p, log_q)
    if name == "reverse_kl":
        return _kl(log_q, log_p)
    if name == "jsd":
        log_m = _log_mixture(log_p, log_q, BETA)
        return BETA * _kl(log_p, log_m) + (1 - BETA) * _kl(log_q, log_m)
    if name == "tvd":
        return tvd
    if name == "skew_kl":
        return _kl(log_p, _log_mixture(log_p, log_q, ALPHA))
    if name == "skew_reverse_kl":
        return _kl(log_q, _log_mixture(log_q, log_p, ALPHA))
    if name == "lk":
        return -overlap.log()
    assert name == "lk_hybrid"
    share = (-ETA * overlap.detach()).exp()
    return share * _kl(log_p, log_q) + (1 - share) * tvd


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    a = log_a.exp()
    return torch.where(a > 0, a * (log_a - log_b), 0.0).sum(-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    first = torch.tensor(share, dtype=log_a.dtype).log()
    second = torch.tensor(1 - share, dtype=log_a.dtype).log()
    return torch.logaddexp(first + log_a, second + log_b)
