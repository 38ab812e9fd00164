"""Who may enter the engine: a bounded number at a time, a bounded queue, a share for each key.

Lines of batches are in the background: they enter only while few requests are inside and none
waits, however long that takes, and never keep an interactive request out of the queue.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from draftsmith.server.errors import ApiError
from draftsmith.server.keys import ApiKey
from draftsmith.server.limits import MinuteLimits

_BUSY_RETRY_S = 2
_LOOK_AGAIN_S = 0.25
"""How often a background request looks whether its key's limits let it in by now."""


@dataclass
class Load:
    """How many requests of one kind are inside; counted for those who ask for it."""

    in_flight: int = 0


class Admission:
    """At most `limit` requests inside; `queue` more wait, first come, first served.

    Requests without a key are nobody's: only the common bounds hold for them. All methods
    belong to one event loop.
    """

    def __init__(
        self,
        limit: int,
        queue: int,
        max_wait_s: float,
        background: int = 0,
        minute: MinuteLimits | None = None,
    ) -> None:
        """`background`: a background request enters while fewer than this are inside."""
        self.limit = limit
        self.queue = queue
        self.max_wait_s = max_wait_s
        self.background = min(limit, background)
        self.minute = minute or MinuteLimits()
        self.inside = 0
        self.held_back = 0
        """Background requests that wait for their place."""
        self._queue: deque[asyncio.Future[None]] = deque()
        self._behind: deque[asyncio.Future[None]] = deque()
        self._of_key: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Interactive requests in the queue."""
        return len(self._queue)

    async def enter(
        self, key: ApiKey | None, load: Load | None = None, *, background: bool = False
    ) -> Slot:
        """Wait for a place; `leave` the slot when the answer has ended.

        `load` counts the request while it is inside.

        A background request waits for its key's limits too, without an end; others are refused.

        Raises:
            ApiError: 429 when the key has too many requests here, or none left in this minute;
                503 when the queue is full or did not move for `max_wait_s` seconds; all with
                Retry-After.
        """
        if background:
            self.held_back += 1
            try:
                await self._wait_behind(key)
            finally:
                self.held_back -= 1
        else:
            self._check_share(key)
            self._check_queue()
            self.minute.take_request(key)
            self._claim_share(key)
            try:
                await self._wait()
            except BaseException:
                self._return_share(key)
                raise
        return Slot(self, key, load or Load())

    async def _wait(self) -> None:
        if self.inside < self.limit and not self._queue:
            self.inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            # Not `wait_for`: before Python 3.12 it swallows a cancellation at the last moment.
            async with asyncio.timeout(self.max_wait_s):
                await turn
        except TimeoutError:
            self._give_up(turn, self._queue)
            raise ApiError(
                503,
                f"The server is busy: no place in {self.max_wait_s:.0f} s.",
                code="overloaded",
                retry_after_s=_BUSY_RETRY_S,
            ) from None
        except BaseException:
            self._give_up(turn, self._queue)
            raise

    async def _wait_behind(self, key: ApiKey | None) -> None:
        while True:
            while self._share_is_used(key) or self.minute.wait_s(key) > 0:
                await asyncio.sleep(_LOOK_AGAIN_S)
            if self.inside >= self.background or self._queue:
                turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._behind.append(turn)
                try:
                    await turn
                except BaseException:
                    self._give_up(turn, self._behind)
                    raise
            else:
                self.inside += 1
            # While it waited for a place another request may have used the key's limits.
            if not self._share_is_used(key) and self.minute.wait_s(key) == 0:
                self.minute.take_request(key)
                self._claim_share(key)
                return
            self._release()

    def _give_up(self, turn: asyncio.Future[None], queue: deque[asyncio.Future[None]]) -> None:
        """Leave the queue; a place that was given in the same moment goes to the next."""
        if turn in queue:
            queue.remove(turn)
        elif turn.done() and not turn.cancelled():
            self._release()

    def _release(self) -> None:
        self.inside -= 1
        while self._queue and self.inside < self.limit:
            self._let_in(self._queue)
        while self._behind and not self._queue and self.inside < self.background:
            self._let_in(self._behind)

    def _let_in(self, queue: deque[asyncio.Future[None]]) -> None:
        turn = queue.popleft()
        if not turn.done():
            self.inside += 1
            turn.set_result(None)

    def _check_queue(self) -> None:
        if self.inside >= self.limit and self.waiting >= self.queue:
            raise ApiError(
                503,
                "The server is busy and its queue is full.",
                code="overloaded",
                retry_after_s=_BUSY_RETRY_S,
            )

    def _check_share(self, key: ApiKey | None) -> None:
        if key is not None and self._share_is_used(key):
            raise ApiError(
                429,
                f"This key may have {key.max_concurrent} requests at a time: wait for one to end.",
                code="rate_limit_exceeded",
                retry_after_s=_BUSY_RETRY_S,
            )

    def _share_is_used(self, key: ApiKey | None) -> bool:
        most = None if key is None else key.max_concurrent
        return key is not None and most is not None and self._of_key[key.sha256] >= most

    def _claim_share(self, key: ApiKey | None) -> None:
        if key is not None:
            self._of_key[key.sha256] += 1

    def _return_share(self, key: ApiKey | None) -> None:
        if key is not None:
            self._of_key[key.sha256] -= 1
            if not self._of_key[key.sha256]:
                del self._of_key[key.sha256]


class Slot:
    """One request's place. Leaving twice is harmless."""

    def __init__(self, admission: Admission, key: ApiKey | None, load: Load) -> None:
        self.key = key
        self.tokens = 0
        """What the answer has cost so far, as far as it is known."""
        self.at_leave: Callable[[], None] = lambda: None
        self._admission = admission
        self._load = load
        self._load.in_flight += 1
        self._held = True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._load.in_flight -= 1
            self._admission.minute.take_tokens(self.key, self.tokens)
            self._admission._return_share(self.key)
            self._admission._release()
            self.at_leave()
