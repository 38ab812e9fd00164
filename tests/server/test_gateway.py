"""The API as the stock openai client sees it, on a real engine over a real socket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.processes import CONTEXT, MODEL, GatewayProcess, wait_until

CHAT: Any = [{"role": "user", "content": "Name three colours."}]
JSON = {"content-type": "application/json"}


@pytest.fixture
def client(gateway: GatewayProcess) -> openai.OpenAI:
    return gateway.strict()


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.client() as one:
        yield one


def test_models(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [one.id for one in listed] == [MODEL]
    assert client.models.retrieve(MODEL) == listed[0]
    for stranger in ("nope", "../../etc/passwd", f"{MODEL}/"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(stranger)
        assert caught.value.code == "model_not_found"


def test_chat_streamed_and_whole_are_equal(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_completion_tokens=40, temperature=0
    )
    stream = client.chat.completions.create(
        model=MODEL,
        messages=CHAT,
        max_completion_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.model == chunks[0].model == MODEL
    assert whole._request_id

    # The commonest second turn: the answer goes back as it came.
    turn: Any = [*CHAT, whole.choices[0].message, {"role": "user", "content": "Go on."}]
    again = client.chat.completions.create(model=MODEL, messages=turn, max_tokens=8)
    assert again.usage is not None
    assert whole.usage is not None
    assert again.usage.prompt_tokens > whole.usage.prompt_tokens


def test_completion_options(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["The draft", "A list"], n=2, max_tokens=6, logprobs=2
    )
    assert len(answer.choices) == 4
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 6
    echo = client.completions.create(
        model=MODEL, prompt="The draft", max_tokens=1, logprobs=1, echo=True
    )
    assert echo.choices[0].text.startswith("The draft")
    assert echo.choices[0].logprobs is not None
    assert (echo.choices[0].logprobs.token_logprobs or [1])[0] == 0

    streamed = list(
        client.completions.create(
            model=MODEL, prompt="The draft", max_tokens=12, temperature=0, stream=True, user="me"
        )
    )
    whole = client.completions.create(model=MODEL, prompt="The draft", max_tokens=12, temperature=0)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
    assert streamed[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completion_nulls_are_kept_for_who_does_not_ask(gateway: GatewayProcess) -> None:
    """Most clients take a chunk's first finish_reason that is not null for the end."""
    client = gateway.openai()
    chunks = client.completions.create(model=MODEL, prompt="The draft", max_tokens=8, stream=True)
    reasons: list[object] = [chunk.choices[0].finish_reason for chunk in chunks]
    assert set(reasons[:-1]) == {None}
    assert reasons[-1] in ("length", "stop")
    echo = client.completions.create(model=MODEL, prompt="A", max_tokens=1, logprobs=1, echo=True)
    assert echo.choices[0].logprobs is not None
    first: object = (echo.choices[0].logprobs.token_logprobs or [0])[0]
    assert first is None


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"n": 17}, "n", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"prompt": ["a"] * 40, "n": 2}, "n", "invalid_value"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"temperature": 2.5}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"logprobs": 6}, "logprobs", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stop": [""]}, "stop", "invalid_value"),
    ({"prompt": {"text": "a"}}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [1, "a"]}, "prompt", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"best_of": 4}, "best_of", "invalid_value"),
    ({"suffix": "end"}, "suffix", "invalid_value"),
    ({"temprature": 1}, "temprature", "invalid_value"),
    ({"vllm_xargs": {"a": 1}}, "vllm_xargs", "invalid_value"),
    ({"prompt": [5] * (CONTEXT + 1)}, "input_tokens", "context_length_exceeded"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_with_speculation"),
    ({"min_p": 0.1}, "min_p", "unsupported_with_speculation"),
]


