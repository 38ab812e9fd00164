"""Answers that pass through the gateway and are kept, or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from draftsmith.distill.prompts import load_prompts
from draftsmith.server.traffic.log import TrafficLog
from draftsmith.server.traffic.record import Record
from tests.cli.commands import draftsmith, one_sentence
from tests.server.stub import answering, completion, events, serving, strict_client
from tests.tiny import make_target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target") / "target")


def kept(home: Path) -> list[Record]:
    return list(TrafficLog(home / "traffic", max_bytes=0, max_age_days=0).read())


def chat_event(content: str | None, finish_reason: str | None = None) -> bytes:
    delta = {"role": "assistant"} if content is None else {"content": content}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "target"}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"


async def answer(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    assert not {"store", "metadata"} & body.keys(), "these are not the engine's business"
    if request.url.path.endswith("/chat/completions"):
        first, second = chat_event("Hel"), chat_event("lo")
        cut = first[: len(first) // 2], first[len(first) // 2 :] + second
        return events(chat_event(None), *cut, chat_event("!", "stop"), b"data: [DONE]\n\n")
    return httpx.Response(200, json=completion("An answer."))


def ask(url: str, **options: Any) -> None:
    client = strict_client(url)
    client.completions.create(model="target", prompt="A question?", extra_body=options)


def test_what_is_asked_to_be_kept_is_kept(target: Path, tmp_path: Path) -> None:
    with serving(tmp_path, target, answering(answer), traffic="asked") as url:
        ask(url)
        ask(url, store=False)
        assert kept(tmp_path) == []
        ask(url, store=True, metadata={"team": "support"})
        messages: Any = [{"role": "user", "content": "Greet."}]
        stream = strict_client(url).chat.completions.create(
            model="target", messages=messages, stream=True, store=True
        )
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    whole, streamed = kept(tmp_path)
    assert (whole.prompt, whole.response) == ("A question?", "An answer.")
    assert whole.metadata == {"team": "support"}
    assert streamed.response == said == "Hello!"
    assert streamed.messages == messages


def test_all_but_what_is_not_to_be_kept(target: Path, tmp_path: Path) -> None:
    with serving(tmp_path, target, answering(answer), traffic="all") as url:
        ask(url)
        ask(url, store=False)
        ask(url, n=2)  # two answers to one question: neither is the answer
    assert len(kept(tmp_path)) == 1


def test_a_server_that_keeps_nothing_says_so(target: Path, tmp_path: Path) -> None:
    with serving(tmp_path, target, answering(answer)) as url:
        ask(url)
        ask(url, store=False, metadata={"a": "b"})
        with pytest.raises(openai.BadRequestError) as caught:
            ask(url, store=True)
        assert caught.value.param == "store"
        with pytest.raises(openai.BadRequestError) as caught:
            ask(url, metadata={str(number): "" for number in range(17)})
        assert caught.value.param == "metadata"
    assert not (tmp_path / "traffic").exists()


def test_exported_answers_are_prompts_of_a_recipe(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path / "traffic", max_bytes=1 << 20, max_age_days=30)
    common: dict[str, Any] = {"model": "m", "finish_reason": "stop"}
    for number, response in enumerate(["old", "new"]):
        log.append(Record(created_at=number, prompt="Q", response=response, **common))
    messages = [{"role": "user", "content": "Hello"}]
    log.append(
        Record(created_at=2, messages=messages, response="Hi", metadata={"a": "1"}, **common)
    )
    output = tmp_path / "prompts.jsonl"
    result = draftsmith(tmp_path, "traffic", "export", output)
    assert result.stdout.startswith("2 prompts in")
    first, second = load_prompts(str(output))
    assert first.response == "new"
    assert second.response == "Hi"
    draftsmith(tmp_path, "traffic", "export", output, "--metadata", "a=1")
    assert [prompt.response for prompt in load_prompts(str(output))] == ["Hi"]
    assert "3 answers" in draftsmith(tmp_path, "traffic", "stats").stdout
    for wrong in (["--since", "soon"], ["--metadata", "a"], ["--model", "x"]):
        assert one_sentence(draftsmith(tmp_path, "traffic", "export", output, *wrong))


def test_strict_streams_are_kept_whole_and_echoes_not_at_all(target: Path, tmp_path: Path) -> None:
    """The stock client's strict types get a reason in every chunk: the first is not the last."""

    async def pieces(request: httpx.Request) -> httpx.Response:
        chunks = [completion("An "), completion("answer.")]
        chunks[0]["choices"][0]["finish_reason"] = None
        said = (b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks)
        return events(*said, b"data: [DONE]\n\n")

    with serving(tmp_path, target, answering(pieces), traffic="asked") as url:
        client = strict_client(url)
        for extra in ({}, {"echo": True}):
            body: Any = {"store": True, **extra}
            list(
                client.completions.create(model="target", prompt="A?", stream=True, extra_body=body)
            )
    assert [one.response for one in kept(tmp_path)] == ["An answer."]
