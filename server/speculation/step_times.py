"""What a step of the engine takes, by the number of requests that decode and the lookahead.

A machine is now faster, now slower, and then all lookaheads are; what a draft costs beside a plain
step hardly changes. So the logarithms of all lookaheads' seconds are one Gaussian state that drifts
together much and apart little, and a Kalman filter follows it: a step with one lookahead also tells
about the others, and a difference that was measured once is known for long.

Legend: B requests that decode, K lookahead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_FIRST_NOISE = 0.2
"""Standard deviation of a step's log-seconds, before any is known."""
_NOISE_STEPS = 64
"""Over which the noise is averaged."""
_OUTLIER = 2.5
"""Deviations from which a step counts as one that is only so far off: a slow one, not a change."""
_TOGETHER = 0.02
"""Variance of the common drift in a step, by that of the noise: about the last ten steps count."""
_APART = 1e-4
"""The same for each lookahead's own drift: a difference gets doubtful over thousands of steps."""
_KNOWN = 0.02
"""Standard deviation of what a profile says."""


def bucket_of(num_decoding: int) -> int:
    """The size that stands for a batch: the next power of two, since cost grows slowly with B."""
    assert num_decoding >= 1, "an empty batch has no cost"
    return 1 << (num_decoding - 1).bit_length()


class _Batch:
    """The steps of one batch size: means and covariance of log-seconds by lookahead."""

    def __init__(self) -> None:
        self.lookaheads: list[int] = []
        self.counts: dict[int, int] = {}
        self.mean_K: NDArray[np.float64] = np.zeros(0)
        self.covariance_KK: NDArray[np.float64] = np.zeros((0, 0))
        self._noise = _FIRST_NOISE**2

    def add(self, lookahead: int, log_seconds: float, variance: float) -> None:
        """The first that is known of `lookahead`."""
        known = len(self.lookaheads)
        self.lookaheads.append(lookahead)
        self.mean_K = np.append(self.mean_K, log_seconds)
        larger = np.zeros((known + 1, known + 1))
        larger[:known, :known] = self.covariance_KK
        larger[known, known] = variance
        self.covariance_KK = larger

    def nearest(self, lookahead: int) -> int:
        """Place of the measured lookahead next to this one."""
        places = range(len(self.lookaheads))
        return min(places, key=lambda place: abs(self.lookaheads[place] - lookahead))

    def observe(self, lookahead: int, log_seconds: float) -> None:
        self.counts[lookahead] = self.counts.get(lookahead, 0) + 1
        if lookahead not in self.lookaheads:
            self.add(lookahead, log_seconds, self._noise)
            return
        place = self.lookaheads.index(lookahead)
        self.covariance_KK += _TOGETHER * self._noise
        self.covariance_KK.flat[:: len(self.lookaheads) + 1] += _APART * self._noise
        with_it_K = self.covariance_KK[place].copy()
        variance = with_it_K[place] + self._noise
        surprise, usual = log_seconds - self.mean_K[place], math.sqrt(variance)
        surprise = max(-_OUTLIER * usual, min(_OUTLIER * usual, surprise))
        self.mean_K += with_it_K * (surprise / variance)
        self.covariance_KK -= np.outer(with_it_K, with_it_K) / variance
        # What the state's own doubt explains of a surprise is no noise.
        share = min(_NOISE_STEPS, self.counts[lookahead] + 4)
        self._noise += (surprise**2 * self._noise / variance - self._noise) / share


class StepTimes:
    """Seconds of a step of each kind, and how sure the ratio of two of them is."""

    def __init__(self) -> None:
        self._batches: dict[int, _Batch] = {}

    def restore(self, bucket: int, seconds: Mapping[int, float]) -> None:
        """Begin with what was measured elsewhere."""
        batch = self._batches[bucket] = _Batch()
        for lookahead, one in seconds.items():
            batch.add(lookahead, math.log(one), _KNOWN**2)

    def observe(self, bucket: int, lookahead: int, seconds: float) -> None:
        self._batches.setdefault(bucket, _Batch()).observe(lookahead, math.log(max(seconds, 1e-9)))

    def count(self, bucket: int, lookahead: int) -> int:
        """Steps of this kind seen so far."""
        return self._batches[bucket].counts.get(lookahead, 0) if bucket in self._batches else 0

    def row(self, bucket: int) -> dict[int, float]:
        """Seconds of a step by lookahead, as far as measured for this batch size."""
        batch = self._batches.get(bucket)
        if batch is None:
            return {}
        return dict(zip(batch.lookaheads, np.exp(batch.mean_K).tolist(), strict=True))

    def doubt(self, bucket: int, lookahead: int, other: int) -> float:
        """Variance of the logarithm of t(B, lookahead) / t(B, other).

        A lookahead that was not measured is as doubtful as the measured one next to it.
        """
        batch = self._batches[bucket]
        one, two = batch.nearest(lookahead), batch.nearest(other)
        own = batch.covariance_KK[one, one] + batch.covariance_KK[two, two]
        return float(own - 2 * batch.covariance_KK[one, two])

    def table(self) -> dict[int, dict[int, float]]:
        """The rows of all batch sizes, in order."""
        return {bucket: dict(sorted(self.row(bucket).items())) for bucket in sorted(self._batches)}


def fill_in(measured: dict[int, float], lookaheads: Sequence[int]) -> dict[int, float]:
    """Seconds of a step for each lookahead: the measured ones, straight lines between them.

    A draft step more and a position more to verify cost the same each time, so the line of the
    two nearest goes on beyond the ends too. Empty where fewer than two are measured and more
    are asked for: one point gives no slope.
    """
    known = sorted(measured)
    if len(known) < 2:
        return {k: measured[k] for k in lookaheads if k in measured}
    found = {}
    for k in lookaheads:
        right = next((index for index, one in enumerate(known) if one >= k), len(known) - 1)
        low, high = known[max(0, right - 1)], known[max(1, right)]
        slope = (measured[high] - measured[low]) / (high - low)
        found[k] = measured.get(k, max(measured[low] + slope * (k - low), 1e-9))
    return found
