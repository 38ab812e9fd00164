"""One machine for serving and training: what a worker and a server do about each other."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from draftsmith.server.device import Device
from draftsmith.server.home import Home
from tests.server.conftest import Models
from tests.server.jobs.conftest import Site, tiny
from tests.server.jobs.test_kills import trainers, wait_trainer
from tests.server.processes import MODEL, GatewayProcess, wait_until

LONG = tiny(steps=2000, save_every=1, eval_every=2000)


def test_refused_and_alone(site: Site) -> None:
    """The test holds the lock of a server that has an engine."""
    device = Device(site.home)
    serving = device.serve()
    job_id = site.submit(LONG)
    refusing = site.work(sharing="refuse")
    wait_until(lambda: site.api.get(f"/{job_id}").json()["waiting"] is not None, 30, "it waits")
    job = site.api.get(f"/{job_id}").json()
    assert (job["status"], job["attempts"]) == ("queued", 0)
    assert "training beside it is refused" in job["waiting"]
    refusing.terminate()
    refusing.wait(30)
    told = [one["message"] for one in site.api.get(f"/{job_id}/events").json()["data"]]
    assert len(told) == 2, "the reason is told once"

    worker = site.work(sharing="exclusive", grace_s="1")
    wait_until(device.is_claimed, 30, "the worker wants the machine")
    assert site.wait(job_id, "running")["waiting"] is None
    assert not trainers(site, job_id), "it waits for the engine to stop"
    serving.drop()
    wait_trainer(site, job_id)
    assert device.is_claimed()
    worker.kill()
    wait_until(lambda: not device.is_claimed(), 20, "the kernel gives the machine back")
    assert not trainers(site, job_id), "and not before the trainer is gone"


@pytest.mark.slow
def test_a_running_job_makes_room_for_an_engine(site: Site) -> None:
    device, job_id = Device(site.home), site.submit(LONG)
    site.work(sharing="refuse")
    wait_until(lambda: site.api.get(f"/{job_id}").json()["step"] > 2, 60, "it trains")
    serving = device.serve()
    made_room = site.wait(job_id, "queued", timeout_s=30)
    assert not trainers(site, job_id)
    serving.drop()
    wait_until(lambda: site.api.get(f"/{job_id}").json()["step"] > made_room["step"], 60, "goes on")


@pytest.mark.slow
def test_the_engine_stops_for_a_training_and_comes_back(models: Models, tmp_path: Path) -> None:
    """Also when the worker is killed; requests that were inside end well."""
    gateway = GatewayProcess(tmp_path / "home", models.target, models.target)
    site = Site(Home(gateway.home).ensure(), gateway.url)
    question = {"model": MODEL, "prompt": "Once", "max_tokens": 3000, "ignore_eos": True}
    inside: list[httpx.Response] = []
    try:
        gateway.wait_ready()

        def ask() -> None:
            with gateway.client(120) as client:
                inside.append(client.post("/v1/completions", json=question))

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: gateway.running_requests() == 1, 10, "a request is inside")
        job_id = site.submit(LONG)
        worker = site.work(sharing="exclusive", grace_s="1")
        wait_trainer(site, job_id)
        asking.join()
        assert inside[0].status_code == 200
        with gateway.client() as client:
            refused = client.post("/v1/completions", json=question)
            assert client.get("/ready").status_code == 503
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_suspended")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert not [pid for pid in gateway.family() if _is_engine(pid)], "nothing of it is left"
        worker.kill()
        gateway.wait_ready()
        with gateway.client(60) as client:
            short = client.post("/v1/completions", json=question | {"max_tokens": 8})
        assert short.status_code == 200
        assert not trainers(site, job_id)
    finally:
        site.stop()
        gateway.stop()


def _is_engine(pid: int) -> bool:
    return b"vllm" in Path(f"/proc/{pid}/cmdline").read_bytes()
