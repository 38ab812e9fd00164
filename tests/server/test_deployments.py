"""Drafts come and go in the live engine: better ones stay, worse ones do not, no request fails."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from draftsmith.distill.manifest import write_draft_vocabulary
from draftsmith.server.home import Home
from draftsmith.server.registry import Registry
from tests.cli.commands import draftsmith, one_sentence
from tests.server.conftest import Fleet, Models
from tests.server.drafts import export_draft
from tests.server.processes import MODEL, GatewayProcess
from tests.server.streams import Streams

K = 3
BASE = f"/v1/deployments/{MODEL}"
QUESTION: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Name three colours."}],
    "max_tokens": 60,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def registry(fleet: Fleet, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Drafts of several kinds, where the gateway with the poor draft finds them."""
    folder = tmp_path_factory.mktemp("drafts")
    registry = Registry(Home(fleet.partial.home))

    def register(name: str, model: Path, target: Path = models.target) -> None:
        registry.register(export_draft(model, target, folder / name), name)

    register("perfect", models.target)
    register("random", models.other)
    register("stranger", models.other, models.other)
    poisoned = Path(shutil.copytree(models.target, folder / "poisoned-model"))
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.norm.weight"][:] = float("inf")
    save_file(tensors, poisoned / "model.safetensors", metadata={"format": "pt"})
    register("poisoned", poisoned)
    few = Path(shutil.copytree(models.target, folder / "few-model"))
    write_draft_vocabulary(few, list(range(0, 366, 3)))
    register("few", few)
    return registry


@pytest.fixture
def http(fleet: Fleet, registry: Registry) -> Iterator[httpx.Client]:
    with fleet.partial.client(120.0) as client:
        yield client


def post(client: httpx.Client, action: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"{BASE}/{action}", json=body)
    assert answer.status_code == 200, answer.text
    event: dict[str, Any] = answer.json()
    return event


def ask(client: httpx.Client, **options: Any) -> tuple[str, float]:
    """The answer's text, and tokens a target call."""
    answer = client.post("/v1/chat/completions", json=QUESTION | options)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    tau = said["metrics"]["speculative_decoding"]["mean_acceptance_length"]
    return said["choices"][0]["message"]["content"], tau


def streams(gateway: GatewayProcess) -> Streams:
    """The question on eight connections."""
    create: Any = gateway.openai().chat.completions.create

    def once() -> Iterator[str]:
        for chunk in create(**QUESTION, stream=True):
            yield chunk.choices[0].delta.content or ""

    return Streams([once] * 8)


def test_a_better_draft_stays_and_nobody_notices(
    fleet: Fleet, http: httpx.Client, registry: Registry
) -> None:
    text, tau = ask(http)
    assert tau < K, "the draft may propose every other token only"
    with streams(fleet.partial) as traffic:
        event = post(http, "promote", draft="perfect")
    assert traffic.failures == []
    assert traffic.answered > 8
    assert {one for texts in traffic.texts for one in texts} == {text}
    assert (event["outcome"], event["way"]) == ("done", "exchange"), event
    assert event["why"] == "Both drafts have the same shape."
    assert event["before"]["block_efficiency"] == pytest.approx(tau, abs=1)
    assert event["after"]["block_efficiency"] == pytest.approx(K + 1, rel=0.02)
    assert event["same_answers"] == 1
    assert 0 < event["swap_ms"] < 1000
    print(f"exchange took {event['swap_ms']} ms")
    assert ask(http) == (text, pytest.approx(K + 1, rel=0.05))

    version = registry.resolve("perfect").id
    described = http.get(BASE).json()
    assert described["draft"] == version
    assert described["aliases"] == {"org-tiny/production": version}
    assert http.get(f"/v1/models/{MODEL}").json()["draft"]["version"] == version
    metrics = http.get("/metrics").text
    shown = f'draftsmith_draft_info{{model="{MODEL}",version="{version}"}} 1.0'
    assert [line for line in metrics.splitlines() if "draft_info{" in line] == [shown]
    assert 'draftsmith_draft_changes_total{action="promote",outcome="done"} 1.0' in metrics


