"""The divergences of `divergences.py` once more, for Triton; tests hold the two together.

`addends` and `slope` are called on blocks of a row, `loss` and `slope_total` on its sums. Every
function takes the divergence as a compile-time number, so that each keeps its own lines only.

Legend: x = log q, y = log p, d = x - y, k = the divergence's parameter, s0 s1 s2 its sums.
"""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
import triton
import triton.language as tl

from draftsmith.kernels.divergences import DIVERGENCES

NUMBER = {name: number for number, name in enumerate(DIVERGENCES)}

FORWARD_KL = tl.constexpr(NUMBER["forward_kl"])
REVERSE_KL = tl.constexpr(NUMBER["reverse_kl"])
JSD = tl.constexpr(NUMBER["jsd"])
TVD = tl.constexpr(NUMBER["tvd"])
SKEW_KL = tl.constexpr(NUMBER["skew_kl"])
SKEW_REVERSE_KL = tl.constexpr(NUMBER["skew_reverse_kl"])
LK = tl.constexpr(NUMBER["lk"])
LK_HYBRID = tl.constexpr(NUMBER["lk_hybrid"])

LEAST_OVERLAP = tl.constexpr(1e-30)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2_E)


@triton.jit
def addends(DIVERGENCE: tl.constexpr, q, p, d, k):
    """Three terms to sum over the row; those that a divergence does not need are zeros."""
    a0 = tl.zeros_like(q)
    a1 = tl.zeros_like(q)
    a2 = tl.zeros_like(q)
    if DIVERGENCE == FORWARD_KL:
        a0 = -p * d
    elif DIVERGENCE == REVERSE_KL:
        a0 = q * d
    elif DIVERGENCE == JSD:
        _, log_m = _mixture(d, k)
        a0 = p * (tl.minimum(-d, 0.0) - log_m)
        a1 = q * (tl.minimum(d, 0.0) - log_m)
    elif DIVERGENCE == SKEW_KL:
        p_over_m, log_m = _mixture(-d, 1 - k)
        a0 = p * (tl.minimum(-d, 0.0) - log_m)
        a1 = q * p_over_m
    elif DIVERGENCE == SKEW_REVERSE_KL:
        q_over_m, log_m = _mixture(d, 1 - k)
        a0 = q * (tl.minimum(d, 0.0) - log_m)
        a1 = q * q_over_m
    else:
        a0 = 0.5 * tl.abs(q - p)
        a1 = -tl.where(q < p, q, 0.0)
        if DIVERGENCE == LK:
            a2 = tl.minimum(q, p)
        if DIVERGENCE == LK_HYBRID:
            a2 = -p * d
    return a0, a1, a2


@triton.jit
def loss(DIVERGENCE: tl.constexpr, s0, s1, s2, k):
    value = s0
    if DIVERGENCE == JSD:
        value = k * s0 + (1 - k) * s1
    if DIVERGENCE == LK:
        # Near 1 the overlap has lost its digits, which the total variation still has.
        near = _minus_log1p(-tl.minimum(s0, 0.5))
        value = tl.where(s0 < 0.5, near, -tl.log(tl.maximum(s2, LEAST_OVERLAP)))
    if DIVERGENCE == LK_HYBRID:
        share = exp(-k * (1 - s0))
        value = share * s2 + (1 - share) * s0
    return value


@triton.jit
def slope_total(DIVERGENCE: tl.constexpr, s0, s1, s2, k):
    """Sum of `slope` over the row."""
    total = s1
    if DIVERGENCE == FORWARD_KL:
        total = s0 * 0.0 - 1.0
    if DIVERGENCE == REVERSE_KL:
        total = s0
    if DIVERGENCE == JSD:
        total = (1 - k) * s1
    if DIVERGENCE == SKEW_KL:
        total = (k - 1) * s1
    if DIVERGENCE == SKEW_REVERSE_KL:
        total = s0 - k * s1
    if DIVERGENCE == LK:
        total = s1 / tl.maximum(s2, LEAST_OVERLAP)
    if DIVERGENCE == LK_HYBRID:
        share = exp(-k * (1 - s0))
        total = (1 - share) * s1 - share
    return total


@triton.jit
def slope(DIVERGENCE: tl.constexpr, q, p, d, s0, s2, k):
    """u = q dL/dq; the gradient by the scaled logits is u - q sum u."""
    if DIVERGENCE == FORWARD_KL:
        u = -p
    elif DIVERGENCE == REVERSE_KL:
        u = q * d
    elif DIVERGENCE == JSD:
        _, log_m = _mixture(d, k)
        u = (1 - k) * q * (tl.minimum(d, 0.0) - log_m)
    elif DIVERGENCE == SKEW_KL:
        p_over_m, _ = _mixture(-d, 1 - k)
        u = (k - 1) * q * p_over_m
    elif DIVERGENCE == SKEW_REVERSE_KL:
        q_over_m, log_m = _mixture(d, 1 - k)
        u = q * (tl.minimum(d, 0.0) - log_m - k * q_over_m)
    else:
        u = -tl.where(q < p, q, 0.0)
        if DIVERGENCE == LK:
            u = u / tl.maximum(s2, LEAST_OVERLAP)
        if DIVERGENCE == LK_HYBRID:
            share = exp(-k * (1 - s0))
            u = (1 - share) * u - share * p
    return u


@triton.jit
def _mixture(d, other_share):
    """For m = b a' + (1 - b) a with d = log a - log a' and b = other_share: a / m, and the
    logarithm of m over the larger of a and a'."""
    smaller = exp(-tl.abs(d))
    larger_is_own = d >= 0
    m = 1 + tl.where(larger_is_own, other_share, 1 - other_share) * (smaller - 1)
    return tl.where(larger_is_own, 1.0, smaller) / m, tl.log(m)


@triton.jit
def _minus_log1p(x):
    """-log(1 + x) for -1/2 <= x <= 0: the rounding of 1 + x is divided out again."""
    u = 1 + x
    return tl.where(u == 1, -x, -tl.log(u) * (x / tl.where(u == 1, 1.0, u - 1)))
