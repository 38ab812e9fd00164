"""The scheduler inside vLLM's engine core that lets each request choose its own lookahead.

Loaded by `--scheduler-cls`; the gateway names the lookahead in the request's `vllm_xargs`. vLLM
drafts for the whole batch at once, so a request's proposals are cut to its own lookahead before
they are verified; where every request of a step asks for less, less is drafted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from draftsmith.server.engine.command import LOOKAHEAD_ARGUMENT


def speculation_scheduler(vllm_config: Any, **options: Any) -> Scheduler:
    """What vLLM calls in place of a class: the variant that fits its way of scheduling."""
    overlapped = vllm_config.scheduler_config.async_scheduling
    variant = OverlappedSpeculationScheduler if overlapped else SpeculationScheduler
    return variant(vllm_config=vllm_config, **options)


class SpeculationScheduler(Scheduler):
    """Steps one after the other: proposals are known before they are scheduled."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _forbid_padding(self)

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        super().update_draft_token_ids(draft_token_ids)
        for name in draft_token_ids.req_ids:
            request = self.requests.get(name)
            if request is not None:
                request.spec_token_ids = request.spec_token_ids[: lookahead_of(self, request)]

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        scheduler_output.num_spec_tokens_to_schedule = _longest_lookahead(
            self, scheduler_output.num_scheduled_tokens
        )
        super()._update_after_schedule(scheduler_output)

    def reset_prefix_cache(self, *args: Any, **options: Any) -> bool:
        return _forget_prefixes(self) or super().reset_prefix_cache(*args, **options)


class OverlappedSpeculationScheduler(AsyncScheduler):
    """Steps overlap (GPU): placeholders are scheduled, the worker fills in the proposals.

    The draft always runs to its full length here, because the worker's CUDA graphs are
    captured for that length.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        _forbid_padding(self)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        super()._update_after_schedule(scheduler_output)
        for name in scheduler_output.num_scheduled_tokens:
            request = self.requests[name]
            # A slice, never in place: vLLM shares one list of placeholders.
            request.spec_token_ids = request.spec_token_ids[: lookahead_of(self, request)]

    def reset_prefix_cache(self, *args: Any, **options: Any) -> bool:
        return _forget_prefixes(self) or super().reset_prefix_cache(*args, **options)


def lookahead_of(scheduler: Any, request: Any) -> int:
    """Proposals that `request` lets vLLM verify in a step; K where it does not say."""
    parameters = request.sampling_params
    asked = ((parameters and parameters.extra_args) or {}).get(LOOKAHEAD_ARGUMENT)
    full: int = scheduler.num_spec_tokens
    # The gateway has checked it; what comes past the gateway must not end the engine.
    return min(full, max(0, asked)) if isinstance(asked, int) else full


def _longest_lookahead(scheduler: Any, names: Iterable[str]) -> int:
    asked = [lookahead_of(scheduler, scheduler.requests[name]) for name in names]
    return max(asked, default=scheduler.num_spec_tokens)


def _forbid_padding(scheduler: Any) -> None:
    """Keep vLLM from giving a request whose prompt is cached K proposals that do not exist.

    They would count as rejected, also for a request that wants none. vLLM leaves the padding
    out when its lookahead follows a table; this one holds the same K for every batch.
    """
    if scheduler.dynamic_sd_lookup is None:
        sizes = scheduler.scheduler_config.max_num_seqs + 1
        scheduler.dynamic_sd_lookup = [scheduler.num_spec_tokens] * sizes


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
