"""What the stock client, at its strictest, makes of everything that can go wrong."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from draftsmith.server.engine.interface import EngineState
from draftsmith.server.home import Home
from draftsmith.server.keys import KeyStore
from tests.server.conftest import Models
from tests.server.processes import wait_until
from tests.server.stub import StubEngine, answering, completion, events, serving, strict_client

CHUNK = b"data: " + json.dumps(completion("b")).encode() + b"\n\n"


async def whole(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=completion())


def check(error: openai.APIStatusError, status: int, code: str) -> None:
    """OpenAI's four keys, string codes, the request id."""
    assert error.status_code == status
    assert error.code == code
    body = error.response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert error.request_id == error.response.headers["x-request-id"]
    if status in (429, 503):
        assert 1 <= int(error.response.headers["retry-after"]) <= 120


def said(message: str, code: object) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": "p", "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, said("no", 400), "invalid_value"),
        (500, said("secret", 500), "internal_error"),
        (500, None, "internal_error"),
    ],
)
def test_engine_errors(models: Models, tmp_path: Path, status: int, body: Any, code: str) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json=body)

    with (
        serving(tmp_path, models.target, answering(answer)) as url,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        strict_client(url).completions.create(model="target", prompt="a")
    check(caught.value, status, code)
    assert "secret" not in caught.value.response.text


def test_refusals_before_the_engine(models: Models, tmp_path: Path) -> None:
    with serving(tmp_path, models.target, answering(whole)) as url:
        client = strict_client(url)
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="nope", prompt="a")
        check(missing.value, 404, "model_not_found")
        with pytest.raises(openai.APIStatusError) as large:
            client.completions.create(model="target", prompt="a" * (5 << 20))
        check(large.value, 413, "body_too_large")
        with pytest.raises(openai.APIStatusError) as form:
            client.post(
                "/completions", content=b"a=b", cast_to=object,
                options={"headers": {"content-type": "text/plain"}},
            )  # fmt: skip
        check(form.value, 415, "unsupported_media")
        with pytest.raises(openai.BadRequestError) as bad:
            client.completions.create(model="target", prompt="a", n=99)
        check(bad.value, 400, "invalid_value")


def test_engine_that_is_not_there(models: Models, tmp_path: Path) -> None:
    engine = StubEngine(None)
    engine.state = EngineState.RESTARTING
    with serving(tmp_path, models.target, engine) as url:
        with pytest.raises(openai.InternalServerError) as caught:
            strict_client(url).completions.create(model="target", prompt="a")
        check(caught.value, 503, "engine_restarting")


@pytest.mark.parametrize(
    ("code", "seen"), [(400, "invalid_value"), (500, "internal_error"), ("x", "internal_error")]
)
def test_error_in_mid_stream(models: Models, tmp_path: Path, code: object, seen: str) -> None:
    """It ends the stream, with a string code, however the engine's bytes are cut."""
    error = {"error": {"message": "it broke", "type": "x", "param": None, "code": code}}
    late = b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n"

    async def answer(request: httpx.Request) -> httpx.Response:
        return events(CHUNK + late[:20], late[20:], CHUNK)

    with serving(tmp_path, models.target, answering(answer)) as url:
        stream = strict_client(url).completions.create(model="target", prompt="a", stream=True)
        assert next(stream).choices[0].text == "b"
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == seen
    assert ("it broke" in caught.value.message) == (code == 400)


def test_text_that_speaks_of_errors_is_left_alone(models: Models, tmp_path: Path) -> None:
    said = '{"error": {"code": 1}}\n\ndata: {"error"'
    chunk = b": keep-alive\n\ndata: " + json.dumps(completion(said)).encode() + b"\n\n"

    async def answer(request: httpx.Request) -> httpx.Response:
        return events(chunk + b"data: [DONE]\n\n")

    with serving(tmp_path, models.target, answering(answer)) as url:
        body = {"model": "target", "prompt": "a", "stream": True}
        untouched = httpx.post(f"{url}/v1/completions", json=body).content
        assert untouched == chunk + b"data: [DONE]\n\n"
        stream = strict_client(url).completions.create(model="target", prompt="a", stream=True)
        assert [one.choices[0].text for one in stream] == [said]


