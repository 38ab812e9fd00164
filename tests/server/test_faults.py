"""What attackers, broken clients and broken machines do to a gateway with a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok

from draftsmith.server.admission import Load
from draftsmith.server.engine.command import EngineConfig
from draftsmith.server.engine.process import EngineProcess
from draftsmith.server.engine.stall import StallWatch
from tests.server.conftest import Fleet, Models
from tests.server.processes import MODEL, GatewayProcess, command_of, descendants, wait_until

LONG: dict[str, Any] = {
    "model": MODEL, "prompt": [9] * 20, "max_tokens": 3000, "temperature": 1.0, "stream": True,
    "ignore_eos": True,
}  # fmt: skip


def raw(gateway: GatewayProcess, request: bytes) -> tuple[int, bytes]:
    """Status and body of what answers `request`, byte for byte as given."""
    with gateway.connect() as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body


def fuzz(gateway: GatewayProcess, examples: int) -> int:
    """Requests that the schema allows and that it forbids, `examples` for each operation."""
    asked = 0
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    quietly = settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with gateway.client(timeout_s=120) as http:
        for found in schema.get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            for mode in modes:

                @quietly
                @given(case=operation.as_strategy(generation_mode=mode))
                def ask(case: Any) -> None:
                    nonlocal asked
                    asked += 1
                    fields = case.as_transport_kwargs(base_url=gateway.url)
                    body = fields.get("json")
                    if isinstance(body, dict):  # a valid one may not keep the engine for minutes
                        for name in ("max_tokens", "max_output_tokens"):
                            if isinstance(body.get(name), int):
                                body[name] = min(body[name], 4)
                    kept = ("method", "url", "headers", "params", "json", "data", "files")
                    answer = http.request(
                        **{name: fields[name] for name in kept if fields.get(name) is not None}
                    )
                    assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                    if answer.status_code >= 400:
                        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

                with contextlib.suppress(Unsatisfiable):  # a route without fields to get wrong
                    ask()
    return asked


def test_requests_that_a_machine_made_up(gateway: GatewayProcess) -> None:
    assert fuzz(gateway, 3) > 100
    assert gateway.get("/ready").status_code == 200


@pytest.mark.slow
def test_ten_thousand_requests_that_a_machine_made_up(gateway: GatewayProcess) -> None:
    assert fuzz(gateway, 200) > 10_000
    assert gateway.get("/ready").status_code == 200


def test_hosts_and_paths_that_are_lies(gateway: GatewayProcess) -> None:
    """The Host header decides nothing, and no path leaves the routes."""
    for host in (b"evil.example", b"x/health?", b"localhost@evil", b"[::1", b""):
        status, body = raw(gateway, b"GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
        assert status in (200, 400)
        assert b"evil" not in body
    for path in (
        b"/../../../../etc/passwd",
        b"/v1/files/..%2f..%2fkeys.json",
        b"/v1/files/%2e%2e%2f%2e%2e%2fkeys.json/content",
        b"/v1/batches/..%2f..%2fdraftsmith.sqlite",
        b"/v1/models/..%2f..%2f..%2fetc%2fpasswd",
        b"/v1/deployments/..%2f..%2f/events",
        b"/metrics/models/..%2f..%2fetc%2fpasswd",
        b"//evil.example/health",
        b"/health%00",
    ):
        status, body = raw(gateway, b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        assert status in (400, 404), path
        assert b"root:" not in body
        assert b"sha256" not in body
    for path in (b"/invocations", b"/pause", b"/collective_rpc", b"/v1/load_lora_adapter"):
        request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % path
        assert raw(gateway, request + b"Content-Length: 2\r\n\r\n{}")[0] == 404, "vLLM's own"


def test_slow_and_idle_clients_hold_nobody_up(gateway: GatewayProcess) -> None:
    """2,000 idle connections, unfinished requests and readers that do not read."""
    needed = 2200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 2 * needed, "the test needs more open files"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * needed), hard))
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (max(soft, 2 * needed), hard))
    held: list[socket.socket] = []
    try:
        for _ in range(2000):
            held.append(gateway.connect())
        for one in held[:50]:  # a head that never ends
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
        body = json.dumps(LONG | {"max_tokens": 1500}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for one in held[50:54]:  # streams that nobody reads
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        client = gateway.openai(timeout=60)
        began = time.monotonic()
        answer = client.completions.create(model=MODEL, prompt="a", max_tokens=4)
        assert answer.choices
        assert time.monotonic() - began < 30
        assert gateway.get("/ready").status_code == 200
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: gateway.running_requests() == 0, 30, "what nobody reads is given up")


@pytest.fixture
def stalling(models: Models, tmp_path: Path) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(tmp_path, models.target, models.target, stall_timeout_s="3")
    yield gateway
    gateway.stop()


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced(stalling: GatewayProcess) -> None:
    """SIGSTOP: no process has died, and nothing answers any more."""
    stalling.wait_ready()
    client = stalling.openai(timeout=60)
    extra = {"ignore_eos": True}
    values = {name: LONG[name] for name in ("model", "prompt", "max_tokens", "temperature")}
    stream = client.completions.create(**values, stream=True, extra_body=extra)
    next(iter(stream))
    for pid in descendants(stalling.process.pid):
        if "EngineCore" in command_of(pid):
            os.kill(pid, signal.SIGSTOP)
    with pytest.raises(openai.APIError) as broken:
        list(stream)
    assert broken.value.code == "engine_restarting"
    stalling.wait_ready()
    assert client.completions.create(model=MODEL, prompt="a", max_tokens=2).choices
    assert "draftsmith_engine_restarts 1.0" in stalling.get("/metrics").text


def test_silence_alone_is_no_hang_but_an_unanswered_trial_is() -> None:
    async def check() -> None:
        answering = asyncio.Event()

        async def answer(request: httpx.Request) -> httpx.Response:
            await answering.wait()
            return httpx.Response(200)

        async def verdict(load: Load, stepped_at: float) -> bool:
            engine = cast(EngineProcess, SimpleNamespace(stepped_at=stepped_at, config=config))
            transport = httpx.MockTransport(answer)
            async with httpx.AsyncClient(transport=transport, base_url="http://e") as client:
                watch = StallWatch(engine, client, load, timeout_s=0.1)
                watch._active_at = 0.0
                for _ in range(10):
                    if watch.hangs():
                        return True
                    await asyncio.sleep(0.05)
            return False

        config = EngineConfig(Path())
        assert await verdict(Load(1), 0.0)
        assert not await verdict(Load(0), 0.0), "nobody waits for it"
        assert not await verdict(Load(1), time.time() + 60), "it steps"
        busy = SimpleNamespace(stepped_at=0.0, config=config)
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://e") as client:
            watch = StallWatch(cast(EngineProcess, busy), client, Load(1), timeout_s=0.1)
            watch._active_at = 0.0
            assert not watch.hangs()
            await asyncio.sleep(0.05)
            busy.stepped_at = time.time()
            await asyncio.sleep(0.2)
            assert not watch.hangs(), "the trial waited behind others, and the engine stepped"
        answering.set()
        assert not await verdict(Load(1), 0.0), "its clients read slowly"

    asyncio.run(check())


def test_slow_readers_are_not_taken_for_a_hang(fleet: Fleet) -> None:
    """The engine is idle and a request is inside: a trial says that all is well."""

    async def check() -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(fleet.plain.socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            watch = StallWatch(fleet.plain, client, Load(1), timeout_s=20)
            watch._quiet_s, watch._active_at = 0.1, 0.0
            end = time.monotonic() + 3
            trials = 0
            while time.monotonic() < end:
                assert not watch.hangs()
                trials += watch._trial is not None
                await asyncio.sleep(0.05)
            assert trials, "it was tried"

    asyncio.run(check())


def test_an_engine_whose_log_was_moved_away_still_has_last_words(tmp_path: Path) -> None:
    engine = EngineProcess(EngineConfig(Path()), tmp_path / "moved" / "engine.log")
    assert "cannot be read (No such file or directory)" in engine.last_words()
