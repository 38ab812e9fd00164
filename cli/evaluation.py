"""Measure drafts against their target: exact acceptance offline, and speed in running engines."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from draftsmith.cli.engines import KV_CACHE_BYTES, running_engines
from draftsmith.distill.progress import track
from draftsmith.distill.sections import EvaluateSection
from draftsmith.server.engine.command import EngineConfig
from draftsmith.server.engine.measure import EngineMeasurement, measure
from draftsmith.server.home import Home
from draftsmith.server.pair import check_pair

PLAIN = "plain"
"""Name of the engine that serves the target alone."""
MAX_LOOKAHEAD = 16
"""The report has exact figures for all lookaheads up to this."""


@dataclass(frozen=True)
class Workload:
    """What is asked of the engines: encoded prompts and sampling as in serving."""

    prompts: Sequence[Sequence[int]]
    max_tokens: int
    temperature: float
    top_p: float
    num_speculative_tokens: int


class DraftReport(BaseModel):
    """One draft. `acceptance` is exact, from one pass over the target's own answers (its fields:
    `distill.evaluate.Acceptance`); all else was measured in vLLM."""

    acceptance: dict[str, Any]
    block_efficiency: float
    acceptance_per_position: list[float]
    tokens_per_second: float
    speedup: float
    """Median over prompts of this engine's tokens a second by the plain engine's."""
    same_answers: float
    """Share of answers equal to the plain engine's, token by token."""
    gaps_at_first_difference: list[float]
    """For each other answer, how far the target's own log-probabilities of the two tokens lie
    apart, in nats. At temperature 0 a difference is rounding only if this is tiny."""


class Report(BaseModel):
    """All drafts of one evaluation, beside the target alone."""

    target: str
    temperature: float
    top_p: float
    max_tokens: int
    num_speculative_tokens: int
    prompts: int
    plain_tokens_per_second: float
    drafts: dict[str, DraftReport]


def evaluate_drafts(
    target: Path,
    drafts: Mapping[str, Path],
    workload: Workload,
    home: Home,
    *,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Run target alone and target with each draft side by side on the same prompts.

    Raises:
        ValueError: a pair does not match, or an engine cannot start.
    """
    for draft in drafts.values():
        check_pair(target, draft)
    on_stage(f"starting {len(drafts) + 1} engines")
    with (
        running_engines(_configs(target, drafts, workload), home, "evaluate") as engines,
        track("measuring", len(workload.prompts) * len(engines)) as bar,
    ):
        measured = measure(
            engines,
            workload.prompts,
            max_tokens=workload.max_tokens,
            temperature=workload.temperature,
            top_p=workload.top_p,
            progress=lambda done, total: bar.advance(done - bar.done),
        )
    on_stage("exact acceptance")
    return Report(
        target=target.name,
        temperature=workload.temperature,
        top_p=workload.top_p,
        max_tokens=workload.max_tokens,
        num_speculative_tokens=workload.num_speculative_tokens,
        prompts=len(workload.prompts),
        plain_tokens_per_second=_tokens_per_second(measured[PLAIN]),
        drafts=_draft_reports(target, drafts, workload, measured),
    )


def _configs(
    target: Path, drafts: Mapping[str, Path], workload: Workload
) -> dict[str, EngineConfig]:
    """The target alone, and with each draft."""
    longest = max(len(prompt) for prompt in workload.prompts)
    alone = EngineConfig(
        target=target,
        num_speculative_tokens=workload.num_speculative_tokens,
        max_model_len=longest + workload.max_tokens + workload.num_speculative_tokens + 1,
        max_num_seqs=8,
        kv_cache_bytes=KV_CACHE_BYTES,
    )
    return {PLAIN: alone} | {name: replace(alone, draft=one) for name, one in drafts.items()}


def _draft_reports(
    target: Path,
    drafts: Mapping[str, Path],
    workload: Workload,
    measured: Mapping[str, EngineMeasurement],
) -> dict[str, DraftReport]:
    """Exact acceptance on the answers that the target alone just gave, beside what was measured."""
    # Imported here: the command line must answer --help without waiting for torch.
    from draftsmith.distill.offline import OfflineTarget

    plain = measured[PLAIN]
    answers = [completion.token_ids for completion in plain.completions]
    offline = OfflineTarget.load(target, workload.prompts, answers)
    section = EvaluateSection(
        temperature=workload.temperature,
        top_p=workload.top_p,
        gamma_max=MAX_LOOKAHEAD,
        num_speculative_tokens=min(workload.num_speculative_tokens, MAX_LOOKAHEAD),
    )
    reports = {}
    for name, acceptance in offline.acceptance(drafts, section).items():
        ours = measured[name]
        assert ours.acceptance is not None
        assert ours.block_efficiency is not None
        others = [completion.token_ids for completion in ours.completions]
        reports[name] = DraftReport(
            acceptance=acceptance.model_dump(mode="json"),
            block_efficiency=ours.block_efficiency,
            acceptance_per_position=ours.acceptance.per_position,
            tokens_per_second=_tokens_per_second(ours),
            speedup=_speedup(ours, plain),
            same_answers=sum(map(operator.eq, others, answers)) / len(answers),
            gaps_at_first_difference=offline.gaps_at_first_difference(others),
        )
    return reports


def _speedup(ours: EngineMeasurement, plain: EngineMeasurement) -> float:
    """Median over prompts of the ratio of tokens a second."""
    pairs = zip(ours.completions, plain.completions, strict=True)
    return statistics.median(
        (len(one.token_ids) / one.seconds) / (len(other.token_ids) / other.seconds)
        for one, other in pairs
    )


def _tokens_per_second(measured: EngineMeasurement) -> float:
    """Median over prompts, as the speed-up is: one disturbed prompt must not decide."""
    return statistics.median(len(one.token_ids) / one.seconds for one in measured.completions)
