"""How well a draft agrees with its target on given tokens: scalars only, no [N, V] output.

Legend: N tokens, V vocabulary, C tokens a chunk. p = target, q = draft.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from draftsmith.kernels.lossy import LossyRule, LossyStats, lossy_stats
from draftsmith.kernels.signal import TeacherSignal

BUDGET_BYTES = 512 * 2**20
"""Memory of all buffers of one chunk together."""
_BUFFERS = 10
"""[C, V] buffers that live at a time: both logits, log-probabilities and probabilities, and the
four of a sort or of a lossy rule."""


@dataclass(frozen=True)
class PairStats:
    """Per-token statistics, each of shape [N]; in nats where they are logarithms.

    Of the distributions that a server samples from, so after top-p:
    overlap_N: sum min(p, q), the chance that a sampled draft token is accepted.
    tvd_N: total variation 1/2 sum |p - q|, which is 1 - overlap.
    p_draft_argmax_N: p(argmax q), the chance that a greedy draft token is accepted.
    log_p_N, log_q_N: log-probability of the token that the target gave; log_p is -inf where
        top-p cuts it.
    lossy: what each lossy rule does, in the order in which the rules were given.

    Of the whole distributions, as top-p would make the reverse divergence infinite:
    forward_kl_N, reverse_kl_N: KL(p || q) and KL(q || p).
    entropy_p_N, entropy_q_N: -sum p log p and -sum q log q.

    At any temperature:
    target_argmax_N, draft_argmax_N: the most likely tokens; a greedy server accepts a draft
        where they agree.
    """

    overlap_N: Tensor
    tvd_N: Tensor
    p_draft_argmax_N: Tensor
    log_p_N: Tensor
    log_q_N: Tensor
    forward_kl_N: Tensor
    reverse_kl_N: Tensor
    entropy_p_N: Tensor
    entropy_q_N: Tensor
    target_argmax_N: Tensor
    draft_argmax_N: Tensor
    lossy: tuple[LossyStats, ...]


@torch.no_grad()
def pair_stats(
    draft: TeacherSignal,
    target: TeacherSignal,
    token_N: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    lossy_rules: Sequence[LossyRule] = (),
    budget_bytes: int = BUDGET_BYTES,
) -> PairStats:
    """Compare draft and target as a server with this temperature and top-p would use them.

    vLLM applies top-p to the target's distribution and only the temperature to the draft's, and
    so does this function.

    Args:
        token_N: token that the target chose at each position, as integers.
        temperature: must be positive; greedy serving is described by the argmaxes.
        top_p: mass of the target's most likely tokens that are kept, in (0, 1].
        lossy_rules: rules such as `Lenience(0.5)` to evaluate beside exact acceptance.
        budget_bytes: memory of a chunk's buffers. It changes speed and memory only.

    Raises:
        ValueError: an argument is out of range, or draft, target and tokens do not belong
            together.
    """
    _check(draft, target, token_N, temperature, top_p, budget_bytes)
    # Chunks are planned for float64, so that no signal exceeds the budget.
    chunk = max(1, budget_bytes // (_BUFFERS * 8 * target.vocab_size))
    rows = [slice(start, start + chunk) for start in range(0, max(1, len(token_N)), chunk)]
    return _joined(
        [
            _chunk_stats(
                _scaled(draft.logits_NV(part), temperature),
                _scaled(target.logits_NV(part), temperature),
                token_N[part],
                top_p,
                lossy_rules,
            )
            for part in rows
        ]
    )


def nucleus_NV(p_NV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches top_p, renormalised."""
    if top_p >= 1.0:
        return p_NV
    sorted_NV, order_NV = p_NV.sort(dim=-1, descending=True)
    before_NV = sorted_NV.cumsum(-1) - sorted_NV
    sorted_NV = sorted_NV.masked_fill(before_NV >= top_p, 0.0)
    kept_NV = torch.zeros_like(p_NV).scatter_(-1, order_NV, sorted_NV)
    return kept_NV / kept_NV.sum(-1, keepdim=True)


