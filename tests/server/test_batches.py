"""/v1/batches: the stock client, every line once whatever dies, and behind all other traffic."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import update

from draftsmith.server.admission import Admission
from draftsmith.server.batches import runner
from draftsmith.server.batches.batch import Status
from draftsmith.server.batches.output import write_files
from draftsmith.server.batches.queue import Answer, BatchQueue, LeaseLost
from draftsmith.server.batches.store import BatchStore
from draftsmith.server.database.connect import open_database
from draftsmith.server.database.tables import batches
from draftsmith.server.files.store import FileStore
from draftsmith.server.home import Home
from draftsmith.server.keys import ApiKey, KeyStore
from tests.server.processes import MODEL, GatewayProcess, wait_until
from tests.server.stub import StubEngine, answering, completion, serving, strict_client


def lines(*bodies: dict[str, Any], url: str = "/v1/completions") -> bytes:
    """A file of requests called 1, 2, ..."""
    rows = (
        {"custom_id": str(number), "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies, 1)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def prompts(count: int, model: str = "m") -> bytes:
    return lines(*({"model": model, "prompt": f"p{number}"} for number in range(1, count + 1)))


def submit(client: openai.OpenAI, content: bytes, **fields: Any) -> Any:
    file = client.files.create(file=("r.jsonl", content), purpose="batch")
    values: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h"}
    return client.batches.create(input_file_id=file.id, **values | fields)


def ended(client: openai.OpenAI, batch_id: str, timeout_s: float = 20) -> Any:
    over = ("completed", "failed", "expired", "cancelled")
    wait_until(lambda: client.batches.retrieve(batch_id).status in over, timeout_s, "it ends")
    return client.batches.retrieve(batch_id)


def rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def url(tmp_path: Path, tiny_target: Path, asked: list[str]) -> Iterator[str]:
    """A gateway whose engine echoes prompts, and is slow where a prompt says so."""

    async def answer(request: httpx.Request) -> httpx.Response:
        prompt = json.loads(request.content)["prompt"]
        asked.append(prompt)
        if prompt.startswith("slow"):
            await asyncio.sleep(60)
        usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        return httpx.Response(200, json=completion(prompt.upper()) | {"usage": usage})

    with serving(tmp_path, tiny_target, answering(answer), served_model_name="m") as where:
        yield where


def test_the_stock_client(url: str, asked: list[str]) -> None:
    client = strict_client(url)
    bad = {"model": "m", "prompt": "x", "temperature": 9}
    content = prompts(30) + lines(bad).replace(b'"1"', b'"bad"')
    begun = submit(client, content, metadata={"team": "a"})
    assert (begun.status, begun.metadata) == ("validating", {"team": "a"})
    with pytest.raises(openai.ConflictError) as used:
        client.files.delete(begun.input_file_id)
    assert used.value.code == "file_in_use"
    batch = ended(client, begun.id)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (30, 1)
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (60, 90)
    assert batch.created_at <= batch.in_progress_at <= batch.completed_at < batch.expires_at
    answers = rows(client, batch.output_file_id)
    assert [one["custom_id"] for one in answers] == [str(number) for number in range(1, 31)]
    texts = [one["response"]["body"]["choices"][0]["text"] for one in answers]
    assert texts == [f"P{number}" for number in range(1, 31)]
    assert all(one["error"] is None and one["response"]["request_id"] for one in answers)
    (refused,) = rows(client, batch.error_file_id)
    assert refused["custom_id"] == "bad"
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["param"] == "temperature"
    assert Counter(asked) == Counter(f"p{number}" for number in range(1, 31))
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert [one.id for one in client.batches.list(limit=1)] == [begun.id]
    assert client.batches.cancel(begun.id).status == "completed", "what is over stays as it is"
    assert client.files.delete(begun.input_file_id).deleted


def test_what_is_refused(url: str) -> None:
    client = strict_client(url)
    good = json.loads(prompts(1))
    for change, reason in (
        ({"url": "/v1/embeddings"}, "line 2: 'url' must be one of"),
        ({"method": "GET"}, "line 2: 'method' must be 'POST'"),
        ({"custom_id": "1"}, "line 2: the id '1' is taken"),
        ({"body": {"model": "m", "prompt": "a", "stream": True}}, "line 2: 'stream'"),
        ({"priority": 1}, "line 2: 'priority' is not a field"),
    ):
        second = json.dumps({**good, "custom_id": "2", **change}).encode()
        with pytest.raises(openai.BadRequestError, match=reason):
            client.files.create(file=("r.jsonl", prompts(1) + second), purpose="batch")
    with pytest.raises(openai.BadRequestError) as window:
        submit(client, prompts(1), completion_window="999h")
    assert window.value.param == "completion_window"
    with pytest.raises(openai.BadRequestError) as missing:
        client.batches.create(
            input_file_id="file-1", endpoint="/v1/completions", completion_window="24h"
        )
    assert (missing.value.code, missing.value.param) == ("file_not_found", "input_file_id")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.batches.retrieve("batch_1")
    assert unknown.value.code == "batch_not_found"
    batch = ended(client, submit(client, prompts(2), endpoint="/v1/responses").id)
    assert batch.status == "failed"
    assert [(one.line, one.code, one.param) for one in batch.errors.data] == [
        (1, "mismatched_url", "url"),
        (2, "mismatched_url", "url"),
    ]


def test_cancel_and_expiry_keep_what_is_answered(
    url: str, asked: list[str], tmp_path: Path
) -> None:
    client = strict_client(url)
    for ending in ("cancelled", "expired"):
        asked.clear()
        slow = ({"model": "m", "prompt": f"slow{number}"} for number in range(40))
        batch = submit(client, lines({"model": "m", "prompt": "quick"}, *slow))
        wait_until(lambda: len(asked) >= 10, 10, "lines are in the engine")
        if ending == "cancelled":
            assert client.batches.cancel(batch.id).status == "cancelling"
        else:
            database = open_database(Home(tmp_path))
            with database.writing() as connection:
                mine = update(batches).where(batches.c.id == batch.id)
                connection.execute(mine.values(expires_at=1.0))
        over = ended(client, batch.id)
        assert over.status == ending
        assert over.request_counts.completed == 1
        assert [one["custom_id"] for one in rows(client, over.output_file_id)] == ["1"]
        left = rows(client, over.error_file_id)
        assert [one["custom_id"] for one in left] == [str(number) for number in range(2, 42)]
        assert {one["error"]["code"] for one in left} == {f"batch_{ending}"}
        assert len(asked) <= 17, "no line began after the end"


SERVE = """
import sys
from tests.server.test_batches import serve_slowly
serve_slowly(sys.argv[1], sys.argv[2], sys.argv[3])
"""


def serve_slowly(home: str, target: str, log: str) -> None:
    """A gateway in a process of its own, which writes each prompt that its engine has answered."""

    async def answer(request: httpx.Request) -> httpx.Response:
        prompt = json.loads(request.content)["prompt"]
        await asyncio.sleep(0.02)
        with Path(log).open("a") as out:
            out.write(f"{prompt}\n")
        return httpx.Response(200, json=completion(prompt))

    values: dict[str, Any] = {"served_model_name": "m", "max_batch_in_flight": 2}
    runner._LEASE_S = 1.5  # a dead server's batch need not wait long here
    with serving(Path(home), Path(target), answering(answer), **values) as where:
        print(where, flush=True)
        signal.sigwait({signal.SIGTERM})


def test_kill_9_in_the_middle(tmp_path: Path, tiny_target: Path) -> None:
    """Three servers in a row die by SIGKILL; each line is in the output once, in order."""
    log = tmp_path / "log"
    log.touch()
    command = [sys.executable, "-c", SERVE, str(tmp_path / "home"), str(tiny_target), str(log)]
    batch_id = ""
    for kill_after in (20, 60, 100, None):
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        client = strict_client(server.stdout.readline().strip())
        batch_id = batch_id or submit(client, prompts(200)).id
        if kill_after is not None:
            wait_until(lambda n=kill_after: len(log.read_text().split()) > n, 20, "it runs")
            server.kill()
        else:
            batch = ended(client, batch_id, 40)
            answers = rows(client, batch.output_file_id)
            server.send_signal(signal.SIGTERM)
        server.wait(10)
        server.stdout.close()
    assert (batch.status, batch.request_counts.completed) == ("completed", 200)
    assert [one["custom_id"] for one in answers] == [str(number) for number in range(1, 201)]
    asked = Counter(log.read_text().split())
    assert set(asked) == {f"p{number}" for number in range(1, 201)}
    # Asked again were only lines that were in the engine, or not yet on the disk, at a kill.
    assert sum(asked.values()) - 200 <= 3 * 2


def test_who_lost_the_lease_writes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path).ensure()
    database = open_database(home)
    (tmp_path / "r").write_bytes(prompts(3))
    with (tmp_path / "r").open("rb") as stream:
        file = FileStore(database, home).add(stream, "r", "batch", "")
    values: dict[str, Any] = {"endpoint": "/v1/completions", "hours": 1, "labels": {}}
    BatchStore(database).create(file, owner="", most=1, **values)
    zombie, heir = BatchQueue(database, 0.0), BatchQueue(database, 60.0)
    lost = zombie.claim()
    assert lost is not None
    zombie.begin(lost)
    zombie.record(lost, Answer(1, failed=False, content="{}"))
    held = heir.claim()
    assert held is not None
    assert heir.claim() is None, "one server has it"
    for write in (
        lambda: zombie.record(lost, Answer(2, failed=False, content="{}")),
        lambda: zombie.renew(lost),
        lambda: zombie.fail(lost, []),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert heir.answered(held) == {1}
    assert heir.renew(held)[0].status is Status.IN_PROGRESS
    heir.release(held)
    assert heir.claim() is not None


def test_batches_take_only_what_traffic_leaves_free() -> None:
    async def check() -> None:
        admission = Admission(limit=4, queue=4, max_wait_s=5, background=2)
        order: list[str] = []

        async def come(name: str, *, background: bool) -> None:
            slot = await admission.enter(None, background=background)
            order.append(name)
            await asyncio.sleep(0.01)
            slot.leave()

        traffic = [await admission.enter(None) for _ in range(2)]
        lines = [asyncio.create_task(come(f"b{n}", background=True)) for n in range(3)]
        await asyncio.sleep(0.03)
        assert order == [], "two requests are inside: no line enters"
        traffic.append(await admission.enter(None))
        traffic.append(await admission.enter(None))
        late = asyncio.create_task(come("late", background=False))
        await asyncio.sleep(0)
        traffic[0].leave()
        await asyncio.sleep(0)
        for slot in traffic[1:]:
            slot.leave()
        await asyncio.gather(late, *lines)
        assert order[0] == "late", "it came after the lines"
        assert order[1:] == ["b0", "b1", "b2"]
        assert admission.inside == 0

        # Cancelled lines leave nothing behind.
        inside = [await admission.enter(None) for _ in range(2)]
        gone = asyncio.create_task(come("gone", background=True))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait({gone})
        for slot in inside:
            slot.leave()
        assert admission.inside == 0

        # A key's share holds for its lines too: they wait, and are never refused.
        key = ApiKey(name="k", sha256="0" * 64, scopes=("infer",), max_concurrent=1)
        first = await admission.enter(key)
        line = asyncio.create_task(admission.enter(key, background=True))
        await asyncio.sleep(0.03)
        assert not line.done()
        first.leave()
        (await asyncio.wait_for(line, 2)).leave()
        assert admission.inside == 0

    asyncio.run(check())


def test_each_key_has_its_own(tmp_path: Path, tiny_target: Path) -> None:
    """A batch is answered in its key's name, and ends when the key is revoked."""
    entered = threading.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        entered.set()
        await asyncio.sleep(0.3)
        return httpx.Response(200, json=completion())

    home = Home(tmp_path).ensure()
    store = KeyStore(home.keys)
    ann, bob = store.create("ann", ["infer"], max_concurrent=1), store.create("bob", ["infer"])
    trainer = store.create("trainer", ["train"])
    with serving(tmp_path, tiny_target, answering(answer), served_model_name="m") as url:
        clients = {key: strict_client(url, api_key=key) for key in (ann, bob, trainer)}
        batch = submit(clients[ann], prompts(50))
        with pytest.raises(openai.NotFoundError):
            clients[bob].batches.retrieve(batch.id)
        with pytest.raises(openai.BadRequestError):
            clients[bob].batches.create(
                input_file_id=batch.input_file_id,
                endpoint="/v1/completions",
                completion_window="24h",
            )
        for use in (
            lambda: clients[trainer].batches.list(),
            lambda: clients[trainer].files.create(file=("r", prompts(1)), purpose="batch"),
            lambda: clients[bob].files.create(file=("r", b'{"prompt": "a"}'), purpose="fine-tune"),
        ):
            with pytest.raises(openai.PermissionDeniedError):
                use()
        assert entered.wait(10)
        store.revoke("ann")
        queue = BatchStore(open_database(home))
        wait_until(lambda: queue.get(batch.id, None).over, 20, "it ends")
        assert queue.get(batch.id, None).status is Status.CANCELLED
        assert 0 < queue.get(batch.id, None).completed < 20, "one at a time, and not all"