@pytest.mark.parametrize(("change", "param", "code"), BAD, ids=lambda value: str(value)[:40])
def test_bad_request_names_the_field(
    client: openai.OpenAI, change: dict[str, Any], param: str | None, code: str
) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 4} | change
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body=body, cast_to=object)
    assert caught.value.param == param
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_images_and_templates_are_refused(client: openai.OpenAI) -> None:
    image: Any = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret"}}]
    with pytest.raises(openai.BadRequestError, match="only text"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": image}])
    for field, why in (
        ({"chat_template": "{{ 1 }}"}, "not supported"),
        ({"chat_template_kwargs": {"tokenize": True}}, "not a variable"),
        ({"chat_template_kwargs": {"x": [1]}}, "must be a number"),
    ):
        with pytest.raises(openai.BadRequestError, match=why):
            client.chat.completions.create(model=MODEL, messages=CHAT, extra_body=field)


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=CHAT)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe{}", b'{"model":', b"[" * 100_000, b"[]", b'"text"', b"", b'{"prompt": NaN}'],
    ids=["not utf-8", "cut off", "deep", "list", "string", "empty", "nan"],
)
def test_broken_bodies(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/v1/completions", content=content, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(answer.content) < 500  # never the body back


def test_nested_body(http: httpx.Client) -> None:
    parameters: Any = {}
    for _ in range(60):
        parameters = {"a": parameters}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    body = {"model": MODEL, "messages": CHAT, "tools": [tool]}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "levels" in answer.json()["error"]["message"]


def test_body_too_large(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=MODEL, prompt="x" * (5 << 20))
    assert caught.value.status_code == 413
    assert caught.value.code == "body_too_large"

    # In chunks, without a length: the server must count, and answer before the end.
    with gateway.connect() as raw:
        raw.settimeout(10)
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(5):
            raw.sendall(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_routes_that_are_not_there(http: httpx.Client) -> None:
    expected = {
        ("GET", "/v1/completions"): 405,
        ("GET", "/nope"): 404,
        # vLLM's own routes stay inside.
        ("POST", "/invocations"): 404,
        ("POST", "/collective_rpc"): 404,
        ("GET", "/version"): 404,
    }
    for (method, path), status in expected.items():
        answer = http.request(method, path, json={} if method == "POST" else None)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    plain = http.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415


def test_request_id(http: httpx.Client) -> None:
    assert (
        http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    )
    made = http.get("/nope", headers={"x-request-id": "two words"}).headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9a-f]{32}", made)


def test_same_request_id_twice_at_once(gateway: GatewayProcess) -> None:
    """The engine must not take the client's id for its own: it may not be unique."""
    client = gateway.openai(default_headers={"x-request-id": "same"})
    streams = [
        client.completions.create(model=MODEL, prompt="a", max_tokens=100, stream=True)
        for _ in range(3)
    ]
    assert all(len(list(stream)) > 0 for stream in streams)


def test_metrics(http: httpx.Client) -> None:
    http.get("/no/such/route")
    text = http.get("/metrics").text
    assert 'draftsmith_http_requests_total{code="200",method="GET",route="/ready"}' in text
    assert 'route="unmatched"' in text
    assert "/no/such/route" not in text
    assert "draftsmith_engine_up 1.0" in text
    assert "vllm:spec_decode_num_accepted_tokens_total{" in text


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_aborts_the_request(gateway: GatewayProcess, stream: bool) -> None:
    body = {"model": MODEL, "prompt": [9] * 20, "n": 2, "max_tokens": 4000, "ignore_eos": True}
    body |= {"stream": stream, "temperature": 1.0}
    with gateway.connect() as raw:
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
        raw.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        if stream:
            assert raw.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: gateway.running_requests() > 0, 10, "the request runs")
    before = _generated(gateway)
    wait_until(lambda: gateway.running_requests() == 0, 10, "the request is aborted")
    # Aborted, not finished: most of its 2 x 4000 tokens were never made.
    assert _generated(gateway) - before < 4000


def _generated(gateway: GatewayProcess) -> float:
    lines = gateway.get("/metrics").text.splitlines()
    name = "vllm:generation_tokens_total{"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
