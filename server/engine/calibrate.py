"""Step times of running engines, for each number of requests and each lookahead.

The clock is the scheduler's own, inside the engine; from here come only requests of the right
number and kind. Runs of all kinds take turns, so that a machine that slows down spoils none alone.

Legend: B requests that decode, K lookahead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from draftsmith.server.engine.command import LOOKAHEAD_ARGUMENT
from draftsmith.server.engine.measure import taking_turns
from draftsmith.server.engine.process import EngineError, EngineProcess
from draftsmith.server.speculation.report import StepReport
from draftsmith.server.speculation.step_times import bucket_of

_STEPS_A_RUN = 15
"""That each stream of a run takes at least; the first few belong to prompts."""
_PATIENCE = 3
"""How many times as many a stream may go on for, until the last of them has begun."""


def calibrate(
    plain: EngineProcess,
    speculative: EngineProcess,
    prompts: Sequence[Sequence[int]],
    *,
    batch_sizes: Sequence[int],
    lookaheads: Sequence[int],
    temperature: float,
    rounds: int = 3,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[int, float], dict[int, dict[int, float]]]:
    """Median seconds of a step: (B -> plain, B -> K -> with a draft).

    Args:
        speculative: an engine with a fixed lookahead, at least the largest of `lookaheads`.
        batch_sizes: powers of two, since step times are kept by those.
        progress: gets 1 after each run; there are `rounds` x B x (1 + K) of them.

    Raises:
        ValueError: a batch size is no power of two.
        EngineError: an engine went away, or steps of one kind were too few to be timed.
    """
    for size in batch_sizes:
        if size < 1 or bucket_of(size) != size:
            raise ValueError(f"Batch sizes are powers of two: 1, 2, 4, ..., not {size}.")
    runs: list[tuple[EngineProcess, int]] = [(plain, 0), *((speculative, k) for k in lookaheads)]
    with taking_turns([plain, speculative]) as turn:
        for number in range(rounds):
            for size in batch_sizes:
                for engine, lookahead in runs if number % 2 == 0 else reversed(runs):
                    with turn(engine):
                        _run(engine, prompts, size, lookahead, temperature)
                    progress(1)
    without, with_draft = (_report(engine, prompts[0]) for engine in (plain, speculative))
    return (
        {size: _seconds(without, size, 0) for size in batch_sizes},
        {size: {k: _seconds(with_draft, size, k) for k in lookaheads} for size in batch_sizes},
    )


def _run(
    engine: EngineProcess,
    prompts: Sequence[Sequence[int]],
    size: int,
    lookahead: int,
    temperature: float,
) -> None:
    """`size` streams side by side, all closed once each has made its steps: no thin tail."""
    tokens = _PATIENCE * _STEPS_A_RUN * (1 + lookahead)
    steps = [0] * size
    over = threading.Event()

    def stream(index: int) -> None:
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(prompts[index % len(prompts)]),
            "max_tokens": tokens,
            "temperature": temperature,
            "ignore_eos": True,
            "stream": True,
            "vllm_xargs": {LOOKAHEAD_ARGUMENT: lookahead},
        }
        with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise EngineError(f"The engine refused a prompt: {response.read()[:300]!r}")
            for line in response.iter_lines():
                steps[index] += line.startswith("data: ")
                if min(steps) >= _STEPS_A_RUN:
                    over.set()
                if over.is_set():
                    return
        over.set()

    with engine.client(timeout_s=600.0) as client, ThreadPoolExecutor(size) as pool:
        try:
            model = client.get("/v1/models").json()["data"][0]["id"]
            list(pool.map(stream, range(size)))
        except httpx.TransportError as error:
            raise EngineError("The engine went away while its steps were timed.") from error


def _report(engine: EngineProcess, prompt: Sequence[int]) -> StepReport:
    """The report after everything that ran: it is written as steps begin, once a second."""
    time.sleep(1.1)
    _run(engine, [prompt], 1, 0, 0.0)
    report = engine.step_report()
    assert report is not None, "steps were made, so there is a report"
    return report


def _seconds(report: StepReport, size: int, lookahead: int) -> float:
    seconds = report.seconds.get(size, {}).get(lookahead)
    if seconds is None:
        raise EngineError(
            f"No step of {size} requests with lookahead {lookahead} could be timed: allow the "
            "engine more requests at a time, profile smaller batches, or try again when the "
            "machine is less busy."
        )
    return seconds
