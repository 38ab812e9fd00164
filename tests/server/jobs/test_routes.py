"""The job routes without any training: what is accepted, refused, listed and streamed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from draftsmith.server.database.connect import open_database
from draftsmith.server.home import Home
from draftsmith.server.jobs.job import NewEvent, Status
from draftsmith.server.jobs.lease import Ending, Leases
from tests.server.jobs.conftest import TINY, tiny
from tests.server.stub import StubEngine, serving, strict_client

MODEL = "org/tiny"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home")).ensure()


@pytest.fixture(scope="module")
def url(home: Home, tiny_target: Path) -> Iterator[str]:
    with serving(home.root, tiny_target, StubEngine(None), served_model_name=MODEL) as url:
        yield f"{url}/v1/distillation/jobs"


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return strict_client(url.removesuffix("/v1/distillation/jobs"))


def refused(answer: httpx.Response) -> tuple[int, str | None, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["param"], error["message"]


def create(url: str, **body: Any) -> dict[str, Any]:
    made = httpx.post(url, json={"recipe": TINY} | body)
    assert made.status_code == 201, made.text
    return dict(made.json())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "recipe"),
        ({"recipe": "a = ["}, "recipe"),
        ({"recipe": TINY, "colour": 1}, "colour"),
        ({"recipe": {**TINY, "train": {"steps": 0}}}, "train.steps"),
        ({"recipe": {**TINY, "train": {"stepz": 1}}}, "train.stepz"),
        ({"recipe": tiny(steps=10**6)}, "train.steps"),
        ({"recipe": tiny(batch_size=10**5)}, "train.batch_size"),
        ({"recipe": {**TINY, "teacher": {"model": "/etc"}}}, "model"),
        ({"recipe": TINY, "model": "../../etc"}, "model"),
        ({"recipe": {**TINY, "data": {"train": "/etc/passwd"}}}, "training_file"),
        ({"recipe": {**TINY, "data": {"heldout": "hf:a/b"}}}, "validation_file"),
        ({"recipe": {**TINY, "data": {"train": "draftsmith:stdlib/../x"}}}, "training_file"),
        ({"recipe": TINY, "training_file": "file-" + "0" * 24}, "training_file"),
        ({"recipe": {**TINY, "log": {"url": "http://a"}}}, "log"),
        ({"recipe": {**TINY, "teacher": {"stored": "/a"}}}, "teacher.stored"),
        ({"recipe": {**TINY, "student": {"model": "/a"}}}, "student.model"),
        ({"recipe": {**TINY, "rollout": {"engine": "vllm"}}}, "rollout.engine"),
        ({"recipe": {**TINY, "objective": {"name": "adaspec", "reference": "/etc"}}},
         "objective.reference"),
        ({"recipe": {**TINY, "export": {"name": "../a"}}}, "export.name"),
        ({"recipe": TINY, "suffix": "../a"}, "suffix"),
        ({"method": "nonsense"}, "objective.name"),
        ({"method": "taid", "hyperparameters": {"learning_rate": -1}}, None),
        ({"recipe": TINY, "metadata": {"a": "b" * 600}}, "metadata.a"),
    ],
)  # fmt: skip
def test_refused_requests(url: str, body: dict[str, Any], param: str | None) -> None:
    status, named, message = refused(httpx.post(url, json=body))
    assert status == 400
    if param is not None:
        assert named == param, message
    assert len(message) < 500


def test_a_method_with_hyperparameters_becomes_a_recipe(url: str) -> None:
    job = create(
        url,
        recipe=None,
        method="taid",
        hyperparameters={"n_epochs": 2, "batch_size": 8, "max_new_tokens": 32},
        seed=3,
        suffix="Mine",
    )
    recipe = job["recipe"]
    assert recipe["objective"]["name"] == "taid"
    assert recipe["train"]["batch_size"] == 8
    assert recipe["train"]["steps"] == 2 * 256 // 8, "two passes over the built-in prompts"
    assert (recipe["rollout"]["max_new_tokens"], recipe["seed"]) == (32, 3)
    assert recipe["student"]["num_layers"] == 1
    assert (job["name"], recipe["name"], job["model"]) == ("Mine", "mine", MODEL)
    httpx.post(f"{url}/{job['id']}/cancel", json={})


def test_toml_and_dry_run(url: str) -> None:
    toml = 'name = "x"\n[train]\nsteps = 10\nbatch_size = 4\n[rollout]\nmax_new_tokens = 16\n'
    before = httpx.get(url).json()["data"]
    said = httpx.post(url, json={"recipe": toml, "dry_run": True})
    assert said.status_code == 200
    preview = said.json()
    assert (preview["steps"], preview["prompts"]) == (10, 256)
    assert preview["tokens"] == {"teacher_answers": 256 * 16, "trained": 10 * 4 * 16}
    assert preview["seconds"] is None
    assert preview["basis"].startswith("unknown")
    assert 0 < preview["parameters"]["student"] < preview["parameters"]["teacher"]
    assert httpx.get(url).json()["data"] == before, "a dry run starts nothing"


def test_the_stated_parameters_are_the_real_ones(url: str, tiny_target: Path) -> None:
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(tiny_target)
    preview = httpx.post(url, json={"recipe": TINY, "dry_run": True}).json()
    norms = 64 * 5  # which the estimate leaves out
    assert preview["parameters"]["teacher"] == teacher.num_parameters() - norms


def test_idempotency_and_the_clients_own_retries(url: str) -> None:
    key = {"idempotency-key": "once"}
    first = httpx.post(url, json={"recipe": TINY}, headers=key)
    again = httpx.post(url, json={"recipe": TINY}, headers=key)
    assert first.json()["id"] == again.json()["id"]
    other = httpx.post(url, json={"recipe": TINY, "seed": 9}, headers=key)
    assert other.status_code == 409
    assert other.headers["x-should-retry"] == "false"
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    body = {"recipe": TINY, "seed": 77}
    made = httpx.post(url, json=body).json()["id"]
    retried = httpx.post(url, json=body, headers={"x-stainless-retry-count": "1"}).json()["id"]
    fresh = httpx.post(url, json=body, headers={"x-stainless-retry-count": "0"}).json()["id"]
    assert made == retried != fresh


def test_lists_have_cursors_and_filters(url: str, client: openai.OpenAI) -> None:
    ids = [create(url, metadata={"batch": "lists", "n": str(n)})["id"] for n in range(5)]
    httpx.post(f"{url}/{ids[0]}/cancel", json={})
    filters = {"metadata[batch]": "lists", "limit": "2"}
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = httpx.get(url, params=filters | after).json()
        seen += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert seen == ids[::-1]
    cancelled = httpx.get(url, params={"metadata[batch]": "lists", "status": "cancelled"}).json()
    assert [one["id"] for one in cancelled["data"]] == ids[:1]
    two = {"status": ["cancelled", "queued"], "metadata[batch]": "lists"}
    assert len(httpx.get(url, params=two).json()["data"]) == 5
    assert refused(httpx.get(url, params={"status": "asleep"}))[:2] == (400, "status.0")
    assert refused(httpx.get(url, params={"after": "job-x"}))[0] == 404
    assert refused(httpx.get(url, params={"limit": "1000"}))[:2] == (400, "limit")
    by_client = client.fine_tuning.jobs.list(limit=2, metadata={"batch": "lists"})
    assert [one.id for one in by_client] == ids[::-1]


def test_the_facade_speaks_openais_words(url: str, client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    job = jobs.create(
        model=MODEL,
        training_file="draftsmith:stdlib/train",
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        suffix="a",
    )
    assert (job.status, job.result_files, job.training_file) == (
        "queued", [], "draftsmith:stdlib/train",
    )  # fmt: skip
    assert job.hyperparameters.n_epochs == 1
    assert job.model_extra is not None
    assert job.model_extra["distillation"]["recipe"]["train"]["steps"] == 64
    assert jobs.pause(job.id).status == "queued"
    paused = jobs.retrieve(job.id)
    assert paused.model_extra is not None
    assert paused.model_extra["distillation"]["status"] == "paused"
    assert jobs.resume(job.id).status == "queued"
    assert jobs.cancel(job.id).status == "cancelled"
    assert jobs.cancel(job.id).status == "cancelled", "a second time changes nothing"
    with pytest.raises(openai.ConflictError) as late:
        jobs.with_raw_response.resume(job.id)
    assert late.value.code == "invalid_job_state"
    assert [one.message for one in jobs.list_events(job.id, limit=2)] == [
        "The job is cancelled.", "The job is queued again.", "The job is paused.",
        "The job is queued.",
    ]  # fmt: skip
    assert list(jobs.checkpoints.list(job.id)) == []
    with pytest.raises(openai.NotFoundError) as missing:
        jobs.retrieve("job-nothing")
    assert missing.value.code == "job_not_found"
    for body, param in (
        ({"method": {"type": "supervised"}}, "method.type"),
        ({"method": {"type": "distillation", "distillation": {"data": {"train": "/x"}}}}, None),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"hyperparameters": {"n_epochs": 1},
          "method": {"type": "distillation",
                     "distillation": {"hyperparameters": {"n_epochs": 2}}}}, "hyperparameters"),
        ({"method": {"type": "distillation", "distillation": {"colour": 1}}},
         "method.distillation.colour"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as wrong:
            jobs.create(model=MODEL, training_file="/etc/passwd", extra_body=body)
        assert wrong.value.param == (param or "training_file")


def test_events_stream_and_go_on_where_they_were(url: str, home: Home) -> None:
    job = create(url, metadata={"stream": "yes"}, priority=100)
    leases = Leases(open_database(home), "w", 60)
    claim = leases.claim()
    assert claim is not None
    assert claim.job.id == job["id"]

    def later() -> None:
        time.sleep(0.3)
        leases.tell(claim, NewEvent("Half.", type="metrics", data={"step": 1}))
        time.sleep(0.8)
        ending = Ending(Status.FAILED, "x", NewEvent("Over.", level="error"), error={"code": "x"})
        assert leases.end(claim, ending, [Status.RUNNING])

    teller = threading.Thread(target=later)
    teller.start()
    first = _read_stream(f"{url}/{job['id']}/events?stream=true")
    teller.join()
    assert [one[0] for one in first] == ["message", "message", "metrics", "message", "done"]
    assert [one[1] for one in first[:4]] == ["1", "2", "3", "4"]
    assert first[-1][2]["status"] == "failed"
    assert first[2][2]["data"] == {"step": 1}
    accept = {"accept": "text/event-stream", "last-event-id": "3"}
    rest = _read_stream(f"{url}/{job['id']}/events", accept)
    assert [one[2].get("message") for one in rest] == ["Over.", None]
    listed = httpx.get(f"{url}/{job['id']}/events", params={"limit": 3}).json()
    assert [one["seq"] for one in listed["data"]] == [1, 2, 3]
    events = f"{url}/{job['id']}/events"
    after = httpx.get(events, params={"after": listed["last_id"]}).json()
    assert [one["seq"] for one in after["data"]] == [4]
    assert refused(httpx.get(events, params={"after": "x"}))[:2] == (400, "after")


def _read_stream(
    url: str, headers: dict[str, str] | None = None
) -> list[tuple[str, str, dict[str, Any]]]:
    with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = answer.read().decode()
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return found


def test_a_full_queue(home: Home, tmp_path: Path, tiny_target: Path) -> None:
    with serving(tmp_path, tiny_target, StubEngine(None), max_unfinished_jobs=1) as url:
        recipe = {"recipe": {**TINY, "teacher": {}}}
        assert httpx.post(f"{url}/v1/distillation/jobs", json=recipe).status_code == 201
        full = httpx.post(f"{url}/v1/distillation/jobs", json=recipe)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(full.headers["retry-after"]) <= 120
