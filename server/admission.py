"""Who may enter the engine: a bounded number at a time, a bounded queue, a share for each key."""

from __future__ import annotations

import asyncio
from collections import Counter

from draftsmith.server.errors import ApiError
from draftsmith.server.keys import ApiKey

_BUSY_RETRY_S = 2


class Admission:
    """At most `limit` requests inside; `queue` more wait, first come, first served.

    Requests without a key are nobody's: only the common bounds hold for them. All methods
    belong to one event loop.
    """

    def __init__(self, limit: int, queue: int, max_wait_s: float) -> None:
        self.queue = queue
        self.max_wait_s = max_wait_s
        self.waiting = 0
        self._free = asyncio.Semaphore(limit)
        self._of_key: Counter[str] = Counter()

    async def enter(self, key: ApiKey | None) -> Slot:
        """Wait for a place; `leave` the slot when the answer has ended.

        Raises:
            ApiError: 429 when the key has too many requests here, 503 when the queue is full
                or did not move for `max_wait_s` seconds; both with Retry-After.
        """
        slot = Slot(self, key)
        self._claim_share(key)
        try:
            await self._wait()
        except BaseException:
            self._return_share(key)
            raise
        return slot

    async def _wait(self) -> None:
        if self._free.locked() and self.waiting >= self.queue:
            raise ApiError(
                503,
                "The server is busy and its queue is full.",
                code="overloaded",
                retry_after_s=_BUSY_RETRY_S,
            )
        self.waiting += 1
        try:
            await asyncio.wait_for(self._free.acquire(), self.max_wait_s)
        except TimeoutError:
            raise ApiError(
                503,
                f"The server is busy: no place in {self.max_wait_s:.0f} s.",
                code="overloaded",
                retry_after_s=_BUSY_RETRY_S,
            ) from None
        finally:
            self.waiting -= 1

    def _claim_share(self, key: ApiKey | None) -> None:
        if key is None:
            return
        if key.max_concurrent is not None and self._of_key[key.sha256] >= key.max_concurrent:
            raise ApiError(
                429,
                f"This key may have {key.max_concurrent} requests at a time: wait for one to end.",
                code="rate_limit_exceeded",
                retry_after_s=_BUSY_RETRY_S,
            )
        self._of_key[key.sha256] += 1

    def _return_share(self, key: ApiKey | None) -> None:
        if key is not None:
            self._of_key[key.sha256] -= 1
            if not self._of_key[key.sha256]:
                del self._of_key[key.sha256]


class Slot:
    """One request's place. Leaving twice is harmless."""

    def __init__(self, admission: Admission, key: ApiKey | None) -> None:
        self._admission = admission
        self._key = key
        self._held = True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._admission._free.release()
            self._admission._return_share(self._key)
