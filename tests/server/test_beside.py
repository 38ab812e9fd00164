"""A draft of another shape: a second engine takes over from the first, and no request notices."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from draftsmith.server.deployments.room import _left_in_cgroups, choose_way, engine_bytes
from draftsmith.server.engine.command import EngineConfig
from draftsmith.server.home import Home
from draftsmith.server.registry import Registry
from draftsmith.server.settings import load_settings
from tests.server.conftest import Models
from tests.server.drafts import export_draft
from tests.server.processes import CONTEXT, MODEL, GatewayProcess, command_of, wait_until
from tests.server.streams import Streams
from tests.tiny import make_target

K = 3
BASE = f"/v1/deployments/{MODEL}"
GAP_S = 15.0
"""The longest silence that is allowed between two chunks: a restart takes longer, and fails."""
_GIB = 1 << 30


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow") / "model"
    return make_target(folder, max_position_embeddings=CONTEXT, hidden_size=32)


def start(home: Path, models: Models, narrow: Path, **settings: str) -> GatewayProcess:
    """A gateway whose draft is the target itself, with a registered narrow one."""
    draft = export_draft(narrow, models.target, home.parent / f"{home.name}-narrow")
    Registry(Home(home)).register(draft, "narrow")
    gateway = GatewayProcess(home, models.target, models.target, **settings)
    try:
        gateway.wait_ready(600)
    except BaseException:
        gateway.stop()
        raise
    return gateway


@pytest.fixture(scope="module")
def gateway(
    models: Models, narrow: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    running = start(tmp_path_factory.mktemp("beside"), models, narrow, drain_timeout_s="300")
    yield running
    running.stop()


def post(gateway: GatewayProcess, action: str, **body: Any) -> dict[str, Any]:
    with gateway.client(600.0) as client:
        answer = client.post(f"{BASE}/{action}", json=body)
    assert answer.status_code == 200, answer.text
    event: dict[str, Any] = answer.json()
    return event


def streams(gateway: GatewayProcess, pause_s: float = 0.0) -> Streams:
    """Eight at a time; two of them are always long ones."""
    create: Any = gateway.openai(timeout=120).completions.create

    def once(length: int) -> Iterator[str]:
        body = {"model": MODEL, "prompt": [9, 17, 33], "max_tokens": length, "temperature": 0}
        for chunk in create(**body, stream=True, extra_body={"ignore_eos": True}):
            yield chunk.choices[0].text
        assert chunk.choices[0].finish_reason == "length"

    return Streams([partial(once, length) for length in (600, 600, *[40] * 6)], pause_s)


def check(traffic: Streams) -> None:
    """Every request was answered, always with the same text, and without a long silence."""
    print(f"{traffic.answered} answers, longest gap {traffic.longest_gap_s:.2f} s")
    assert traffic.failures == []
    long, short = traffic.texts[:2], traffic.texts[2:]
    assert [len({one for texts in part for one in texts}) for part in (long, short)] == [1, 1]
    assert traffic.longest_gap_s < GAP_S


def engines(gateway: GatewayProcess) -> int:
    return sum("api_server" in command_of(one) and "watchdog" not in command_of(one)
               for one in gateway.family())  # fmt: skip


def tau(gateway: GatewayProcess) -> float:
    body = {"model": MODEL, "prompt": [9, 17, 33], "max_tokens": 60, "temperature": 0}
    with gateway.client() as client:
        said = client.post("/v1/completions", json=body | {"ignore_eos": True}).json()
    return float(said["metrics"]["speculative_decoding"]["mean_acceptance_length"])


def serve(gateway: GatewayProcess, draft: str) -> None:
    """Have `narrow` served, or the `target` that the server was started with."""
    with gateway.client() as client:
        narrow_is_served = client.get(BASE).json()["draft"] is not None
    if draft == "narrow" and not narrow_is_served:
        assert post(gateway, "promote", draft="narrow", min_share=0)["outcome"] == "done"
    if draft == "target" and narrow_is_served:
        assert post(gateway, "rollback")["outcome"] == "done"


def test_the_second_engine_takes_over_and_nobody_notices(gateway: GatewayProcess) -> None:
    assert tau(gateway) == pytest.approx(K + 1, rel=0.1)
    # Without pauses two cores are busy with the streams, and the second engine starts for minutes.
    with streams(gateway, pause_s=5.0) as traffic:
        event = post(gateway, "promote", draft="narrow", min_share=0)
        running = engines(gateway)
    assert running == 1, "the first one is gone before the call answers"
    check(traffic)
    assert (event["outcome"], event["way"]) == ("done", "beside"), event
    assert event["swap_ms"] < 1000
    assert "The draft has another shape: its config.json has hidden_size = 32" in event["why"]
    assert "There is room: a second engine needs about" in event["why"]
    assert event["after"]["block_efficiency"] < 2
    assert event["same_answers"] == 1
    assert tau(gateway) == pytest.approx(1, abs=0.5), "the new draft proposes"
    assert "draftsmith_engine_restarts 0.0" in gateway.get("/metrics").text


@pytest.mark.slow
def test_one_call_goes_back_the_same_way(gateway: GatewayProcess) -> None:
    serve(gateway, "narrow")
    with streams(gateway) as traffic:
        event = post(gateway, "rollback")
    check(traffic)
    assert (event["outcome"], event["way"], event["after"]) == ("done", "beside", None), event
    assert engines(gateway) == 1
    assert tau(gateway) == pytest.approx(K + 1, rel=0.1)


@pytest.mark.slow
def test_an_engine_that_fails_the_trial_never_answers(gateway: GatewayProcess) -> None:
    serve(gateway, "target")
    with streams(gateway) as traffic:
        event = post(gateway, "promote", draft="narrow")
        running = engines(gateway)
    check(traffic)
    assert (event["outcome"], event["way"], running) == ("rolled_back", "beside", 1), event
    assert "tokens were accepted" in event["reason"]
    assert event["swap_ms"] is None
    assert tau(gateway) == pytest.approx(K + 1, rel=0.1)
    assert "draftsmith_engine_restarts 0.0" in gateway.get("/metrics").text


@pytest.mark.slow
def test_what_took_over_is_watched_and_comes_again(gateway: GatewayProcess) -> None:
    """After a crash, with the draft that was promoted."""
    serve(gateway, "narrow")
    (victim,) = (one for one in gateway.family() if "EngineCore" in command_of(one))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: gateway.get("/ready").status_code == 503, 30, "the crash is noticed")
    gateway.wait_ready(600)
    assert tau(gateway) == pytest.approx(1, abs=0.5)
    assert "draftsmith_engine_restarts 1.0" in gateway.get("/metrics").text


@pytest.mark.slow
def test_a_restart_where_that_is_asked_for(models: Models, narrow: Path, tmp_path: Path) -> None:
    """Running requests end, new ones are told to wait, and the text stays what it was."""
    gateway = start(tmp_path / "restart", models, narrow, replace_engine="restart")
    body = {"model": MODEL, "prompt": [9, 17, 33], "max_tokens": 40, "temperature": 0}
    codes: set[int] = set()
    done = threading.Event()

    def knock() -> None:
        while not done.is_set():
            with gateway.client() as client:
                answer = client.post("/v1/completions", json=body)
            codes.add(answer.status_code)
            assert answer.status_code == 200 or 1 <= int(answer.headers["retry-after"]) <= 120
            done.wait(0.2)

    knocker = threading.Thread(target=knock)
    knocker.start()
    try:
        stream: Any = gateway.openai().completions.create(
            model=MODEL, prompt=[9, 17, 33], max_tokens=2000, stream=True
        )
        next(stream)
        event = post(gateway, "promote", draft="narrow", min_share=0)
        assert [one.choices[0].finish_reason for one in stream][-1] in ("stop", "length")
    finally:
        done.set()
        knocker.join()
        gateway.stop()
    assert codes == {200, 503}
    assert (event["outcome"], event["way"]) == ("done", "restart"), event
    assert event["why"].endswith("The setting replace_engine is 'restart'.")


def config(models: Models, narrow: Path, **options: Any) -> EngineConfig:
    return EngineConfig(models.target, narrow, dtype="float32", **options)


def test_what_a_second_engine_needs(models: Models, narrow: Path) -> None:
    """The KV cache as vLLM is told, and the weights as they lie in memory."""
    small = engine_bytes(config(models, narrow, kv_cache_bytes=_GIB))
    assert engine_bytes(config(models, narrow, kv_cache_bytes=3 * _GIB)) - small == 2 * _GIB
    assert engine_bytes(config(models, narrow)) == small, "vLLM's cache is 1 GiB by default here"
    stored = sum((one / "model.safetensors").stat().st_size for one in (models.target, narrow))
    assert stored < small - _GIB - 5 * _GIB // 4 < 3 * stored


def test_which_way(models: Models, narrow: Path) -> None:
    wanted = config(models, narrow, kv_cache_bytes=4 * _GIB)
    assert choose_way("auto", wanted, 8 * _GIB)[0] == "beside"
    way, why = choose_way("auto", wanted, 5 * _GIB)
    assert way == "restart"
    assert why == (
        "There is no room: a second engine needs about 5.3 GiB, and 5.0 GiB are available."
    )
    assert choose_way("restart", wanted, 8 * _GIB)[0] == "restart"
    assert choose_way("beside", wanted, 8 * _GIB)[0] == "beside"
    with pytest.raises(ValueError, match=r"no room.*Free some memory"):
        choose_way("beside", wanted, 5 * _GIB)


def test_the_way_on_a_gpu(models: Models, narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only by the configuration, and with a share of the GPU for each engine."""
    monkeypatch.setattr("draftsmith.server.deployments.room.uses_cpu_wheel", lambda: False)
    monkeypatch.setattr("draftsmith.server.settings.uses_cpu_wheel", lambda: False)
    wanted = config(models, narrow)
    assert choose_way("auto", wanted, 100 * _GIB)[0] == "restart"
    assert choose_way("beside", wanted, 0)[0] == "beside"
    pair: dict[str, Any] = {"target": models.target, "draft": models.partial}
    with pytest.raises(ValueError, match=r"set gpu_memory_fraction to 0\.45"):
        load_settings(**pair, replace_engine="beside")
    with pytest.raises(ValueError, match="3 engines share a GPU"):
        load_settings(**pair, replace_engine="beside", gpu_memory_fraction=0.4, plain_engine=True)
    assert load_settings(**pair, replace_engine="beside", gpu_memory_fraction=0.45)


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    """The tightest limit of all groups counts; files that are only cached do not."""

    def group(folder: Path, limit: str, used: int, cached: int) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")

    root, process = tmp_path / "cgroup", tmp_path / "self"
    for folder in (root, process):
        folder.mkdir()
    (process / "cgroup").write_text("0::/pod/app\n")
    group(root / "pod", "1000", 700, 200)
    group(root / "pod" / "app", "max", 300, 0)
    assert _left_in_cgroups(root, process) == [500]
    assert _left_in_cgroups(root, tmp_path / "nowhere") == []
