"""Progress with time left: a bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """Counts towards a total; `note` is shown beside it."""

    def __init__(self, label: str, total: int, initial: int = 0) -> None:
        self.label, self.total, self.done, self.note = label, total, initial, ""
        self._initial = initial
        self._started = self._shown = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.done += count
        if note is not None:
            self.note = note
        self._show()

    def close(self) -> None: ...

    def _show(self) -> None: ...

    def _seconds_left(self) -> float:
        rate = (self.done - self._initial) / max(time.monotonic() - self._started, 1e-9)
        return (self.total - self.done) / max(rate, 1e-9)


class _TerminalBar(Bar):
    def __init__(self, label: str, total: int, initial: int = 0) -> None:
        super().__init__(label, total, initial)
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(label, total=total, completed=initial, note="")
        self._progress.start()

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done, note=self.note)

    def close(self) -> None:
        self._progress.stop()


class _PlainBar(Bar):
    def _show(self) -> None:
        now = time.monotonic()
        if self.done < self.total and now - self._shown < _SECONDS_BETWEEN_LINES:
            return
        self._shown = now
        if self.done < self.total:
            tail = f"{_clock(self._seconds_left())} left"
        else:
            tail = f"done in {_clock(now - self._started)}"
        print(f"{self.label}: {self.done}/{self.total}, {tail}  {self.note}", file=sys.stderr)


@contextmanager
def track(label: str, total: int, initial: int = 0) -> Iterator[Bar]:
    """A progress bar for `total` things, of which `initial` are done; silent but on rank 0."""
    kind = Bar
    if os.environ.get("RANK", "0") == "0" and total > initial:
        kind = _TerminalBar if sys.stderr.isatty() else _PlainBar
    bar = kind(label, total, initial)
    try:
        yield bar
    finally:
        bar.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
