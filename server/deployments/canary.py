"""A few prompts that a draft must do well on before it may stay.

They go to the live engine beside its traffic, greedily. vLLM counts proposals for each request,
so that other requests do not blur the figures.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from draftsmith.server.deployments.event import CanaryFigures
from draftsmith.server.engine.command import LOOKAHEAD_ARGUMENT

MAX_TOKENS = 64
_AT_A_TIME = 4
_TIMEOUT_S = 300.0
_MAX_PROMPTS = 64
_BUILTIN = (
    "Explain in a few sentences how a bicycle stays upright.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "List five things to check before a long journey by car.",
    "Tom has 12 apples, gives away a third and buys 5 more. How many has he now? Show the steps.",
    "Summarise why the sky is blue for a child of ten.",
    "Write a short and polite email that moves a meeting to Thursday.",
    "What is the difference between a list and a tuple in Python?",
    "Describe how to make a vegetable soup, step by step.",
)


class CanaryFailed(ValueError):
    """The engine did not answer the canary prompts; says how."""


def load_canary(file: Path | None) -> list[dict[str, Any]]:
    """The part of a request that asks: {"prompt": text} or {"messages": [...]}, a line each.

    Raises:
        ValueError: names the line that is neither, or the file that holds none.
    """
    if file is None:
        return [{"messages": [{"role": "user", "content": text}]} for text in _BUILTIN]
    questions: list[dict[str, Any]] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"canary_prompts: {file} cannot be read ({error.strerror}).") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            questions.append(_question(line, f"canary_prompts: {file}, line {number}"))
    if not questions:
        raise ValueError(f"canary_prompts: {file} holds no prompt.")
    return questions[:_MAX_PROMPTS]


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        raise ValueError(f"{where} is not JSON.") from None
    for key, kind in (("prompt", str), ("messages", list)):
        if isinstance(content, dict) and isinstance(content.get(key), kind) and content[key]:
            return {key: content[key]}
    raise ValueError(f'{where} has neither a "prompt" nor "messages".')


async def run_canary(
    client: httpx.AsyncClient, model: str, lookahead: int, questions: Sequence[dict[str, Any]]
) -> tuple[CanaryFigures, list[str]]:
    """Ask the engine of `client` all `questions`; returns the figures and the answers' texts.

    Args:
        lookahead: tokens drafted a step.

    Raises:
        CanaryFailed: an answer did not come, or no token was proposed.
    """
    places = asyncio.Semaphore(_AT_A_TIME)
    # States of the draft that served before lie in the cache; a salt of its own avoids them.
    common = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0, "seed": 0}
    common |= {"cache_salt": uuid.uuid4().hex}
    # Figures of two drafts compare only at one lookahead, whatever pays at the moment.
    common["vllm_xargs"] = {LOOKAHEAD_ARGUMENT: lookahead}

    async def ask(question: dict[str, Any]) -> dict[str, Any]:
        route = "/v1/chat/completions" if "messages" in question else "/v1/completions"
        async with places:
            answer = await client.post(route, json=common | question, timeout=_TIMEOUT_S)
        if answer.status_code != 200:
            raise CanaryFailed(f"a canary prompt was answered with status {answer.status_code}")
        said: dict[str, Any] = answer.json()
        return said

    began = time.perf_counter()
    try:
        answers = await asyncio.gather(*map(ask, questions))
    except httpx.HTTPError as error:
        raise CanaryFailed("the engine went away during the canary prompts") from error
    seconds = time.perf_counter() - began
    # An answer of a single token reports nothing.
    counts = [one["metrics"]["speculative_decoding"] for one in answers if one.get("metrics")]
    drafts = sum(one["num_spec_steps"] for one in counts)
    if not drafts:
        raise CanaryFailed("no token was proposed for the canary prompts")
    tokens = sum(one["usage"]["completion_tokens"] for one in answers)
    accepted = sum(one["num_accepted_draft_tokens"] for one in counts)
    figures = CanaryFigures(
        prompts=len(answers),
        tokens=tokens,
        drafts=drafts,
        proposed=sum(one["num_draft_tokens"] for one in counts),
        accepted=accepted,
        block_efficiency=1 + accepted / drafts,
        tokens_per_second=tokens / seconds,
    )
    return figures, [_text(one["choices"][0]) for one in answers]


def _text(choice: dict[str, Any]) -> str:
    return str(choice["text"] if "text" in choice else choice["message"]["content"])
