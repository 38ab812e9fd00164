"""Which drafted tokens are accepted, token by token, given text that the target wrote.

Decoding is replayed on known text: of its token x_t we ask with which chance it came out of an
accepted draft. Under the token rule (arXiv 2211.17192) that is min(1, q_t(x_t) / p_t(x_t)),
independently of all other tokens, because accepted mass min(p, q) at x_t is shared with the
mass that the residual adds to fill up p. At temperature 0, or with a draft that proposes its
argmax, it is 1 where the draft's argmax is the token and 0 elsewhere.

Legend: T tokens of one response, S = lookahead + 1 numbers of accepted tokens, from 0.
p = target, q = draft, both as the server samples from them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOG_ROUNDING = 1e-3
"""A log-probability from bfloat16 logits may exceed 0 by rounding, but not by more."""


def log_ratio_T(log_p_T: Tensor, log_q_T: Tensor) -> Tensor:
    """log(q / p) of tokens that the target wrote, as float64 on the CPU.

    A token with p = 0 (cut by top-p here, kept where the text was made) counts as -inf: whoever
    drafts it is always refused.

    Args:
        log_p_T: the target's log-probability of each token, in nats.
        log_q_T: the draft's.

    Raises:
        ValueError: the two differ in shape, are not log-probabilities, or hold NaN.
    """
    for name, log_T in (("log_p_T", log_p_T), ("log_q_T", log_q_T)):
        if log_T.dim() != 1:
            raise ValueError(f"{name} must have one dimension, but has {log_T.dim()}.")
        if not bool((log_T <= _LOG_ROUNDING).all()):
            raise ValueError(f"{name} must hold log-probabilities, but has NaN or positive ones.")
    if log_p_T.shape != log_q_T.shape:
        raise ValueError(
            f"log_p_T has {len(log_p_T)} tokens and log_q_T {len(log_q_T)}: they must match."
        )
    log_p_T, log_q_T = log_p_T.double().cpu(), log_q_T.double().cpu()
    impossible_T = log_p_T.isneginf()
    return (log_q_T - log_p_T).masked_fill(impossible_T, -torch.inf)


def greedy_log_ratio_T(token_T: Tensor, draft_argmax_T: Tensor) -> Tensor:
    """The same for a draft that proposes its argmax: 0 where it is the token, else -inf.

    It is exact for greedy decoding, and for sampled decoding with greedy drafts.

    Raises:
        ValueError: the two differ in shape.
    """
    if token_T.shape != draft_argmax_T.shape:
        raise ValueError(
            f"token_T has shape {tuple(token_T.shape)} and draft_argmax_T "
            f"{tuple(draft_argmax_T.shape)}: they must match."
        )
    return (token_T == draft_argmax_T).double().log().cpu()


def token_survival_TS(log_ratio_T: Tensor, lookahead: int) -> Tensor:
    """Chance that a block's first 0, 1, ... lookahead drafts are accepted by the token rule.

    Args:
        log_ratio_T: log(q / p) of each token of a response.
        lookahead: drafted tokens a block (gamma in papers, num_speculative_tokens in vLLM).

    Returns:
        survival_TS: row t is for a block that starts at token t. Drafts past the end count as
        accepted, so that they cost no target call.

    Raises:
        ValueError: log_ratio_T holds NaN or +inf, or lookahead is not positive.
    """
    return with_no_draft(ahead_TG(log_ratio_T, lookahead).clamp(max=0.0).cumsum(-1).exp())


def ahead_TG(log_ratio_T: Tensor, lookahead: int) -> Tensor:
    """Row t holds the log-ratios of the `lookahead` tokens from t on, 0 past the end.

    Raises:
        ValueError: log_ratio_T holds NaN or +inf, or lookahead is not positive.
    """
    if lookahead < 1:
        raise ValueError(f"lookahead must be at least 1, but is {lookahead}.")
    if log_ratio_T.dim() != 1:
        raise ValueError(f"log_ratio_T must have one dimension, but has {log_ratio_T.dim()}.")
    if not bool((log_ratio_T < torch.inf).all()):
        raise ValueError("log_ratio_T must not hold NaN or +inf: see kernels.acceptance.")
    padding_G = torch.zeros(lookahead, dtype=torch.float64)
    padded = torch.cat([log_ratio_T.double().cpu(), padding_G])
    return padded.unfold(0, lookahead, 1)[:-1]


def with_no_draft(survival_TG: Tensor) -> Tensor:
    """Put before the chances of 1, 2, ... accepted drafts that of none, which is 1."""
    return torch.cat([torch.ones_like(survival_TG[:, :1]), survival_TG], dim=-1)
