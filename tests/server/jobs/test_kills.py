"""Any process may be killed at any moment: no job is lost, none is done twice, none gets stuck."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from draftsmith.distill.manifest import verify_files
from tests.server.jobs.api import NAME
from tests.server.jobs.conftest import Site, tiny
from tests.server.processes import alive, wait_until

ROOT = Path(__file__).resolve().parents[3]
STUBBORN = {"lease_s": "2", "grace_s": "1", "max_retries": "10000"}


def all_trainers(site: Site) -> dict[str, list[psutil.Process]]:
    """By job: the processes of its attempts that train."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            training = "draftsmith.distill.train" in command
            if training and not any("watchdog" in one for one in command) and alive(process.pid):
                folder = Path(process.cwd())
                if folder.parent == site.home.jobs:
                    found.setdefault(folder.name, []).append(process)
    return found


def trainers(site: Site, job_id: str) -> list[psutil.Process]:
    return all_trainers(site).get(job_id, [])


def wait_trainer(site: Site, job_id: str) -> psutil.Process:
    """The one process that trains, once there is one; seen in one look, since it may end."""
    seen: list[psutil.Process] = []

    def there() -> bool:
        seen[:] = trainers(site, job_id)
        return len(seen) == 1

    wait_until(there, 120, f"one trainer of {job_id}")
    return seen[0]


class Api:
    """The gateway as a process, started again after each kill."""

    def __init__(self, site: Site, target: Path) -> None:
        self._site, self._target = site, target
        self.start()

    def start(self) -> None:
        arguments = [str(self._site.home.root), str(self._target)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.jobs.api", *arguments],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def submit(self, key: str, recipe: dict[str, object]) -> None:
        """As a careful client does: the same key until there is an answer."""
        while True:
            with contextlib.suppress(httpx.HTTPError):
                body = {"recipe": recipe, "model": NAME}
                made = httpx.post(
                    f"{self.url}/v1/distillation/jobs",
                    json=body, headers={"idempotency-key": key}, timeout=10,
                )  # fmt: skip
                assert made.status_code == 201, made.text
                return
            time.sleep(0.1)


class Watch:
    """Looks all the time how many attempts of each job live."""

    def __init__(self, site: Site) -> None:
        self._site, self.most = site, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            self.most = max([self.most, *map(len, all_trainers(self._site).values())])


@pytest.fixture
def api(site: Site, tiny_target: Path) -> Iterator[Api]:
    made = Api(site, tiny_target)
    yield made
    made.kill()
    assert made.process.stdout is not None
    made.process.stdout.close()


@pytest.mark.parametrize(
    ("seed", "kills"),
    [(0, 12), *(pytest.param(seed, 20, marks=pytest.mark.slow) for seed in range(1, 11))],
)
def test_kills_at_random(site: Site, api: Api, seed: int, kills: int) -> None:
    """Two hundred of them in the slow tests, in ten runs."""
    draw = random.Random(seed)
    recipe, keys = tiny(steps=8, save_every=1, eval_every=4), list[str]()
    over = threading.Event()

    def submit() -> None:
        """Two jobs wait or run at any time, so that each kill meets one."""
        while not over.wait(0.2):
            if sum(not job.over for job in site.store.page(None, limit=100)[0]) < 2:
                keys.append(f"key-{len(keys)}")
                api.submit(keys[-1], recipe)

    submitter = threading.Thread(target=submit)
    submitter.start()
    worker = site.work(**STUBBORN)
    with Watch(site) as watch:
        for _ in range(kills):
            time.sleep(draw.expovariate(1 / 3.0))
            victim = draw.choice(["worker", "trainer", "api", "all"])
            if victim in ("api", "all"):
                api.kill()
                api.start()
            if victim in ("trainer", "all"):
                running = [one for some in all_trainers(site).values() for one in some]
                for process in running:
                    with contextlib.suppress(psutil.Error):
                        draw.choice([process, process.parent() or process]).kill()
            if victim in ("worker", "all"):
                worker.kill()
                worker.wait()
                worker = site.work(**STUBBORN)
        over.set()
        submitter.join()
        for job in site.store.page(None, limit=100)[0]:
            assert site.wait(job.id, timeout_s=180)["status"] == "succeeded"
    assert watch.most == 1, "two attempts of a job lived at a time"

    jobs, more = site.store.page(None, limit=100)
    assert not more
    assert sorted(job.idempotency_key or "" for job in jobs) == sorted(keys)
    assert len({job.draft for job in jobs}) == len(keys) >= 2
    assert {one.id for one in site.registry.versions()} == {job.draft for job in jobs}
    for job in jobs:
        events = site.store.events(job, limit=10_000)[0]
        assert [one.seq for one in events] == list(range(1, job.last_event + 1))
        assert sum("registered as" in one.message for one in events) == 1
        steps = [one.data["step"] for one in events if one.data.get("kind") == "evaluation"]
        assert steps == [0, 4, 8], "each evaluation is told once"
        assert job.draft is not None
        version = site.registry.resolve(job.draft)
        verify_files(version.folder, version.manifest)
    wait_until(lambda: all(job.named for job in site.store.page(None)[0]), 5, "drafts are named")


def test_a_worker_that_wakes_up_late_writes_nothing(site: Site) -> None:
    job_id = site.submit(tiny(steps=2000, save_every=1000, eval_every=1000))
    late = site.work(lease_s="2", grace_s="1")
    site.wait(job_id, "running")
    trainer = wait_trainer(site, job_id)
    os.kill(late.pid, signal.SIGSTOP)
    site.work(lease_s="2", grace_s="1")
    wait_until(
        lambda: len(site.api.get(f"/{job_id}").json()["attempt_list"]) == 2, 60, "taken over"
    )
    wait_until(lambda: not alive(trainer.pid), 60, "the first trainer is ended before")
    os.kill(late.pid, signal.SIGCONT)
    wait_until(lambda: "another worker has it" in site.worker_log(), 60, "it notices")
    wait_trainer(site, job_id)
    assert late.poll() is None, "it goes on with other jobs"
    site.api.post(f"/{job_id}/cancel", json={})
    assert site.wait(job_id, timeout_s=60)["status"] == "cancelled"
    assert not trainers(site, job_id)
    outcomes = [one["outcome"] for one in site.api.get(f"/{job_id}").json()["attempt_list"]]
    assert outcomes == ["lost", "cancelled"]


def test_nothing_outlives_a_killed_worker(site: Site) -> None:
    job_id = site.submit(tiny(steps=2000, save_every=1000, eval_every=1000))
    worker = site.work(grace_s="1")
    wait_trainer(site, job_id)
    worker.kill()
    wait_until(lambda: not trainers(site, job_id), 15, "the trainer is gone")
