"""Traffic for a server that changes meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence


class Streams:
    """One thread a source, which reads it to its end, again and again, until the `with` ends.

    A source is a function that sends one request, and gives the pieces of its text.
    """

    def __init__(
        self, sources: Sequence[Callable[[], Iterable[str]]], pause_s: float = 0.0
    ) -> None:
        """`pause_s`: between two requests of a source."""
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._go_on, args=(at, one)) for at, one in enumerate(sources)
        ]
        self.texts: list[list[str]] = [[] for _ in sources]
        """All answers of each source."""
        self.failures: list[str] = []
        self.longest_gap_s = 0.0
        """Between two pieces of one answer, or before the first."""

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    @property
    def answered(self) -> int:
        return sum(map(len, self.texts))

    def _go_on(self, at: int, source: Callable[[], Iterable[str]]) -> None:
        while not self._stop.is_set():
            try:
                text, last = "", time.monotonic()
                for piece in source():
                    now = time.monotonic()
                    self.longest_gap_s = max(self.longest_gap_s, now - last)
                    text, last = text + piece, now
                self.texts[at].append(text)
                self._stop.wait(self._pause_s)
            except Exception as error:  # noqa: BLE001 (whatever a user would see)
                self.failures.append(repr(error))
