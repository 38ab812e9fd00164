"""The one definition of each divergence: its value, and its gradient in closed form.

p = teacher, q = student, both softmax(logits / temperature), d = log q - log p.

    forward_kl        KL(p || q)                                    (GKD, arXiv 2306.13649)
    reverse_kl        KL(q || p)                                    (MiniLLM, arXiv 2306.08543)
    jsd               b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q,  0 < b < 1   (GKD)
    tvd               1/2 sum |p - q| = 1 - sum min(p, q)           (DistillSpec, arXiv 2310.08461)
    skew_kl           KL(p || a p + (1 - a) q),  0 < a < 1          (DistiLLM, arXiv 2402.03898)
    skew_reverse_kl   KL(q || a q + (1 - a) p),  0 < a < 1          (DistiLLM)
    lk                -log sum min(p, q)                            (LK losses, arXiv 2602.23881)
    lk_hybrid         l KL(p || q) + (1 - l) tvd, l = exp(-eta sum min(p, q)) held fixed   (LK losses)

Each is a few sums over the vocabulary and two functions of them. With u = q dL/dq, element by
element, and c = sum u, the gradient by the student's scaled logits is u - q c. Whoever holds only
a part of the vocabulary adds up the sums of all parts before it asks for loss and gradient, and the
Triton kernels repeat these lines and are tested against them.

Legend: R rows (tokens), V vocabulary; [R, 1] tensors are sums of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LOWEST_LOGIT = -1e30
"""Logits below this, -inf among them, count as this: no difference of two of them is then NaN.
A KL whose support fails comes out as an absurdly large number instead of inf."""

_LEAST_OVERLAP = 1e-30

Sums = tuple[Tensor, ...]


class Pair(NamedTuple):
    """Both distributions and their logarithms; log_ratio is log q - log p."""

    q_RV: Tensor
    p_RV: Tensor
    log_ratio_RV: Tensor

    @classmethod
    def of(cls, log_q_RV: Tensor, log_p_RV: Tensor) -> Pair:
        return cls(log_q_RV.exp(), log_p_RV.exp(), log_q_RV - log_p_RV)


class Divergence:
    """One divergence. `knob` is its parameter, as a tensor without dimensions.

    parameter: the argument that sets the knob, or None.
    """

    parameter: str | None = None

    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        """Terms [R, V] whose sums over the vocabulary the other two functions need."""
        raise NotImplementedError

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        """Value [R, 1] from the sums [R, 1]."""
        raise NotImplementedError

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        """u = q dL/dq as [R, V], and its sum over the vocabulary as [R, 1]."""
        raise NotImplementedError


class ForwardKL(Divergence):
    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        return (-pair.p_RV * pair.log_ratio_RV,)

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        return sums[0]

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        return -pair.p_RV, -1.0


class ReverseKL(Divergence):
    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        return (pair.q_RV * pair.log_ratio_RV,)

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        return sums[0]

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        return pair.q_RV * pair.log_ratio_RV, sums[0]


class JSD(Divergence):
    parameter = "beta"

    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        m = _Mixture.of(pair, knob)
        return pair.p_RV * m.log_p_over_m(), pair.q_RV * m.log_q_over_m()

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        return knob * sums[0] + (1 - knob) * sums[1]

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        log_q_over_m_RV = _Mixture.of(pair, knob).log_q_over_m()
        return (1 - knob) * pair.q_RV * log_q_over_m_RV, (1 - knob) * sums[1]


class TVD(Divergence):
    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        return 0.5 * (pair.q_RV - pair.p_RV).abs(), _tvd_slope(pair)

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        return sums[0]

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        return _tvd_slope(pair), sums[1]


class SkewKL(Divergence):
    parameter = "alpha"

    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        m = _Mixture.of(pair, knob)
        return pair.p_RV * m.log_p_over_m(), pair.q_RV * m.p_over_m()

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        return sums[0]

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        p_over_m_RV = _Mixture.of(pair, knob).p_over_m()
        return (knob - 1) * pair.q_RV * p_over_m_RV, (knob - 1) * sums[1]


class SkewReverseKL(Divergence):
    parameter = "alpha"

    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        m = _Mixture.of(pair, 1 - knob)
        return pair.q_RV * m.log_q_over_m(), pair.q_RV * m.q_over_m()

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        return sums[0]

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        m = _Mixture.of(pair, 1 - knob)
        slope_RV = pair.q_RV * (m.log_q_over_m() - knob * m.q_over_m())
        return slope_RV, sums[0] - knob * sums[1]


class LK(Divergence):
    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        return *TVD.addends(pair, knob), torch.minimum(pair.q_RV, pair.p_RV)

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        tvd, _, overlap = sums
        # Near 1 the overlap has lost its digits, which the total variation still has.
        return torch.where(
            tvd < 0.5, -torch.log1p(-tvd.clamp_max(0.5)), -overlap.clamp_min(_LEAST_OVERLAP).log()
        )

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        per_overlap = 1 / sums[2].clamp_min(_LEAST_OVERLAP)
        return _tvd_slope(pair) * per_overlap, sums[1] * per_overlap


class LKHybrid(Divergence):
    parameter = "eta"

    @staticmethod
    def addends(pair: Pair, knob: Tensor) -> Sums:
        return *TVD.addends(pair, knob), -pair.p_RV * pair.log_ratio_RV

    @staticmethod
    def loss(sums: Sequence[Tensor], knob: Tensor) -> Tensor:
        tvd, _, forward_kl = sums
        share = torch.exp(-knob * (1 - tvd))
        return share * forward_kl + (1 - share) * tvd

    @staticmethod
    def slope(pair: Pair, sums: Sequence[Tensor], knob: Tensor) -> tuple[Tensor, Tensor | float]:
        share = torch.exp(-knob * (1 - sums[0]))
        slope_RV = (1 - share) * _tvd_slope(pair) - share * pair.p_RV
        return slope_RV, (1 - share) * sums[1] - share


def _tvd_slope(pair: Pair) -> Tensor:
    # q times sign(q - p) / 2, shifted by q / 2, which cancels in the gradient: where p and q hardly
    # overlap, the sum of what is left is as small as the overlap that lk divides it by.
    return -torch.where(pair.q_RV < pair.p_RV, pair.q_RV, 0.0)


class _Mixture(NamedTuple):
    """m = b p + (1 - b) q, relative to the larger of p and q: nothing overflows, no logarithm is
    taken of an underflowed probability, and where p = q all ratios are exact."""

    log_ratio_RV: Tensor
    smaller_over_larger: Tensor
    m_over_larger: Tensor

    @classmethod
    def of(cls, pair: Pair, teacher_share: Tensor) -> _Mixture:
        smaller_over_larger = torch.exp(-pair.log_ratio_RV.abs())
        share_of_smaller = torch.where(pair.log_ratio_RV >= 0, teacher_share, 1 - teacher_share)
        m_over_larger = 1 + share_of_smaller * (smaller_over_larger - 1)
        return cls(pair.log_ratio_RV, smaller_over_larger, m_over_larger)

    def log_q_over_m(self) -> Tensor:
        return self.log_ratio_RV.clamp_max(0) - self.m_over_larger.log()

    def log_p_over_m(self) -> Tensor:
        return (-self.log_ratio_RV).clamp_max(0) - self.m_over_larger.log()

    def q_over_m(self) -> Tensor:
        larger = torch.where(self.log_ratio_RV >= 0, 1.0, self.smaller_over_larger)
        return larger / self.m_over_larger

    def p_over_m(self) -> Tensor:
        larger = torch.where(self.log_ratio_RV >= 0, self.smaller_over_larger, 1.0)
        return larger / self.m_over_larger


DEFINITIONS: dict[str, type[Divergence]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": JSD,
    "tvd": TVD,
    "skew_kl": SkewKL,
    "skew_reverse_kl": SkewReverseKL,
    "lk": LK,
    "lk_hybrid": LKHybrid,
}
DIVERGENCES = tuple(DEFINITIONS)
