"""The worker beside `draftsmith serve`: restarted when it dies, gone when the server is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from draftsmith.server.jobs.child import WORKER_MODULE
from tests.server.jobs.conftest import QUICK, Site, tiny
from tests.server.jobs.test_kills import wait_trainer
from tests.server.processes import alive, command_of, descendants, wait_until

SERVER = """
import asyncio, sys
from draftsmith.server.jobs.child import WorkerChild
from draftsmith.server.settings import load_settings

async def main():
    child = WorkerChild(load_settings())
    child.launch()
    await asyncio.to_thread(sys.stdin.readline)
    await child.stop()

asyncio.run(main())
"""


def start(site: Site) -> subprocess.Popen[bytes]:
    values = {f"DRAFTSMITH_WORKER_{name.upper()}": value for name, value in QUICK.items()}
    own = {"DRAFTSMITH_HOME": str(site.home.root), "DRAFTSMITH_TARGET": str(site.home.models)}
    return subprocess.Popen(
        [sys.executable, "-c", SERVER], env={**os.environ, **values, **own}, stdin=subprocess.PIPE
    )


def worker_of(server: subprocess.Popen[bytes]) -> list[int]:
    family = [pid for pid in descendants(server.pid) if alive(pid)]
    commands = {pid: command_of(pid) for pid in family}
    return [pid for pid, one in commands.items() if WORKER_MODULE in one and "watchdog" not in one]


def test_the_server_keeps_one_worker(site: Site) -> None:
    job_id = site.submit(tiny(steps=2000, save_every=1, eval_every=1000))
    server = start(site)
    wait_trainer(site, job_id)
    (first,) = worker_of(server)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: worker_of(server) not in ([], [first]), 30, "a new worker")
    wait_until(lambda: site.api.get(f"/{job_id}").json()["attempts"] == 2, 30, "taken over")
    wait_trainer(site, job_id)
    family = descendants(server.pid)
    server.kill()
    server.wait()
    wait_until(lambda: not any(alive(pid) for pid in family), 15, "all are gone")
    left = site.api.get(f"/{job_id}").json()
    assert left["status"] == "queued", "the worker had the time to give it back"

    again = start(site)
    wait_until(lambda: site.api.get(f"/{job_id}").json()["status"] == "running", 20, "it goes on")
    assert again.stdin is not None
    again.stdin.close()
    assert again.wait(30) == 0
    assert site.api.get(f"/{job_id}").json()["status"] == "queued"
    assert server.stdin is not None
    server.stdin.close()
