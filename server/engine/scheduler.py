"""The scheduler inside vLLM's engine core: how much is drafted, for whom, at each step.

Loaded by `--scheduler-cls`. Where a request names its own lookahead (the gateway puts it into
`vllm_xargs`), that counts; for all others a controller chooses from measured goodput. vLLM drafts
for the whole batch at once, so a request's proposals are cut to its own lookahead before they are
verified; where every request of a step asks for less, less is drafted, and where none asks for
any, the draft rests (`draft_reading.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from draftsmith.server.engine.command import (
    LOOKAHEAD_ARGUMENT,
    LOOKAHEAD_CONTROL_VARIABLE,
    PROFILE_VARIABLE,
    REPORT_VARIABLE,
)
from draftsmith.server.speculation.controller import LookaheadController
from draftsmith.server.speculation.observer import StepObserver
from draftsmith.server.speculation.profile import read_profile


def speculation_scheduler(vllm_config: Any, **options: Any) -> Scheduler:
    """What vLLM calls in place of a class: the variant that fits its way of scheduling."""
    overlapped = vllm_config.scheduler_config.async_scheduling
    variant = OverlappedSpeculationScheduler if overlapped else SpeculationScheduler
    return variant(vllm_config=vllm_config, **options)


class _Steering(Scheduler):
    """What both variants do: ask the controller before a step, tell it what came of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _forbid_padding(self)
        self.chosen_lookahead = self.drafted = self.num_spec_tokens
        self._observer = _observer(self.num_spec_tokens)
        self._names: list[str] = []

    def schedule(self, *args: Any, **options: Any) -> Any:
        self._observer.step_begins(busy=any(name in self.requests for name in self._names))
        return super().schedule(*args, **options)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        tokens = scheduler_output.num_scheduled_tokens
        proposals = scheduler_output.scheduled_spec_decode_tokens
        verified = {name: len(proposals.get(name, ())) for name in tokens}
        super()._update_after_schedule(scheduler_output)
        self._names = list(tokens)
        # Requests in the middle of their prompts draft nothing, and say nothing about load.
        going_on = [name for name in tokens if not self.requests[name].is_prefill_chunk]
        self.chosen_lookahead = self._observer.controller.choose(len(going_on))
        self.drafted = longest_lookahead(self, going_on)
        decoding = all(tokens[name] == 1 + verified[name] for name in tokens)
        self._observer.step_scheduled(verified.values(), self.drafted, decoding=decoding)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        self._observer.step_ended(_outcomes(scheduler_output, model_runner_output))
        return super().update_from_output(scheduler_output, model_runner_output)

    def reset_prefix_cache(self, *args: Any, **options: Any) -> bool:
        """Called when other weights were loaded: what was accepted of the old ones is history."""
        self._observer.controller.forget_acceptance()
        return _forget_prefixes(self) or super().reset_prefix_cache(*args, **options)


class SpeculationScheduler(_Steering):
    """Steps one after the other: proposals are known before they are scheduled."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _fetch_only_what_was_drafted()

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        super().update_draft_token_ids(draft_token_ids)
        for name in draft_token_ids.req_ids:
            request = self.requests.get(name)
            if request is not None:
                request.spec_token_ids = request.spec_token_ids[: lookahead_of(self, request)]

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        super()._update_after_schedule(scheduler_output)
        scheduler_output.num_spec_tokens_to_schedule = self.drafted


class OverlappedSpeculationScheduler(_Steering, AsyncScheduler):
    """Steps overlap (GPU): placeholders are scheduled, the worker fills in the proposals.

    The draft always runs to its full length here, because the worker's CUDA graphs are
    captured for that length.
    """

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        super()._update_after_schedule(scheduler_output)
        for name in scheduler_output.num_scheduled_tokens:
            request = self.requests[name]
            # A slice, never in place: vLLM shares one list of placeholders.
            request.spec_token_ids = request.spec_token_ids[: lookahead_of(self, request)]


def lookahead_of(scheduler: Any, request: Any) -> int:
    """Proposals that `request` lets vLLM verify in a step: its own wish, or what was chosen."""
    parameters = request.sampling_params
    asked = ((parameters and parameters.extra_args) or {}).get(LOOKAHEAD_ARGUMENT)
    # The gateway has checked it; what comes past the gateway must not end the engine.
    wish: int = asked if isinstance(asked, int) else scheduler.chosen_lookahead
    return min(scheduler.num_spec_tokens, max(0, wish))


def longest_lookahead(scheduler: Any, names: Iterable[str]) -> int:
    """The longest lookahead among requests, which is what the draft has to run to."""
    asked = [lookahead_of(scheduler, scheduler.requests[name]) for name in names]
    return max(asked, default=0)


def _outcomes(scheduler_output: Any, model_runner_output: Any) -> Iterator[tuple[int, int]]:
    """(proposed, accepted) of each request that verified a proposal in this step."""
    sampled = model_runner_output.sampled_token_ids
    for name, proposal in scheduler_output.scheduled_spec_decode_tokens.items():
        tokens = sampled[model_runner_output.req_id_to_index[name]] if sampled else ()
        if proposal and tokens:
            yield len(proposal), len(tokens) - 1


def _observer(max_lookahead: int) -> StepObserver:
    adaptive = os.environ.get(LOOKAHEAD_CONTROL_VARIABLE) == "adaptive"
    controller = LookaheadController(max_lookahead, adaptive=adaptive)
    if profile := os.environ.get(PROFILE_VARIABLE):
        known = read_profile(Path(profile))
        plain = {size: {0: one} for size, one in known.plain_seconds.items()}
        controller.restore(known.seconds if max_lookahead else plain, known.acceptance)
    folder = os.environ.get(REPORT_VARIABLE)
    return StepObserver(controller, Path(folder) if folder else None)


def _forbid_padding(scheduler: Any) -> None:
    """Keep vLLM from giving a request whose prompt is cached K proposals that do not exist.

    They would count as rejected, also for a request that wants none. vLLM leaves the padding
    out when its lookahead follows a table; this one holds the same K for every batch.
    """
    if scheduler.dynamic_sd_lookup is None:
        sizes = scheduler.scheduler_config.max_num_seqs + 1
        scheduler.dynamic_sd_lookup = [scheduler.num_spec_tokens] * sizes


def _fetch_only_what_was_drafted() -> None:
    """vLLM asks its worker for proposals after each step, a round trip: not where it made none."""
    from vllm.v1.engine.core import EngineCore

    fetch = EngineCore.post_step
    if hasattr(fetch, "_draftsmith"):
        return

    def fetch_proposals(self: Any, model_executed: bool) -> None:
        fetch(self, model_executed and getattr(self.scheduler, "drafted", None) != 0)

    fetch_proposals._draftsmith = True  # type: ignore[attr-defined]
    EngineCore.post_step = fetch_proposals


def _forget_prefixes(scheduler: Any) -> bool:
    """While requests run, forget what could be reused and let them keep their own blocks.

    vLLM either does nothing then or computes all running requests again. After a new draft was
    loaded only later requests matter: a long shared prompt would mislead it for ever.
    """
    if not scheduler.running:
        return False
    pool = scheduler.kv_cache_manager.block_pool
    pool.evict_blocks(set(range(len(pool.blocks))))
    return True
