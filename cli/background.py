"""A `draftsmith serve` of one's own, in the background."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

_READY_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 90.0


@contextmanager
def served(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Serve on a free port; yields the base URL when the server is ready, and drains it after.

    Args:
        arguments: of `draftsmith serve`.
        log: file for what the server writes.

    Raises:
        ValueError: it does not start or does not become ready; quotes the log's last line.
    """
    command = [sys.executable, "-m", "draftsmith.cli.main", "serve", "--port", "0", *arguments]
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert process.stdout is not None
        match = re.match(r"(http://\S+)/v1 ", process.stdout.readline())
        if match is None:
            process.wait(timeout=30)
            raise ValueError(f"The server did not start: {_last_line(log)}")
        _wait_ready(match[1], process, log)
        yield match[1]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=_STOP_TIMEOUT_S)
    if status:
        raise ValueError(f"The server ended with status {status}: {_last_line(log)}")


def _wait_ready(url: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while httpx.get(f"{url}/ready", timeout=10.0).status_code != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            raise ValueError(f"The server did not become ready: {_last_line(log)}")
        time.sleep(0.5)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"{log} is empty"
