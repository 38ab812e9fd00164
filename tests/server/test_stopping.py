"""Ends of all kinds. Last of the tests on engines, because these do not survive it."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from draftsmith.server.home import Home
from draftsmith.server.registry import Registry
from tests.server.conftest import Fleet, Models
from tests.server.drafts import export_draft
from tests.server.processes import (
    MODEL,
    GatewayProcess,
    alive,
    command_of,
    descendants,
    wait_until,
)

LONG: dict[str, Any] = {
    "model": MODEL,
    "prompt": [9] * 20,
    "max_tokens": 4000,
    "temperature": 1.0,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


def engine_family(gateway: GatewayProcess) -> list[int]:
    """The engine's API server, then what it started."""
    watchdog = next(pid for pid in gateway.family() if "watchdog.py" in command_of(pid))
    return descendants(watchdog)


def test_killed_engine_is_announced_and_replaced(fleet: Fleet) -> None:
    """A stream in progress ends with an error event, new requests get 503, then all is well."""
    gateway = fleet.identical
    client = gateway.openai()
    stream = client.completions.create(**LONG)
    next(iter(stream))
    os.kill(engine_family(gateway)[0], signal.SIGKILL)
    with pytest.raises(openai.APIError) as broken:
        list(stream)
    assert broken.value.code == "engine_restarting"

    with pytest.raises(openai.InternalServerError) as refused:
        client.completions.create(model=MODEL, prompt="a")
    assert refused.value.status_code == 503
    assert refused.value.code == "engine_restarting"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
    assert gateway.get("/health").status_code == 200
    ready = gateway.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["reason"]

    gateway.wait_ready()
    assert client.completions.create(model=MODEL, prompt="a", max_tokens=3).choices
    assert "draftsmith_engine_restarts 1.0" in gateway.get("/metrics").text


def test_killed_engine_core_is_noticed(fleet: Fleet, models: Models, tmp_path: Path) -> None:
    """The API server outlives its engine core by some seconds and answers 500 meanwhile."""
    gateway = fleet.partial
    # Promoted before, so that the engine that comes next must come with this draft.
    draft = export_draft(models.target, models.target, tmp_path / "draft")
    Registry(Home(gateway.home)).register(draft, "always-right")
    with gateway.client() as http:
        event = http.post(f"/v1/deployments/{MODEL}/promote", json={"draft": "always-right"})
    assert event.json()["outcome"] == "done", event.text
    client = gateway.openai()
    core = next(pid for pid in engine_family(gateway) if "EngineCore" in command_of(pid))
    os.kill(core, signal.SIGKILL)
    end = time.monotonic() + 15
    codes = set()
    while time.monotonic() < end:
        try:
            client.completions.create(model=MODEL, prompt="a", max_tokens=2)
        except openai.InternalServerError as error:
            codes.add((error.status_code, error.code))
        if gateway.get("/ready").status_code == 503:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the gateway did not notice")
    assert codes <= {(503, "engine_restarting")}


def test_the_promoted_draft_comes_back_with_the_engine(fleet: Fleet) -> None:
    fleet.partial.wait_ready()
    answer = fleet.partial.openai().completions.create(
        model=MODEL, prompt=[7, 20, 31], max_tokens=41, temperature=0, extra_body=LONG["extra_body"]
    )
    figures: Any = answer.model_extra
    assert figures["metrics"]["speculative_decoding"]["draft_acceptance_rate"] == 1.0


def test_killed_gateway_leaves_no_orphan(fleet: Fleet) -> None:
    gateway = fleet.identical
    pids = gateway.family()
    assert len(pids) >= 4  # watchdog, API server, engine core, worker
    gateway.process.kill()
    gateway.process.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), 30, "no orphan")


def test_sigterm_drains(fleet: Fleet) -> None:
    gateway = fleet.partial
    gateway.wait_ready()
    client = gateway.openai()
    pids = gateway.family()
    with ThreadPoolExecutor(3) as pool:
        streams = [client.completions.create(**LONG | {"max_tokens": 1500}) for _ in range(3)]
        for stream in streams:
            next(iter(stream))
        answers = [pool.submit(list, stream) for stream in streams]
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: gateway.get("/ready").status_code == 503, 5, "not ready")
        assert gateway.get("/ready").json()["status"] == "draining"
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model=MODEL, prompt="a")
        assert refused.value.code == "shutting_down"
        assert "retry-after" in refused.value.response.headers
        for answer in answers:
            reasons = [c.choices[0].finish_reason for c in answer.result(60) if c.choices]
            assert reasons[-1] == "length"
    assert gateway.process.wait(30) == 0
    wait_until(lambda: not any(alive(pid) for pid in pids), 10, "no orphan")


def test_sigterm_while_starting_and_a_start_that_fails(models: Models, tmp_path: Path) -> None:
    """Neither leaves anything behind; a failure is one sentence that quotes vLLM."""
    stopped = GatewayProcess(tmp_path / "a", models.target, models.other)
    # More than the positions that the models were made for.
    failed = GatewayProcess(tmp_path / "b", models.target, models.other, max_model_len="100000")
    try:
        for gateway in (stopped, failed):
            wait_until(lambda one=gateway: len(one.family()) >= 2, 20, "the engine is starting")
        pids = stopped.family() + failed.family()
        stopped.process.send_signal(signal.SIGTERM)
        assert stopped.process.wait(30) == 0
        assert failed.process.wait(120) == 1
        last = failed.stderr.read_text().splitlines()[-1]
        assert last.startswith("ValueError: The engine did not start: ")
        assert "max_model_len" in last
        wait_until(lambda: not any(alive(pid) for pid in pids), 10, "no orphan")
    finally:
        stopped.stop()
        failed.stop()
