"""How often would the target accept the student's tokens? Exact, from text that the target wrote.

One pass of both models over held-out answers gives the three acceptance rates that differ in
practice and, by the recursion of `kernels.acceptance`, the block efficiency of every lookahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from pydantic import BaseModel
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.batch import Batch, Example, make_batch, response_states
from draftsmith.distill.models import body
from draftsmith.distill.progress import track
from draftsmith.distill.recipe import EvaluateSection
from draftsmith.distill.teacher import Teacher
from draftsmith.distill.vocabulary import DraftHead, DraftSignal, head_rows, restrict_signal
from draftsmith.kernels.acceptance import acceptance_probability_T, block_efficiency
from draftsmith.kernels.pair_stats import PairStats, pair_stats
from draftsmith.kernels.signal import HiddenSignal


class Acceptance(BaseModel):
    """Agreement of a draft with its target on text sampled from the target.

    alpha_overlap: mean of sum min(p, q): acceptance with probabilistic drafting. At temperature 0
        it is given for temperature 1, where `alpha_temperature` says so.
    alpha_greedy_draft: mean of p(argmax q): acceptance when drafting greedily.
    alpha_argmax: share of target tokens that are the draft's argmax: acceptance at temperature 0.
    forward_kl: KL(target || draft) in nats a token, over the tokens that the draft may propose.
    block_efficiency: expected tokens a target call for each lookahead, at `temperature`.
    """

    temperature: float
    top_p: float
    alpha_temperature: float
    alpha_overlap: float
    alpha_greedy_draft: float
    alpha_argmax: float
    forward_kl: float
    block_efficiency: dict[int, float]
    tokens: int
    responses: int


@dataclass(frozen=True)
class HeldOut:
    """Held-out answers of the target with its signal, computed once."""

    batches: list[Batch]
    signals: list[HiddenSignal]


def prepare_heldout(
    teacher: Teacher, examples: Sequence[Example], pad_token: int, batch_size: int
) -> HeldOut:
    """This process's share of the examples, with the teacher's hidden states."""
    mine = examples[distributed.rank() :: distributed.world_size()]
    parts = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return HeldOut(
        [make_batch(part, pad_token, teacher.model.device) for part in parts],
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
    alpha_temperature = section.temperature or 1.0
    accepts: list[list[float]] = []
    sums = torch.zeros(5, dtype=torch.float64)
    with track(label, len(heldout.batches) if label else 0) as bar:
        for batch, signal in zip(heldout.batches, heldout.signals, strict=True):
            stats = _pair_stats(student, batch, signal, alpha_temperature, section.top_p)
            matches_N = (stats.draft_argmax_N == batch.labels_N).double()
            sums += torch.stack(
                [
                    stats.overlap_N.sum().double(),
                    stats.p_draft_argmax_N.sum().double(),
                    matches_N.sum(),
                    stats.forward_kl_N.sum().double(),
                    torch.tensor(len(matches_N), dtype=torch.float64),
                ]
            ).cpu()
            accept_N = matches_N
            if section.temperature > 0:
                accept_N = acceptance_probability_T(stats.log_p_N, stats.log_q_N)
            accepts += _split_by_response(accept_N, batch)
            bar.advance()
    distributed.sum_over_processes(sums)
    gathered = [accept for part in distributed.gather_objects(accepts) for accept in part]
    count = sums[4].item()
    overlap, greedy_draft, argmax, forward_kl = (sums[:4] / count).tolist()
    return Acceptance(
        temperature=section.temperature,
        top_p=section.top_p,
        alpha_temperature=alpha_temperature,
        alpha_overlap=overlap,
        alpha_greedy_draft=greedy_draft,
        alpha_argmax=argmax,
        forward_kl=forward_kl,
        block_efficiency={
            lookahead: block_efficiency(gathered, lookahead)
            for lookahead in range(1, section.gamma_max + 1)
        },
        tokens=int(count),
        responses=len(gathered),
    )


def _pair_stats(
    student: PreTrainedModel,
    batch: Batch,
    signal: HiddenSignal,
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


def _split_by_response(accept_N: torch.Tensor, batch: Batch) -> list[list[float]]:
    lengths = batch.predicts_BT.sum(-1).tolist()
    return [part.tolist() for part in accept_N.double().cpu().split(lengths)]
