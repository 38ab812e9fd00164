"""Speculation as each request wants it, on an engine whose draft is always right (K = 3)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.server.processes import MODEL, GatewayProcess

K = 3
PROMPT = [7, 20, 31, 45, 9, 77, 12, 150]


def complete(gateway: GatewayProcess, speculation: object = None, **options: Any) -> Any:
    values: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 41, "temperature": 0} | options
    extra: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}
    extra |= {} if speculation is None else {"speculation": speculation}
    create: Any = gateway.openai().completions.create
    return create(model=MODEL, extra_body=extra, **values)


def figures(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.metrics["speculative_decoding"]
    return found


@pytest.mark.parametrize("off", [{"enabled": False}, {"num_tokens": 0}], ids=str)
def test_off_means_no_draft_and_the_same_answer(gateway: GatewayProcess, off: object) -> None:
    with_draft, without = complete(gateway), complete(gateway, off)
    assert without.choices[0].token_ids == with_draft.choices[0].token_ids
    assert figures(without)["num_draft_tokens"] == figures(without)["num_spec_steps"] == 0
    # One token with the prompt, then 4 of each target call.
    assert figures(with_draft)["num_spec_steps"] == 10
    assert figures(with_draft)["num_accepted_draft_tokens"] == 30


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_request_of_a_batch_has_its_own_lookahead(
    gateway: GatewayProcess, temperature: float
) -> None:
    """Side by side, again and again: every proposal must be met by its own probabilities."""
    wishes: list[Any] = [{"num_tokens": number} for number in range(K + 1)]
    wishes = [*wishes, None, {"enabled": True}] * 3
    with ThreadPoolExecutor(len(wishes)) as pool:
        answers = list(
            pool.map(
                lambda wish: complete(gateway, wish, temperature=temperature, max_tokens=49), wishes
            )
        )
    for wish, answer in zip(wishes, answers, strict=True):
        lookahead = (wish or {}).get("num_tokens", K)
        got = figures(answer)
        assert answer.usage.completion_tokens == 49
        assert got["mean_acceptance_length"] == pytest.approx(1 + lookahead, rel=0.02)
        steps = 48 / (1 + lookahead) if lookahead else 0
        assert got["num_spec_steps"] == pytest.approx(steps, abs=1)
        assert got["num_draft_tokens"] <= (steps + 1) * lookahead


def test_a_cached_prompt_gets_no_proposals_that_do_not_exist(gateway: GatewayProcess) -> None:
    """vLLM fills such a request up with K proposals, all of them rejected."""
    prompt = PROMPT * 4 + [5]  # whole blocks and one token
    complete(gateway, prompt=prompt)
    with ThreadPoolExecutor(2) as pool:
        busy = pool.submit(complete, gateway, None, max_tokens=400)
        again = complete(gateway, {"num_tokens": 0}, prompt=prompt)
        full = complete(gateway, prompt=prompt)
        busy.result()
    assert figures(again)["num_draft_tokens"] == 0
    assert figures(full)["draft_acceptance_rate"] == 1.0


def test_figures_in_headers_and_in_the_last_chunk(gateway: GatewayProcess) -> None:
    client = gateway.strict()
    chat: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Go."}]}
    chat |= {"max_tokens": 24, "temperature": 0, "extra_body": {"ignore_eos": True}}
    raw = client.chat.completions.with_raw_response.create(**chat)
    said = figures(raw.parse())
    assert float(raw.headers["x-draft-acceptance-rate"]) == said["draft_acceptance_rate"] == 1.0
    assert float(raw.headers["x-tokens-per-target-call"]) == pytest.approx(1 + K)
    assert raw.headers["x-draftsmith-engine"] == "speculative"

    usage: Any = {"include_usage": True}
    for stream in (
        client.chat.completions.create(**chat, stream=True, stream_options=usage),
        complete(gateway, stream=True, stream_options=usage),
    ):
        chunks = list(stream)
        assert figures(chunks[-1])["draft_acceptance_rate"] == 1.0
        assert all(getattr(one, "metrics", None) is None for one in chunks[:-1])


def test_responses_take_it_too(gateway: GatewayProcess) -> None:
    """They report no figures, so the engine's own counters tell."""

    def drafted() -> float:
        lines = gateway.get("/metrics").text.splitlines()
        name = "vllm:spec_decode_num_draft_tokens_total{"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = drafted()
    for body in ({"speculation": {"enabled": False}}, {}):
        made = drafted()
        gateway.strict().responses.create(
            model=MODEL, input="Go on.", max_output_tokens=12, temperature=0, extra_body=body
        )
        assert (drafted() > made) == (body == {})
    assert drafted() > before


def test_more_than_the_server_drafts(gateway: GatewayProcess) -> None:
    with pytest.raises(openai.BadRequestError, match="above 3") as caught:
        complete(gateway, {"num_tokens": K + 1})
    assert caught.value.param == "speculation.num_tokens"
