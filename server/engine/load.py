"""Engines under load: the same prompts, several at a time, engines taking turns.

At each concurrency every engine answers the same prompts, one engine after the other while the
others are stopped, in an order that alternates from round to round: a machine that slows down
slows all of them alike. What is compared are ratios inside a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from draftsmith.server.engine.measure import Completion, Probe, taking_turns
from draftsmith.server.engine.process import EngineProcess


class LoadResult(BaseModel):
    """One engine at one concurrency. Seconds are wall-clock seconds of whole requests."""

    model_config = ConfigDict(frozen=True)

    tokens_per_second: float
    """Of all requests together; median over rounds."""
    speedup: float
    """Tokens a second by the baseline's in the same round; median over rounds."""
    speedup_range: tuple[float, float]
    """Lowest and highest of the rounds' speed-ups."""
    block_efficiency: float | None
    """tau in all rounds together, of target calls that verified a proposal; None without any."""
    seconds_p50: float
    seconds_p95: float
    answers: list[list[int]]
    """Token ids of each answer in the first round, in the order of the prompts."""


@dataclass
class _Rounds:
    tokens_per_second: list[float]
    seconds: list[float]
    answers: list[list[int]]
    drafts: int = 0
    accepted: int = 0


def measure_load(
    engines: Mapping[str, EngineProcess],
    prompts: Sequence[Sequence[int]],
    *,
    baseline: str,
    concurrency: int,
    rounds: int,
    sampling: Mapping[str, Any],
    own_sampling: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, LoadResult]:
    """Let every engine answer all prompts in each round, `concurrency` at a time.

    Args:
        prompts: token ids; the more of them beside `concurrency`, the less the tail weighs.
        baseline: name of the engine that the others are compared with.
        sampling: fields of `/v1/completions`, `max_tokens` among them.
        own_sampling: by name, what goes before `sampling`; two names may stand for one engine.
        progress: gets the number of answers since the last call.

    Raises:
        EngineError: an engine refused a prompt or went away.
    """
    assert baseline in engines, "the baseline is one of the engines"
    own = own_sampling or {}
    probes = {
        name: Probe(name, engine, {**sampling, **own.get(name, {})})
        for name, engine in engines.items()
    }
    found = {name: _Rounds([], [], []) for name in engines}
    try:
        with taking_turns(list(engines.values()) if len(engines) > 1 else []) as turn:
            for name, probe in probes.items():
                with turn(engines[name]):
                    probe.begin(prompts[0])
            for number in range(rounds):
                for name in list(engines) if number % 2 == 0 else reversed(list(engines)):
                    with turn(engines[name]):
                        began = time.perf_counter()
                        done = _answer_all(probes[name], prompts, concurrency)
                        took = time.perf_counter() - began
                    progress(len(done))
                    ours = found[name]
                    ours.tokens_per_second.append(sum(len(one.token_ids) for one in done) / took)
                    ours.seconds += [one.seconds for one in done]
                    ours.answers = ours.answers or [one.token_ids for one in done]
                    ours.drafts += sum(one.drafts for one in done)
                    ours.accepted += sum(one.accepted for one in done)
        return {name: _result(found[name], found[baseline].tokens_per_second) for name in engines}
    finally:
        for probe in probes.values():
            probe.client.close()


def _answer_all(
    probe: Probe, prompts: Sequence[Sequence[int]], concurrency: int
) -> list[Completion]:
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(probe.complete, prompts))


def _result(ours: _Rounds, baseline: Sequence[float]) -> LoadResult:
    ratios = [one / other for one, other in zip(ours.tokens_per_second, baseline, strict=True)]
    ordered = sorted(ours.seconds)
    return LoadResult(
        tokens_per_second=statistics.median(ours.tokens_per_second),
        speedup=statistics.median(ratios),
        speedup_range=(min(ratios), max(ratios)),
        block_efficiency=1 + ours.accepted / ours.drafts if ours.drafts else None,
        seconds_p50=statistics.median(ordered),
        seconds_p95=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        answers=ours.answers,
    )
