"""Requests and tokens a minute: the arithmetic, and what the stock client sees of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from draftsmith.server.admission import Admission, Load, Slot
from draftsmith.server.errors import ApiError
from draftsmith.server.home import Home
from draftsmith.server.keys import ApiKey, KeyStore
from draftsmith.server.limits import MinuteLimits
from draftsmith.server.openai.meter import Meter
from tests.cli.commands import draftsmith
from tests.server.stub import answering, completion, events, serving, strict_client


def key(**limits: int) -> ApiKey:
    return ApiKey(name="k", sha256="0" * 64, scopes=("infer",), **limits)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_come_back_evenly() -> None:
    clock = Clock()
    limits, mine = MinuteLimits(clock), key(requests_per_minute=30)
    for left in (29, 28):
        limits.take_request(mine)
        assert limits.headers(mine)["x-ratelimit-remaining-requests"] == str(left)
    assert limits.headers(mine)["x-ratelimit-reset-requests"] == "4s"
    for _ in range(28):
        limits.take_request(mine)
    with pytest.raises(ApiError) as refused:
        limits.take_request(mine)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.headers["retry-after"] == "2"
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.value.headers["x-ratelimit-reset-requests"] == "1m0s"
    clock.now = 1.9
    assert limits.wait_s(mine) == pytest.approx(0.1)
    clock.now = 2.0
    limits.take_request(mine)
    clock.now = 1000.0
    for _ in range(30):  # no more than a minute's worth was kept
        limits.take_request(mine)
    assert limits.wait_s(mine) == pytest.approx(2.0)


def test_a_debt_of_tokens_is_paid_before_the_next_request() -> None:
    clock = Clock()
    limits, mine = MinuteLimits(clock), key(tokens_per_minute=600)
    limits.take_request(mine)
    limits.take_tokens(mine, 610)  # nobody knew before that it would be so many
    clock.now = 1.0
    with pytest.raises(ApiError, match="600 tokens a minute"):
        limits.take_request(mine)
    assert limits.wait_s(mine) == pytest.approx(0.1)
    clock.now = 1.11
    limits.take_request(mine)
    limits.take_tokens(mine, 100_000)
    with pytest.raises(ApiError) as refused:
        limits.take_request(mine)
    assert refused.value.headers["retry-after"] == "120", "above it the client does not retry"
    assert limits.headers(None) == limits.headers(key()) == {}


USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}


async def answer(request: httpx.Request) -> httpx.Response:
    """As vLLM does: usage in every event where that is asked for, and at the end."""
    body = json.loads(request.content)
    if not body.get("stream"):
        return httpx.Response(200, json=completion() | {"usage": USAGE})
    options = body.get("stream_options") or {}
    pieces: list[dict[str, Any]] = [completion("a"), completion("b")]
    if options.get("continuous_usage_stats"):
        pieces = [one | {"usage": USAGE | {"total_tokens": n}} for n, one in enumerate(pieces, 5)]
    if options.get("include_usage"):
        pieces.append(completion() | {"choices": [], "usage": USAGE})
    return events(
        *(b"data: " + json.dumps(one).encode() + b"\n\n" for one in pieces), b"data: [DONE]\n\n"
    )


def test_a_stream_of_several_answers_costs_the_sum_of_them() -> None:
    """vLLM's figures in the middle of a stream are those of one choice."""
    slot = Slot(Admission(1, 1, 1), None, Load())
    meter = Meter(slot, {"stream": True, "n": 2, "prompt": ["a", "b"]})
    for index, prompt_tokens, tokens in ((0, 5, 1), (1, 5, 3), (2, 7, 2), (0, 5, 4)):
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": 0}
        meter({"choices": [{"index": index}], "usage": usage})
    assert slot.tokens == 5 + 7 + 4 + 3 + 2
    meter({"choices": [], "usage": {"total_tokens": 40}})
    assert slot.tokens == 40


def test_over_http(tmp_path: Path, tiny_target: Path) -> None:
    made = draftsmith(
        tmp_path, "keys", "create", "a", "--requests-per-minute", "9", "--tokens-per-minute", "20"
    )
    free = KeyStore(Home(tmp_path).keys).create("free", ["infer"])
    with serving(tmp_path, tiny_target, answering(answer), served_model_name="m") as url:
        client = strict_client(url, api_key=made.stdout.strip())
        ask: dict[str, Any] = {"model": "m", "prompt": "x"}
        whole = client.completions.with_raw_response.create(**ask)
        assert whole.headers["x-ratelimit-limit-requests"] == "9"
        assert whole.headers["x-ratelimit-remaining-requests"] == "8"
        assert whole.headers["x-ratelimit-limit-tokens"] == "20"
        assert whole.headers["x-ratelimit-remaining-tokens"] == "14", "its own 6 are off"

        plain = list(client.completions.create(**ask, stream=True))
        assert [one.choices[0].text for one in plain] == ["a", "b"]
        assert [one.usage for one in plain] == [None, None], "the client asked for none"
        last = list(
            client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        )
        assert [one.usage and one.usage.total_tokens for one in last] == [None, None, 6]
        left = client.completions.with_raw_response.create(**ask)
        # 20, of which four answers took 6 each, and what came back meanwhile.
        assert left.headers["x-ratelimit-remaining-tokens"] == "0"
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**ask)
        assert "20 tokens a minute" in refused.value.message
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
        other = strict_client(url, api_key=free).completions.with_raw_response.create(**ask)
        assert not [name for name in other.headers if name.startswith("x-ratelimit")]


def test_a_stream_that_its_client_leaves_is_paid_for(tmp_path: Path, tiny_target: Path) -> None:
    secret = KeyStore(Home(tmp_path).ensure().keys).create("a", ["infer"], tokens_per_minute=100)
    with serving(tmp_path, tiny_target, answering(answer), served_model_name="m") as url:
        client = strict_client(url, api_key=secret)
        for _ in range(3):
            stream = client.completions.create(model="m", prompt="x", stream=True)
            next(iter(stream))
            stream.close()
        after = client.completions.with_raw_response.create(model="m", prompt="x")
        assert 70 <= int(after.headers["x-ratelimit-remaining-tokens"]) <= 82
