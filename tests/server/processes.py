"""A real gateway as a child process, and looks at what runs below it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from openai import OpenAI

RUN = """
import sys
from draftsmith.server.run import run_server
from draftsmith.server.settings import load_settings
run_server(load_settings(), lambda url: print(url, flush=True))
"""
MODEL = "org/tiny"  # a slash, as hub ids have
# An engine starts in 40 s on two idle cores, and was seen to take seven minutes on two busy ones.
ENGINE_START_S = 600.0
CONTEXT = 4096  # tiny models are quick: only a long answer can be interrupted
SMALL = {
    "DRAFTSMITH_DTYPE": "float32",
    "DRAFTSMITH_MAX_MODEL_LEN": str(CONTEXT),
    "DRAFTSMITH_MAX_NUM_SEQS": "16",
    "DRAFTSMITH_MAX_NUM_BATCHED_TOKENS": "128",  # prompts above it are prefilled in chunks
    "DRAFTSMITH_KV_CACHE_BYTES": str(64 << 20),
    "DRAFTSMITH_SERVED_MODEL_NAME": MODEL,
    "DRAFTSMITH_PORT": "0",
    "DRAFTSMITH_LOOKAHEAD_CONTROL": "fixed",  # tests count proposals; it has tests of its own
    "DRAFTSMITH_WORKER": "false",
}


class GatewayProcess:
    """`run_server` with settings from the environment, on a free port."""

    def __init__(self, home: Path, target: Path, draft: Path, **settings: str) -> None:
        own = {f"DRAFTSMITH_{name.upper()}": value for name, value in settings.items()}
        pair = {"DRAFTSMITH_TARGET": str(target), "DRAFTSMITH_DRAFT": str(draft)}
        self.home = home
        home.mkdir(exist_ok=True)
        self.stderr = home / "gateway.err"
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN],
                env={**os.environ, **SMALL, **pair, "DRAFTSMITH_HOME": str(home), **own},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.stderr.read_text()

    def client(self, timeout_s: float | None = 60.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout_s)

    def connect(self) -> socket.socket:
        """A bare connection, for what no HTTP client would send."""
        url = httpx.URL(self.url)
        assert url.port is not None
        return socket.create_connection((url.host, url.port), timeout=20)

    def openai(self, **options: object) -> OpenAI:
        values = {"api_key": "none", "max_retries": 0} | options
        return OpenAI(base_url=f"{self.url}/v1", **values)  # type: ignore[arg-type]

    def strict(self) -> OpenAI:
        """The stock client, which then takes no answer that its types do not describe."""
        headers = {"x-strict-types": "true"}
        return self.openai(_strict_response_validation=True, default_headers=headers)

    def wait_ready(self, timeout_s: float = ENGINE_START_S) -> None:
        try:
            wait_until(lambda: self.get("/ready").status_code == 200, timeout_s, "ready")
        except AssertionError as error:
            logs = [self.stderr, *sorted(self.home.rglob("engine*.log"))]
            error.add_note("\n".join(f"{one}:\n{one.read_text()[-2000:]}" for one in logs))
            raise

    def get(self, path: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path)

    def running_requests(self) -> float:
        """How many requests the engine works on, by its own metrics."""
        lines = self.get("/metrics").text.splitlines()
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))

    def family(self) -> list[int]:
        return descendants(self.process.pid)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def wait_until(condition, timeout_s: float, what: str) -> None:  # type: ignore[no-untyped-def]
    """Poll `condition`; fails when it does not come true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Process ids of everything below `pid`."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = read_stat(int(entry.name))
            if fields is not None:
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    fields = read_stat(pid)
    return fields is not None and fields[0] != "Z"


def read_stat(pid: int) -> list[str] | None:
    """/proc/<pid>/stat from the state on, None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
