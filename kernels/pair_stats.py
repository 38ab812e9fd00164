"""How well a draft agrees with its target on given tokens: scalars only, no [N, V] output.

Legend: N tokens, V vocabulary, C tokens a chunk. p = target, q = draft.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from draftsmith.kernels.linear import CHUNK_BYTES
from draftsmith.kernels.signal import TeacherSignal


@dataclass(frozen=True)
class PairStats:
    """Per-token statistics, each of shape [N].

    overlap_N: sum min(p, q), the chance that a sampled draft token is accepted.
    p_draft_argmax_N: p(argmax q), the chance that a greedy draft token is accepted.
    draft_argmax_N: the draft's most likely token; a greedy server accepts it where the target
        chose the same.
    log_p_N, log_q_N: log-probability of the token that the target gave.
    forward_kl_N: KL(p || q), in nats.
    """

    overlap_N: Tensor
    p_draft_argmax_N: Tensor
    draft_argmax_N: Tensor
    log_p_N: Tensor
    log_q_N: Tensor
    forward_kl_N: Tensor


def pair_stats(
    draft: TeacherSignal,
    target: TeacherSignal,
    token_N: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> PairStats:
    """Compare draft and target as a server with this temperature and top-p would use them.

    vLLM applies top-p to the target's distribution and only the temperature to the draft's, and
    so does this function. forward_kl_N is taken before top-p, which would make it infinite.

    Args:
        token_N: token that the target chose at each position.
        temperature: must be positive; greedy serving is described by draft_argmax_N.

    Raises:
        ValueError: temperature is not positive, or the vocabularies differ.
    """
    if temperature <= 0:
        raise ValueError("pair_stats needs a positive temperature; draft_argmax_N is for greedy.")
    if draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"The draft has {draft.vocab_size} tokens and the target {target.vocab_size}: "
            "both need the same vocabulary."
        )
    chunk = max(1, chunk_bytes // (4 * target.vocab_size))
    parts = [
        _chunk_stats(
            draft.logits_NV(slice(start, start + chunk)) / temperature,
            target.logits_NV(slice(start, start + chunk)) / temperature,
            token_N[start : start + chunk],
            top_p,
        )
        for start in range(0, len(token_N), chunk)
    ]
    names = [field.name for field in fields(PairStats)]
    return PairStats(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def nucleus_NV(p_NV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches top_p, renormalised."""
    if top_p >= 1.0:
        return p_NV
    sorted_NV, order_NV = p_NV.sort(dim=-1, descending=True)
    before_NV = sorted_NV.cumsum(-1) - sorted_NV
    sorted_NV = sorted_NV.masked_fill(before_NV >= top_p, 0.0)
    kept_NV = torch.zeros_like(p_NV).scatter_(-1, order_NV, sorted_NV)
    return kept_NV / kept_NV.sum(-1, keepdim=True)


def _chunk_stats(draft_CV: Tensor, target_CV: Tensor, token_C: Tensor, top_p: float) -> PairStats:
    log_q_CV, log_p_CV = draft_CV.log_softmax(-1), target_CV.log_softmax(-1)
    whole_p_CV = log_p_CV.exp()
    forward_kl_C = (whole_p_CV * (log_p_CV - log_q_CV)).sum(-1)
    p_CV = nucleus_NV(whole_p_CV, top_p)
    draft_argmax_C = draft_CV.argmax(-1)
    return PairStats(
        overlap_N=torch.minimum(p_CV, log_q_CV.exp()).sum(-1),
        p_draft_argmax_N=_pick(p_CV, draft_argmax_C),
        draft_argmax_N=draft_argmax_C,
        log_p_N=_pick(p_CV, token_C).log(),
        log_q_N=_pick(log_q_CV, token_C),
        forward_kl_N=forward_kl_C,
    )


def _pick(values_CV: Tensor, index_C: Tensor) -> Tensor:
    return values_CV.gather(-1, index_C[:, None]).squeeze(-1)
