"""How fast the queue of distillation jobs is, and the API that reads it.

    .venv/bin/python benchmarks/jobs.py --json benchmarks/results/jobs-sqlite.json
    DRAFTSMITH_DATABASE_URL=postgresql://... .venv/bin/python benchmarks/jobs.py

The queue: several processes claim jobs and end each at once, as a worker would that has nothing to
train: two transactions a job, each on the disk before the next. Every job must be claimed by
exactly one of them. A database of jobs that a real one may be, with events, lies below it.

The API: a real server process over HTTP on one connection, its reads in turn: retrieve, list,
filter, events. Their times are the client's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import insert

from draftsmith.distill.recipe import load_recipe
from draftsmith.server.database.clock import now
from draftsmith.server.database.connect import open_database
from draftsmith.server.database.tables import events, jobs
from draftsmith.server.home import Home
from draftsmith.server.jobs.job import NewEvent, Status
from draftsmith.server.jobs.lease import Ending, Leases
from draftsmith.server.jobs.store import JobStore, NewJob

URL = os.environ.get("DRAFTSMITH_DATABASE_URL") or None
DONE = Ending(Status.SUCCEEDED, "succeeded", NewEvent("Done."), 0, draft="draft-" + "0" * 16)
EVENTS_A_JOB = 20


def fill(home: Path, queued: int, over: int) -> list[str]:
    """Make `over` jobs that succeeded and `queued` ones; returns the ids of all."""
    database = open_database(Home(home), URL)
    recipe = load_recipe("demo").model_dump(mode="json")
    new = NewJob(
        owner="", name="demo", model="smollm2-135m", request={}, recipe=recipe, folders={},
        labels={"team": "a"}, total_steps=1, max_runtime_s=60, body_sha256="0" * 64,
    )  # fmt: skip
    first = JobStore(database).create(new, most=1)
    JobStore(database).cancel(first.id, None)
    row = vars(first) | {"status": "succeeded", "finished_at": first.created_at}
    del row["number"]
    ids = [f"job-{number:024x}" for number in range(over + queued)]
    with database.writing() as connection:
        made = [
            row | {"id": one, "status": "succeeded" if number < over else "queued"}
            for number, one in enumerate(ids)
        ]
        connection.execute(insert(jobs), made)
        told = {"created_at": now(), "type": "message", "level": "info", "data": {}}
        if over:
            numbers = range(first.number + 1, first.number + 1 + over)
            lines = [
                {"job": number, "seq": seq + 2, "message": f"Step {seq}."}
                for number in numbers
                for seq in range(EVENTS_A_JOB)
            ]
            connection.execute(insert(events).values(told), lines)
    database.close()
    return ids


def take_all(home: Path, barrier: Any, results: Any) -> None:
    """Claim and end until nothing is left; puts the ids, and when it began and ended."""
    leases, done = Leases(open_database(Home(home), URL), f"worker-{os.getpid()}", 60), []
    barrier.wait()
    begun = time.time()
    while (claim := leases.claim()) is not None:
        assert leases.end(claim, DONE, [Status.RUNNING])
        done.append(claim.job.id)
    results.put((begun, time.time(), done))


def measure_queue(count: int, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ids = fill(home, count, 0)
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(workers), context.Queue()
        arguments = (home, barrier, results)
        processes = [context.Process(target=take_all, args=arguments) for _ in range(workers)]
        for process in processes:
            process.start()
        begins, ends, parts = zip(*(results.get() for _ in processes), strict=True)
        for process in processes:
            process.join()
    done, seconds = [one for part in parts for one in part], max(ends) - min(begins)
    assert sorted(done) == ids, "each job once"
    return {"jobs": count, "workers": workers, "claim_and_publish_per_s": round(count / seconds, 1)}


def measure_api(count: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ids = fill(home, 0, count)
        draw, times = random.Random(0), dict[str, list[float]]()
        with served(home) as url, httpx.Client() as client:
            for _ in range(rounds):
                one, other = draw.choice(ids), draw.choice(ids)
                reads: tuple[tuple[str, str, dict[str, str]], ...] = (
                    ("retrieve", f"/{one}", {}),
                    ("list", "", {"limit": "20", "after": other}),
                    ("filter", "", {"limit": "20", "status": "succeeded", "metadata[team]": "a"}),
                    ("events", f"/{one}/events", {}),
                )
                for kind, path, query in reads:
                    begun = time.perf_counter()
                    answer = client.get(f"{url}/v1/distillation/jobs{path}", params=query)
                    times.setdefault(kind, []).append(1000 * (time.perf_counter() - begun))
                    assert answer.status_code == 200, (answer, answer.text)
    every = [one for some in times.values() for one in some]
    return {
        "jobs": count,
        "requests": len(every),
        "p99_ms": round(percentile(every, 99), 2),
        "by_route": {
            kind: {"p50_ms": round(statistics.median(some), 2),
                   "p99_ms": round(percentile(some, 99), 2)}
            for kind, some in times.items()
        },
    }  # fmt: skip


class served:
    """The job routes on a free port, in a process of their own."""

    def __init__(self, home: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends = context.Pipe()
        self._process = context.Process(target=_serve, args=(home, self._ends[1]), daemon=True)

    def __enter__(self) -> str:
        self._process.start()
        return f"http://127.0.0.1:{self._ends[0].recv()}"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(home: Path, pipe: Any) -> None:
    """The application as `create_app` makes it, for a target that is never started."""
    from draftsmith.server.app import create_app
    from draftsmith.server.settings import load_settings

    target = home / "target"
    target.mkdir()
    (target / "config.json").write_text('{"vocab_size": 1}')
    url = {} if URL is None else {"database_url": URL}
    app: FastAPI = create_app(load_settings(home=home, target=target, worker=False, **url))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    threading.Timer(1.0, pipe.send, [listener.getsockname()[1]]).start()
    server.run(sockets=[listener])


def percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the queue and of the API.")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--queued", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--stored", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=500, help="of each kind")
    arguments = parser.parse_args()
    record = {
        "command": " ".join(["python", *sys.argv]),
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg(),
        "database": "sqlite" if URL is None else "postgresql",
        "versions": {"python": platform.python_version(), "sqlalchemy": version("sqlalchemy")},
        "queue": measure_queue(arguments.queued, arguments.workers),
        "api": measure_api(arguments.stored, arguments.requests),
    }
    print(json.dumps(record, indent=2))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