def test_with_a_real_engine(gateway: GatewayProcess) -> None:
    """Chat, completions and responses give what single requests give."""
    client = gateway.strict()
    messages = [{"role": "user", "content": "Say it."}]
    cases: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": 8},
        "/v1/completions": {"prompt": "The draft", "max_tokens": 8},
        "/v1/responses": {"input": "Say it.", "max_output_tokens": 8},
    }
    begun = {}
    for path, fields in cases.items():
        body = {"model": MODEL, "temperature": 0, **fields}
        wrong = {"model": "nope", **fields}
        begun[path] = submit(client, lines(body, wrong, url=path), endpoint=path)
    for path, batch in begun.items():
        over = ended(client, batch.id, 60)
        assert (over.request_counts.completed, over.request_counts.failed) == (1, 1)
        (answer,) = rows(client, over.output_file_id)
        body = {"model": MODEL, "temperature": 0, **cases[path]}
        with gateway.client() as http:
            single = http.post(path, json=body).json()
        same = "output" if path == "/v1/responses" else "choices"
        assert _texts(answer["response"]["body"][same]) == _texts(single[same])
        assert over.usage is not None
        assert over.usage.output_tokens == 8
        (failed,) = rows(client, over.error_file_id)
        assert failed["response"]["body"]["error"]["code"] == "model_not_found"