def test_what_json_cannot_hold(models: Models, tmp_path: Path) -> None:
    """Half of a character, as a client sends it that cuts an emoji, and numbers that are none."""
    head = {"content-type": "application/json"}
    with serving(tmp_path, models.target, answering(whole)) as url:
        for prompt in ('"\\ud800"', "[NaN]"):
            body = f'{{"model": "target", "prompt": {prompt}}}'
            refused = httpx.post(f"{url}/v1/completions", content=body, headers=head)
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["code"] == "invalid_value"
        paired = httpx.post(
            f"{url}/v1/completions",
            content='{"model": "target", "prompt": "\\ud83d\\ude00"}',
            headers=head,
        )
        assert paired.status_code == 200


def test_streams_whose_lines_end_as_in_http(models: Models, tmp_path: Path) -> None:
    """Servers elsewhere may write CR LF, and a network may cut it anywhere."""
    text = (CHUNK * 2 + b"data: [DONE]\n\n").replace(b"\n", b"\r\n")

    async def answer(request: httpx.Request) -> httpx.Response:
        return events(*(text[at : at + 1] for at in range(len(text))))

    with serving(tmp_path, models.target, answering(answer)) as url:
        stream = strict_client(url).completions.create(model="target", prompt="a", stream=True)
        assert [one.choices[0].text for one in stream] == ["b", "b"]


def test_who_does_not_read_gives_up_its_place(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftsmith.server.openai.events.UNREAD_S", 0.4)

    async def answer(request: httpx.Request) -> httpx.Response:
        return events(*[b": " + b"x" * (1 << 16) + b"\n\n"] * 1000)

    with serving(tmp_path, models.target, answering(answer), max_in_flight=1) as url:
        body = {"model": "target", "prompt": "a", "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=10) as unread:
            assert unread.status_code == 200
            again = httpx.post(f"{url}/v1/completions", json=body, timeout=10)
            assert again.status_code == 200, "the place was free before the queue's time was over"


def metrics(url: str, key: str) -> str:
    return httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {key}"}).text


def test_shares_and_queue_over_http(models: Models, tmp_path: Path) -> None:
    """A key's third request gets 429, a fourth of another key waits, a fifth gets 503."""
    free = threading.Event()
    asked = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["prompt"])
        while not free.is_set():
            await asyncio.sleep(0.01)
        if json.loads(request.content).get("stream"):
            return events(CHUNK, b"data: [DONE]\n\n")
        return httpx.Response(200, json=completion())

    store = KeyStore(Home(tmp_path).ensure().keys)
    one, two = store.create("one", ["infer"], max_concurrent=2), store.create("two", ["infer"])
    boss = store.create("boss", ["admin"])
    limits: dict[str, Any] = {"max_in_flight": 2, "max_queued": 1}
    with (
        ThreadPoolExecutor(4) as pool,
        serving(tmp_path, models.target, answering(answer), **limits) as url,
    ):
        first, second = strict_client(url, api_key=one), strict_client(url, api_key=two)

        def create(client: openai.OpenAI, prompt: str, stream: bool) -> object:
            answer = client.completions.create(model="target", prompt=prompt, stream=stream)
            return list(answer) if stream else answer

        running = [pool.submit(create, first, "a", True), pool.submit(create, first, "b", False)]
        wait_until(lambda: len(asked) == 2, 5, "two requests are in the engine")
        with pytest.raises(openai.RateLimitError) as share:
            create(first, "c", False)
        check(share.value, 429, "rate_limit_exceeded")
        running.append(pool.submit(create, second, "d", False))
        wait_until(lambda: "requests_waiting 1.0" in metrics(url, boss), 5, "the queue is full")
        with pytest.raises(openai.InternalServerError) as full:
            create(second, "e", False)
        check(full.value, 503, "overloaded")
        assert len(asked) == 2
        free.set()
        assert all(one.result(5) for one in running)
        assert create(first, "f", False)  # places and shares were given back
