"""How often would the target accept the student's tokens? Exact, from text that the target wrote.

One pass of both models over held-out answers gives the three acceptance rates that differ in
practice and, by the recursion of `kernels.expected_calls`, the block efficiency of every
lookahead under each verification rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.batch import Batch, Example, make_batch, response_states
from draftsmith.distill.models import body
from draftsmith.distill.progress import track
from draftsmith.distill.sections import EvaluateSection
from draftsmith.distill.teacher import Teacher
from draftsmith.distill.vocabulary import DraftHead, DraftSignal, head_rows, restrict_signal
from draftsmith.kernels.acceptance import greedy_log_ratio_T, log_ratio_T, token_survival_TS
from draftsmith.kernels.block_rule import block_survival_TS
from draftsmith.kernels.expected_calls import expected_calls
from draftsmith.kernels.pair_stats import PairStats, pair_stats
from draftsmith.kernels.signal import HiddenSignal
from draftsmith.kernels.signal import Teacher as Signal


class Acceptance(BaseModel):
    """Agreement of a draft with its target on text sampled from the target.

    Means over tokens. Those that need a temperature are given for 1 where `temperature` is 0, as
    `alpha_temperature` says.

    alpha_overlap: sum min(p, q), acceptance with probabilistic drafting.
    alpha_greedy_draft: p(argmax q), acceptance when drafting greedily.
    alpha_argmax: share of target tokens that are the draft's argmax: acceptance at temperature 0.
    forward_kl, reverse_kl: KL(target || draft), over the tokens that the draft may propose, and
        KL(draft || target), in nats a token.
    tvd: total variation between target and draft, a token.
    entropy_target, entropy_draft: in nats a token.

    Expectations of speculative decoding at `temperature`:

    block_efficiency: tokens a target call for each lookahead, by the token rule.
    block_efficiency_block_rule: the same when drafts are verified as a block.
    block_efficiency_greedy_draft: the same, by either rule, when drafting greedily.
    acceptance_per_position: share of target calls whose first 1, 2, ... drafts are accepted, by
        the token rule with `num_speculative_tokens` drafts.

    tokens_outside_top_p: tokens of the answers that `top_p` would have ruled out, by rounding or
        because the answers were sampled otherwise. They count as refused.
    """

    temperature: float
    top_p: float
    num_speculative_tokens: int
    alpha_temperature: float
    alpha_overlap: float
    alpha_greedy_draft: float
    alpha_argmax: float
    forward_kl: float
    reverse_kl: float
    tvd: float
    entropy_target: float
    entropy_draft: float
    block_efficiency: dict[int, float]
    block_efficiency_block_rule: dict[int, float]
    block_efficiency_greedy_draft: dict[int, float]
    acceptance_per_position: list[float]
    tokens: int
    tokens_outside_top_p: int
    responses: int


@dataclass(frozen=True)
class HeldOut:
    """Held-out answers of the target with its signal, computed once."""

    batches: list[Batch]
    signals: list[Signal]


def prepare_heldout(
    teacher: Teacher, examples: Sequence[Example], pad_token: int, batch_size: int
) -> HeldOut:
    """This process's share of the examples, with the teacher's signal."""
    mine = examples[distributed.rank() :: distributed.world_size()]
    parts = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return HeldOut(
        [make_batch(part, pad_token, teacher.device) for part in parts],
        [teacher.signal(part, torch.float32) for part in parts],
    )


@torch.no_grad()
def evaluate(
    student: PreTrainedModel, heldout: HeldOut, section: EvaluateSection, label: str = ""
) -> Acceptance:
    """Acceptance of `student` on the held-out answers of all processes.

    Args:
        label: shown on a progress bar; none is shown without it.
    """
    sums = torch.zeros(len(_MEANS) + 2, dtype=torch.float64)
    responses: list[_Response] = []
    with track(label, len(heldout.batches) if label else 0) as bar:
        for batch, signal in zip(heldout.batches, heldout.signals, strict=True):
            temperature = section.temperature or 1.0
            stats = _pair_stats(student, batch, signal, temperature, section.top_p)
            sums += _sums(stats, batch.labels_N)
            responses += _responses(stats, batch, section.temperature)
            bar.advance()
    distributed.sum_over_processes(sums)
    gathered = [one for part in distributed.gather_objects(responses) for one in part]
    *totals, outside, tokens = sums.tolist()
    return Acceptance(
        temperature=section.temperature,
        top_p=section.top_p,
        num_speculative_tokens=section.num_speculative_tokens,
        alpha_temperature=section.temperature or 1.0,
        **{name: total / tokens for name, total in zip(_MEANS, totals, strict=True)},
        **_decoding(gathered, section),
        tokens=int(tokens),
        tokens_outside_top_p=int(outside),
        responses=len(gathered),
    )


def _pair_stats(
    student: PreTrainedModel,
    batch: Batch,
    signal: Signal,
    temperature: float,
    top_p: float,
) -> PairStats:
    hidden_NH = response_states(body(student), batch).float()
    rows = HiddenSignal(hidden_NH, head_rows(student).float())
    compare = partial(pair_stats, temperature=temperature, top_p=top_p)
    head = student.get_output_embeddings()
    if not isinstance(head, DraftHead):
        return compare(rows, signal, batch.labels_N)
    stats = compare(DraftSignal(hidden_NH, head), signal, batch.labels_N)
    # Over the whole vocabulary the divergence is infinite, and says nothing. The labels may lie
    # outside of the draft's vocabulary; this divergence does not look at them.
    ignored_N = torch.zeros_like(batch.labels_N)
    within = compare(rows, restrict_signal(signal, head.token_D), ignored_N)
    return replace(stats, forward_kl_N=within.forward_kl_N)


@dataclass(frozen=True)
class _Response:
    """log(q / p) of each token, for a draft that samples as served and for a greedy one."""

    log_ratio_T: Tensor
    greedy_log_ratio_T: Tensor


_MEANS = (
    "alpha_overlap",
    "alpha_greedy_draft",
    "alpha_argmax",
    "forward_kl",
    "reverse_kl",
    "tvd",
    "entropy_target",
    "entropy_draft",
)


def _sums(stats: PairStats, labels_N: Tensor) -> Tensor:
    """Sums over tokens in the order of `_MEANS`, then tokens outside top-p, then tokens."""
    values = (
        stats.overlap_N,
        stats.p_draft_argmax_N,
        stats.draft_argmax_N == labels_N,
        stats.forward_kl_N,
        stats.reverse_kl_N,
        stats.tvd_N,
        stats.entropy_p_N,
        stats.entropy_q_N,
        stats.log_p_N.isneginf(),
        torch.ones_like(labels_N),
    )
    return torch.stack([value_N.double().sum() for value_N in values]).cpu()


def _responses(stats: PairStats, batch: Batch, temperature: float) -> list[_Response]:
    greedy_N = greedy_log_ratio_T(batch.labels_N, stats.draft_argmax_N)
    ratio_N = log_ratio_T(stats.log_p_N, stats.log_q_N) if temperature > 0 else greedy_N
    parts = zip(ratio_N.split(batch.lengths), greedy_N.split(batch.lengths), strict=True)
    return [_Response(ratio_T.clone(), greedy_T.clone()) for ratio_T, greedy_T in parts]


def _decoding(responses: Sequence[_Response], section: EvaluateSection) -> dict[str, Any]:
    gamma_max = section.gamma_max
    sampled = expected_calls(token_survival_TS(one.log_ratio_T, gamma_max) for one in responses)
    block = expected_calls(block_survival_TS(one.log_ratio_T, gamma_max) for one in responses)
    greedy = expected_calls(
        token_survival_TS(one.greedy_log_ratio_T, gamma_max) for one in responses
    )
    return {
        "block_efficiency": sampled.block_efficiency,
        "block_efficiency_block_rule": block.block_efficiency,
        "block_efficiency_greedy_draft": greedy.block_efficiency,
        "acceptance_per_position": sampled.acceptance_per_position(section.num_speculative_tokens),
    }
