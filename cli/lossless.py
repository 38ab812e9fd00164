"""Does speculation leave the target's answers as they are? Greedy token by token, and sampled."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from draftsmith.cli.engines import running_engines
from draftsmith.cli.evaluation import PLAIN, answers_of, engine_configs
from draftsmith.cli.provenance import provenance
from draftsmith.cli.reports import Losslessness, LosslessReport
from draftsmith.cli.workload import Workload
from draftsmith.distill.progress import track
from draftsmith.server.engine.command import EngineConfig, SpeculationMethod, uses_cpu_wheel
from draftsmith.server.engine.measure import measure
from draftsmith.server.engine.sample import sample_first_tokens
from draftsmith.server.home import Home
from draftsmith.server.pair import check_pair

_AT_A_TIME = 64
_TIES = {"float32": 1e-3}
_HALF_TIE = 0.5
"""Widest gap between two log-probabilities, in nats, that rounding can turn around: logits near 20
are 0.125 apart in bfloat16, and all layers before them were rounded, too."""

Answers = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Bar:
    """What is let through. `samples`: of each prompt and engine."""

    tie: float
    significance: float
    samples: int
    tokens: int


def tie_of(target: Path) -> float:
    """The widest gap that rounding explains in the dtype that the target is served in."""
    served = EngineConfig(target).dtype_on(cpu=uses_cpu_wheel())
    if served != "auto":
        return _TIES.get(served, _HALF_TIE)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    dtype = config.get("dtype") or config.get("torch_dtype")
    return _TIES.get(str(dtype), _HALF_TIE)


def check_lossless(
    target: Path,
    drafts: Mapping[str, Path],
    methods: Sequence[SpeculationMethod],
    workload: Workload,
    bar: Bar,
    home: Home,
    *,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> LosslessReport:
    """Compare each engine that speculates with one that does not, on the same prompts.

    Args:
        workload: its temperature is that of the sampled answers.

    Raises:
        ValueError: a pair does not match, or an engine cannot start.
    """
    for draft in drafts.values():
        check_pair(target, draft)
    configs = {
        name: replace(config, max_num_seqs=_AT_A_TIME)
        for name, config in engine_configs(target, drafts, methods, workload).items()
    }
    on_stage(f"starting {len(configs)} engines")
    with running_engines(configs, home, "lossless") as engines:
        with track("greedy answers", len(workload.prompts) * len(engines)) as progress:
            measured = measure(
                engines,
                workload.prompts,
                max_tokens=workload.max_tokens,
                progress=lambda done, total: progress.advance(done - progress.done),
            )
        with track("samples", len(workload.prompts) * len(engines) * bar.samples) as progress:
            sampled = {
                name: sample_first_tokens(
                    engine,
                    workload.prompts,
                    samples=bar.samples,
                    tokens=bar.tokens,
                    temperature=workload.temperature,
                    top_p=workload.top_p,
                    progress=progress.advance,
                )
                for name, engine in engines.items()
            }
    on_stage("comparing")
    own, others = answers_of(measured.pop(PLAIN)), sampled.pop(PLAIN)
    found = {
        name: compare(
            target, workload.prompts, (own, answers_of(ours)), (others, sampled[name]), bar
        )
        for name, ours in measured.items()
    }
    return LosslessReport(
        target=target.name,
        temperature=workload.temperature,
        top_p=workload.top_p,
        max_tokens=workload.max_tokens,
        num_speculative_tokens=workload.num_speculative_tokens,
        prompts=len(workload.prompts),
        tie=bar.tie,
        significance=bar.significance,
        drafts=found,
        provenance=provenance({"target": target, **drafts}),
    )


def compare(
    target: Path,
    prompts: Answers,
    greedy: tuple[Answers, Answers],
    sampled: tuple[Sequence[Answers], Sequence[Answers]],
    bar: Bar,
) -> Losslessness:
    """Judge what two engines gave: the first without, the second with speculation.

    Args:
        greedy: answers to each prompt.
        sampled: first tokens of several answers to each prompt.
    """
    # Imported here: the command line must answer --help without waiting for torch.
    from draftsmith.distill.draws import draw_bits
    from draftsmith.distill.evaluate.two_sample import two_sample_test
    from draftsmith.distill.offline import OfflineTarget

    own, other = greedy
    same = list(map(operator.eq, own, other))
    gaps: list[float] = []
    if not all(same):
        gaps = OfflineTarget.load(target, prompts, own).gaps_at_first_difference(other)
    test = two_sample_test(list(zip(*sampled, strict=True)), seed=draw_bits("lossless"))
    # An answer that only goes on or ends elsewhere differs without a gap: no rounding does that.
    explained = len(gaps) == same.count(False) and max(gaps, default=0.0) <= bar.tie
    return Losslessness(
        same_answers=sum(same) / len(same),
        gaps_at_first_difference=gaps,
        greedy_passes=explained,
        statistic=test.statistic,
        p_value=test.p_value,
        samples=test.samples,
        tokens=test.tokens,
        sampled_passes=test.p_value >= bar.significance,
    )
