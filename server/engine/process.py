"""One vLLM server as a child process on a private Unix socket, from start to stop.

    gateway --pipe--> watchdog --> vLLM API server --> engine core --> workers

The watchdog (see `watchdog.py`) holds the far end of a pipe: whatever ends this process, the
pipe closes and everything below the watchdog is stopped. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx

from draftsmith.server.engine.command import (
    FAULTS,
    EngineConfig,
    engine_command,
    engine_environment,
)
from draftsmith.server.speculation.report import STEPS_NAME, StepReport, read_step_report

Progress = Callable[[str, float], None]
"""Called about four times a second with the stage in words and the seconds since the start."""

WATCHDOG = Path(__file__).with_name("watchdog.py")
_MAX_PATH = 100  # of a socket: sun_path holds 108 bytes on Linux, 104 on macOS
_SOCKET_NAME = 36  # vLLM's own sockets are named by a UUID
_STAGES = (
    (re.compile(rb"Starting vLLM server|Application startup"), "opening the socket"),
    (re.compile(rb"Loading weights took|Model loading took|KV cache"), "warming up"),
    (re.compile(rb"Starting to load model|Initializing a V1"), "loading the weights"),
)
_LOG_PREFIX = re.compile(
    r"^(\([^)]*pid=\d+\) )*((ERROR|CRITICAL) [\d-]+ [\d:]+ )?(\[[\w.]+:\d+\] )?\s*"
)
_FAULT = re.compile(r"^([\w.]*(?:Error|Exception|Interrupt)): (.+)$")
_SECOND_HAND = re.compile(r"Engine core initialization failed|EngineDeadError|WorkerProc init")
_PYDANTIC = re.compile(r"validation errors? for \w+$")


class EngineError(ValueError):
    """The engine did not start or is gone. The message is one sentence for the user."""


class EngineProcess:
    """A vLLM server. Use as a context manager, or call `start`, `wait_ready` and `stop`.

    Not thread-safe, except that `running` may be read from anywhere.
    """

    def __init__(self, config: EngineConfig, log_file: Path, *, grace_s: float = 10.0) -> None:
        """`grace_s`: seconds that the child has between SIGTERM and SIGKILL."""
        self.config = config
        self.log_file = log_file
        self.grace_s = grace_s
        self.started_at = 0.0
        self._folder: Path | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def __enter__(self) -> EngineProcess:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def socket(self) -> Path:
        """The Unix socket of the running engine, in a folder that only this user may enter."""
        assert self._folder is not None, "the engine was not started"
        return self._folder / "api.sock"

    @property
    def running(self) -> bool:
        return self._watchdog is not None and self._watchdog.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id of the vLLM API server, which leads the engine's process group."""
        if self._folder is None:
            return None
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self._folder / "pid").read_text())
        return None

    def start(self) -> None:
        """Start the child and return at once.

        Raises:
            EngineError: vLLM is not installed, or the log or socket cannot be made.
        """
        assert self._watchdog is None, "the engine is already started"
        try:
            self._folder = _private_folder()
            command = engine_command(self.config, self.socket)
            environment = engine_environment(self.config, self._folder)
            arguments = (str(self._folder), str(self.grace_s))
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("ab") as log:
                self._log_start = log.tell()
                self._watchdog = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(WATCHDOG), *arguments, *command],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches the gateway only
                )
        except OSError as error:
            self._remove_folder()
            raise EngineError(f"The engine cannot be started: {error}.") from error
        except ValueError as error:
            self._remove_folder()
            raise EngineError(str(error)) from error
        self.started_at = time.monotonic()

    def wait_ready(self, timeout_s: float = 600.0, progress: Progress | None = None) -> None:
        """Return once the engine answers.

        Raises:
            EngineError: it died (the log line that says why is quoted), or took too long.
        """
        with self.client(timeout_s=2.0) as client:
            while True:
                elapsed = time.monotonic() - self.started_at
                if not self.running:
                    raise EngineError(f"The engine did not start: {self.last_words()}")
                if self.socket.exists() and _answers(client):
                    break
                if elapsed > timeout_s:
                    raise EngineError(
                        f"The engine did not answer within {timeout_s:.0f} seconds: "
                        f"see {self.log_file}."
                    )
                if progress is not None:
                    progress(self._stage(), elapsed)
                time.sleep(0.25)
        self._check_plugin()

    def pause(self) -> None:
        """Stop the engine in its tracks (SIGSTOP) until `resume`; it keeps its memory.

        An idle vLLM worker polls, bound to the same core as every other engine's worker: two
        engines can only be compared when the one that waits does not run at all.
        """
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_group(signal.SIGCONT)

    def _signal_group(self, number: signal.Signals) -> None:
        if (group := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

    def stop(self) -> None:
        """Stop the child and everything it started; harmless when it is gone already."""
        watchdog = self._watchdog
        if watchdog is None:
            return
        group = self.pid
        self.resume()  # a paused process cannot end by itself
        assert watchdog.stdin is not None
        watchdog.stdin.close()
        try:
            watchdog.wait(self.grace_s + 10.0)
        except subprocess.TimeoutExpired:
            watchdog.kill()
            watchdog.wait()
        if group is not None and watchdog.returncode < 0:
            # Somebody killed the watchdog; its work is left to us.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self._watchdog = None
        self._remove_folder()

    def client(self, timeout_s: float | None = None) -> httpx.Client:
        """A client of the engine's own HTTP API. Close it."""
        transport = httpx.HTTPTransport(uds=str(self.socket))
        return httpx.Client(transport=transport, base_url="http://engine", timeout=timeout_s)

    def plugin_report(self) -> dict[str, str]:
        """What the plug-in found in vLLM, by fault: "right", "mended" or "not needed"."""
        assert self._folder is not None, "the engine was not started"
        merged: dict[str, str] = {}
        for path in sorted(self._folder.glob("plugin-*.json")):
            merged |= json.loads(path.read_text())
        return merged

    def step_report(self) -> StepReport | None:
        """What the engine's scheduler knows about its steps; None in its first second."""
        return None if self._folder is None else read_step_report(self._folder)

    @property
    def stepped_at(self) -> float:
        """When the scheduler last said something, seconds since 1970; 0 when it never did."""
        assert self._folder is not None, "the engine was not started"
        try:
            return (self._folder / STEPS_NAME).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def last_words(self) -> str:
        """The line of this run's log that says best why the engine ended, as one sentence."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError as error:  # moved away while it was written, perhaps
            return f"its log {self.log_file} cannot be read ({error.strerror})."
        found = _telling_line([_LOG_PREFIX.sub("", line) for line in lines])
        return f"{found.rstrip('.')} (log: {self.log_file})."

    def _stage(self) -> str:
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._log_start)
                text = log.read()
        except OSError:
            return "its log cannot be read"
        return next((words for mark, words in _STAGES if mark.search(text)), "importing vLLM")

    def _check_plugin(self) -> None:
        """vLLM only logs it when a plug-in cannot be imported; serving without ours is unsafe."""
        report = self.plugin_report()
        if set(FAULTS) - report.keys():
            self.stop()
            raise EngineError(
                "The engine started without draftsmith's plug-in, so it would sample wrongly: "
                "install the package again (`make setup`) so that its entry point is registered."
            )
        if float(report.get("lenience", 1.0)) != self.config.lenience:
            self.stop()
            raise EngineError("The engine does not verify with the lenience that was asked for.")

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _private_folder() -> Path:
    """A new folder with mode 0700 whose paths are short enough for a Unix socket."""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        if len(os.fsencode(parent)) + len("/draftsmith-12345678/") + _SOCKET_NAME <= _MAX_PATH:
            return Path(tempfile.mkdtemp(prefix="draftsmith-", dir=parent))
    raise EngineError("The path of the temporary folder is too long for a socket: set TMPDIR.")


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def _telling_line(lines: list[str]) -> str:
    """The first error that is not merely the echo of another process's error."""
    echo = ""
    for index, line in enumerate(lines):
        if _PYDANTIC.search(line) and index + 1 < len(lines):
            return lines[index + 1].partition(" [type=")[0].removeprefix("Value error, ").strip()
        fault = _FAULT.match(line)
        if fault is None:
            continue
        if not _SECOND_HAND.search(line):
            return f"{fault[1].rpartition('.')[2]}: {fault[2]}"
        echo = echo or fault[2]
    return echo or next((line for line in reversed(lines) if line.strip()), "it printed nothing")