def _check(
    draft: TeacherSignal,
    target: TeacherSignal,
    token_N: Tensor,
    temperature: float,
    top_p: float,
    budget_bytes: int,
) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be positive and finite, but is {temperature}; "
            "the argmaxes describe greedy serving."
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], but is {top_p}.")
    if budget_bytes <= 0:
        raise ValueError(f"budget_bytes must be positive, but is {budget_bytes}.")
    if draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"The draft has {draft.vocab_size} tokens and the target {target.vocab_size}: "
            "both need the same vocabulary."
        )
    if not len(draft) == len(target) == len(token_N):
        raise ValueError(
            f"draft, target and token_N must cover the same tokens, but have {len(draft)}, "
            f"{len(target)} and {len(token_N)}."
        )
    if token_N.dim() != 1 or token_N.is_floating_point():
        raise ValueError("token_N must be one-dimensional and hold integers.")
    if len(token_N) and not 0 <= int(token_N.min()) <= int(token_N.max()) < target.vocab_size:
        raise ValueError(f"token_N must lie in [0, {target.vocab_size}), the vocabulary.")


def _chunk_stats(
    draft_CV: Tensor,
    target_CV: Tensor,
    token_C: Tensor,
    top_p: float,
    lossy_rules: Sequence[LossyRule],
) -> PairStats:
    log_q_CV, log_p_CV = draft_CV.log_softmax(-1), target_CV.log_softmax(-1)
    q_CV, p_CV = log_q_CV.exp(), log_p_CV.exp()
    draft_argmax_C = draft_CV.argmax(-1)
    whole = {
        "forward_kl_N": _mean_C(p_CV, log_p_CV - log_q_CV),
        "reverse_kl_N": _mean_C(q_CV, log_q_CV - log_p_CV),
        "entropy_p_N": -_mean_C(p_CV, log_p_CV),
        "entropy_q_N": -_mean_C(q_CV, log_q_CV),
        "target_argmax_N": target_CV.argmax(-1),
        "draft_argmax_N": draft_argmax_C,
        "log_q_N": _pick(log_q_CV, token_C),
    }
    log_p_C = _pick(log_p_CV, token_C)
    del log_p_CV, log_q_CV  # a rule or a sort needs the room
    served_CV = nucleus_NV(p_CV, top_p)
    if top_p < 1.0:
        log_p_C = _pick(served_CV, token_C).log()
    return PairStats(
        overlap_N=torch.minimum(served_CV, q_CV).sum(-1),
        tvd_N=(served_CV - q_CV).abs_().sum(-1).mul_(0.5),
        p_draft_argmax_N=_pick(served_CV, draft_argmax_C),
        log_p_N=log_p_C,
        lossy=tuple(lossy_stats(rule, served_CV, q_CV, token_C) for rule in lossy_rules),
        **whole,
    )


def _mean_C(weight_CV: Tensor, values_CV: Tensor) -> Tensor:
    """Mean of values that may be infinite, or NaN, where the weight is 0."""
    return (weight_CV * values_CV).masked_fill_(weight_CV == 0, 0.0).sum(-1)


def _pick(values_CV: Tensor, index_C: Tensor) -> Tensor:
    return values_CV.gather(-1, index_C[:, None]).squeeze(-1)


def _scaled(logits_CV: Tensor, temperature: float) -> Tensor:
    return logits_CV if temperature == 1.0 else logits_CV / temperature


def _joined(parts: Sequence[PairStats]) -> PairStats:
    names = [field.name for field in fields(PairStats) if field.name != "lossy"]
    return PairStats(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
        lossy=tuple(
            LossyStats(
                *(torch.cat([getattr(one, f.name) for one in rule]) for f in fields(LossyStats))
            )
            for rule in zip(*(part.lossy for part in parts), strict=True)
        ),
    )
