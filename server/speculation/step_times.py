"""What a step of the engine takes, by the number of requests that decode and the lookahead.

Legend: B requests that decode, K lookahead.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

_WINDOW = 15


def bucket_of(num_decoding: int) -> int:
    """The size that stands for a batch: the next power of two, since cost grows slowly with B."""
    assert num_decoding >= 1, "an empty batch has no cost"
    return 1 << (num_decoding - 1).bit_length()


class StepTimes:
    """Medians of the last steps of each kind: one slow step must not change a decision."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], deque[float]] = {}
        self._counts: dict[tuple[int, int], int] = {}
        self._outdated: set[tuple[int, int]] = set()

    def renew(self, bucket: int, lookahead: int) -> None:
        """Forget the steps of this kind as soon as there is a new one."""
        self._outdated.add((bucket, lookahead))

    def observe(self, bucket: int, lookahead: int, seconds: float) -> None:
        kind = bucket, lookahead
        if kind in self._outdated:
            self._outdated.discard(kind)
            self._seconds.pop(kind, None)
        self._seconds.setdefault(kind, deque(maxlen=_WINDOW)).append(seconds)
        self._counts[kind] = self._counts.get(kind, 0) + 1

    def count(self, bucket: int, lookahead: int) -> int:
        """Steps of this kind seen so far."""
        return self._counts.get((bucket, lookahead), 0)

    def row(self, bucket: int) -> dict[int, float]:
        """Median seconds of a step by lookahead, as far as measured for this batch size."""
        return {k: statistics.median(self._seconds[b, k]) for b, k in self._seconds if b == bucket}

    def table(self) -> dict[int, dict[int, float]]:
        """The rows of all batch sizes, in order."""
        buckets = sorted({bucket for bucket, _ in self._seconds})
        return {bucket: dict(sorted(self.row(bucket).items())) for bucket in buckets}


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
