"""A second engine without the draft takes what speculation cannot serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import openai
import pytest

from draftsmith.server.engine.interface import Engine
from draftsmith.server.openai.routes import _engine_for
from draftsmith.server.openai.schemas import CompletionRequest
from draftsmith.server.served import Served
from draftsmith.server.settings import Settings, load_settings
from tests.server.conftest import Fleet, Models
from tests.server.processes import MODEL, GatewayProcess
from tests.server.stub import StubEngine, answering, completion, serving, strict_client

PROMPT = [7, 20, 31]


@pytest.fixture
def seen() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def url(fleet: Fleet, models: Models, tmp_path: Path, seen: list[dict[str, Any]]) -> Iterator[str]:
    """A gateway whose plain engine is real; what goes to the other one ends in `seen`."""

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json=completion())

    transport = httpx.AsyncHTTPTransport(uds=str(fleet.plain.socket))
    plain = StubEngine(httpx.AsyncClient(transport=transport, base_url="http://engine"))
    settings: dict[str, Any] = {"draft": models.partial, "plain_engine": True}
    with serving(
        tmp_path, models.target, answering(answer), plain, served_model_name="target", **settings
    ) as where:
        yield where


def complete(url: str, extra: dict[str, Any], **options: Any) -> tuple[Any, str]:
    values = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0} | options
    extra = {"return_token_ids": True, "ignore_eos": True} | extra
    create: Any = strict_client(url).completions.with_raw_response.create
    raw = create(model="target", extra_body=extra, **values)
    return raw.parse(), raw.headers["x-draftsmith-engine"]


def test_what_vllm_refuses_beside_a_draft(url: str, seen: list[dict[str, Any]]) -> None:
    biased, engine = complete(url, {}, logit_bias={"65": 100})
    assert engine == "plain"
    assert biased.choices[0].token_ids == [65] * 6, "the bias must have its effect"
    likeliest, engine = complete(url, {"min_p": 1.0}, temperature=2.0)
    assert engine == "plain"
    greedy, _ = complete(url, {"speculation": {"enabled": False}})
    assert likeliest.choices[0].token_ids == greedy.choices[0].token_ids
    assert seen == []


def test_the_rest_goes_to_the_engine_with_the_draft(url: str, seen: list[dict[str, Any]]) -> None:
    assert complete(url, {})[1] == "speculative"
    assert complete(url, {"min_p": 0}, logit_bias={})[1] == "speculative"
    assert complete(url, {"speculation": {"num_tokens": 2}})[1] == "speculative"
    assert len(seen) == 3
    assert seen[2]["vllm_xargs"] == {"draftsmith_lookahead": 2}
    assert not any("speculation" in body for body in seen)


def test_wishes_that_exclude_each_other(url: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(url, {"speculation": {"enabled": True}}, logit_bias={"65": 1})
    assert caught.value.code == "unsupported_with_speculation"
    assert caught.value.param == "logit_bias"


def test_without_any_draft(models: Models, tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json=completion())

    with serving(tmp_path, models.target, answering(answer)) as url:
        assert complete(url, {}, logit_bias={"65": 1})[1] == "plain"
        assert complete(url, {"speculation": {"enabled": False}})[1] == "plain"
        with pytest.raises(openai.BadRequestError, match="none is served"):
            complete(url, {"speculation": {"enabled": True}})


def test_settings(models: Models, tmp_path: Path) -> None:
    pair: dict[str, Any] = {"target": models.target, "draft": models.partial, "home": tmp_path}
    assert load_settings(**pair).plain_engine_config() is None
    config = load_settings(**pair, plain_engine=True).plain_engine_config()
    assert config is not None
    assert (config.target, config.draft) == (models.target, None)
    with pytest.raises(ValueError, match="plain_engine needs a draft"):
        load_settings(target=models.target, home=tmp_path, plain_engine=True)
    with pytest.raises(ValueError, match="each of two engines"):
        load_settings(**pair, plain_engine=True, gpu_memory_fraction=0.8)


@pytest.mark.slow
def test_two_engines_of_one_server(models: Models, tmp_path: Path) -> None:
    server = GatewayProcess(tmp_path, models.target, models.target, plain_engine="true")
    try:
        server.wait_ready()
        client = server.strict()
        biased = client.completions.with_raw_response.create(
            model=MODEL, prompt=PROMPT, max_tokens=4, logit_bias={"65": 100}, temperature=0
        )
        assert biased.headers["x-draftsmith-engine"] == "plain"
        assert biased.parse().choices[0].text == biased.parse().choices[0].text[0] * 4
        usual = client.completions.with_raw_response.create(model=MODEL, prompt=PROMPT)
        assert usual.headers["x-draftsmith-engine"] == "speculative"
        assert "vllm:generation_tokens_total" in server.get("/metrics/plain").text
        assert "spec_decode_num_drafts" not in server.get("/metrics/plain").text
    finally:
        server.stop()
    assert server.process.returncode == 0


def test_an_answer_without_speculation_waits_for_no_plain_engine_that_is_away() -> None:
    """The engine with the draft gives the same with lookahead 0, but not with a bias."""
    settings = cast(Settings, SimpleNamespace(speculates=True, num_speculative_tokens=3))
    engine, plain = StubEngine(httpx.AsyncClient()), StubEngine(None)
    model = Served("m", engine, settings, plain)

    def chosen(**fields: Any) -> Engine:
        body = {"model": "m", "prompt": "a", "speculation": {"enabled": False}, **fields}
        return _engine_for(model, CompletionRequest.model_validate(body))

    assert chosen() is engine
    assert chosen(logit_bias={"65": 1}) is plain
    plain.client = engine.client
    assert chosen() is plain