@pytest.mark.parametrize("name", ["random", "few"])
def test_a_worse_draft_goes_by_itself(http: httpx.Client, registry: Registry, name: str) -> None:
    text, _ = ask(http)
    event = post(http, "promote", draft=name)
    assert event["outcome"] == "rolled_back"
    assert "tokens were accepted" in event["reason"]
    assert event["after"]["accepted"] < event["before"]["accepted"]
    assert ask(http) == (text, pytest.approx(K + 1, rel=0.05))
    assert http.get(BASE).json()["draft"] == registry.resolve("perfect").id
    assert registry.name("org-tiny/candidate") is None


def test_a_poisoned_draft_is_not_even_tried(http: httpx.Client) -> None:
    event = post(http, "promote", draft="poisoned")
    assert (event["outcome"], event["after"]) == ("failed", None)
    assert "not finite" in event["reason"]
    assert ask(http)[1] == pytest.approx(K + 1, rel=0.05)


def test_the_command_says_what_came_of_it(fleet: Fleet, registry: Registry) -> None:
    home, url = fleet.partial.home, ["--url", fleet.partial.url]
    refused = draftsmith(home, "drafts", "promote", "random", *url)
    assert "rolled back: Of a proposal" in one_sentence(refused)
    taken = draftsmith(home, "drafts", "promote", "few", "--min-share", "0", *url)
    assert f"serves {registry.resolve('few').id}, in the live engine" in taken.stdout
    assert "tokens a target call" in taken.stdout
    back = draftsmith(home, "drafts", "rollback", *url)
    assert f"serves {registry.resolve('perfect').id}" in back.stdout


@pytest.mark.parametrize(
    ("draft", "status", "message"),
    [
        ("stranger", 400, "distil a draft for"),
        ("nobody", 400, "No draft is registered as 'nobody'"),
        ("perfect", 400, "served already"),
        ("../../etc", 400, "No draft is registered"),
    ],
)
def test_what_is_refused(http: httpx.Client, draft: str, status: int, message: str) -> None:
    before = http.get(f"{BASE}/events").json()
    answer = http.post(f"{BASE}/promote", json={"draft": draft})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, "draft")
    assert message in answer.json()["error"]["message"]
    assert http.get(f"{BASE}/events").json() == before


def test_two_at_a_time(fleet: Fleet, http: httpx.Client) -> None:
    """One is tried, the other is told to wait."""
    codes: list[int] = []

    def other() -> None:
        with fleet.partial.client() as client:
            codes.append(client.post(f"{BASE}/promote", json={"draft": "few"}).status_code)

    threads = [threading.Thread(target=other) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200, 409]


def test_names_that_are_not_there(http: httpx.Client) -> None:
    assert http.get("/v1/deployments").json()["data"][0]["id"] == MODEL
    for path in ("/v1/deployments/nope", "/v1/deployments/nope/events"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "deployment_not_found")
    assert http.post("/v1/deployments/nope/rollback", json={}).status_code == 404


def test_one_call_goes_back(http: httpx.Client) -> None:
    """To what the server was started with, which is not registered; below it there is nothing."""
    text, _ = ask(http)
    event = post(http, "rollback")
    assert (event["outcome"], event["way"], event["draft"]) == ("done", "exchange", None)
    answer, tau = ask(http)
    assert answer == text
    assert tau < K
    assert http.get(BASE).json()["aliases"] == {}
    last = http.post(f"{BASE}/rollback", json={})
    assert last.status_code == 400
    assert "nothing to roll back to" in last.json()["error"]["message"]
    newest = http.get(f"{BASE}/events", params={"limit": 1}).json()["data"]
    assert [one["id"] for one in newest] == [event["id"]]