def _texts(value: Any) -> list[str]:
    """All strings called `text` or `content`."""
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    if not isinstance(value, dict):
        return []
    own = [one for name, one in value.items() if name in ("text", "content")]
    texts = [one for one in own if isinstance(one, str)]
    return texts + [text for one in value.values() for text in _texts(one)]


def test_a_line_outlives_the_death_of_its_engine(
    tmp_path: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a while nobody knows that it is dead: that counts as one loss, not as many."""
    monkeypatch.setattr(runner, "_AFTER_A_LOSS_S", 0.6)
    died_at: list[float] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        died_at.append(time.monotonic())
        if time.monotonic() < died_at[0] + 0.5:
            raise httpx.ConnectError("gone")
        return httpx.Response(200, json=completion("b"))

    with serving(tmp_path, tiny_target, answering(answer), served_model_name="m") as where:
        batch = ended(client := strict_client(where), submit(client, prompts(2)).id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 0)


def test_lines_wait_for_all_engines_of_their_model(tmp_path: Path, tiny_target: Path) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=completion("b"))

    engine, plain = answering(answer), StubEngine(None)
    with serving(tmp_path, tiny_target, engine, plain, served_model_name="m") as where:
        client = strict_client(where)
        begun = submit(client, prompts(2))
        wait_until(lambda: client.batches.retrieve(begun.id).status == "in_progress", 10, "begun")
        time.sleep(0.3)
        counts = client.batches.retrieve(begun.id).request_counts
        assert counts is not None
        assert (counts.completed, counts.failed) == (0, 0)
        plain.client = engine.client
        batch = ended(client, begun.id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 0)


def test_the_lease_is_kept_while_files_are_written(
    tmp_path: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long file takes longer than a lease; nobody else may begin with the batch meanwhile."""
    monkeypatch.setattr(runner, "_LEASE_S", 1.0)
    written = []

    def slowly(*given: Any) -> None:
        written.append(1)
        time.sleep(2.5)
        write_files(*given)

    monkeypatch.setattr(runner, "write_files", slowly)

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=completion("b"))

    with serving(tmp_path, tiny_target, answering(answer), served_model_name="m") as where:
        client = strict_client(where)
        assert ended(client, submit(client, prompts(1)).id).status == "completed"
    assert written == [1]
