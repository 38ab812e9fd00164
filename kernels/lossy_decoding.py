"""What a lossy rule makes of whole responses: how far from the target, and how fast.

The lossy decoder's chance of writing a given text, divided by the target's, is a sum over the
ways in which blocks can lie on it: within a block each token was accepted or resampled
(`accepted_ratio`, `resampled_ratio` of `kernels.lossy`), the token after a full block is the
target's own. One walk over the text carries the weight of each state of the block. With L that
ratio and y ~ the target's law,

    total variation between the two laws of responses  =  E[max(0, 1 - L(y))],
    mean of anything under the lossy law               =  E[L(y) anything(y)].

The first is bounded and needs few responses. The second is importance sampling: its
`effective_responses` fall with length and with lenience, and few of them mean that only text
written by the lossy decoder itself can tell.

Legend: T tokens of one response, R responses, G largest lookahead (row g is for lookahead g + 1),
S = G + 1 numbers of drafts that a block has accepted so far, from 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossyDecoding:
    """For lookaheads 1, 2, ... G:

    total_variation_G: between the lossy decoder's law of whole responses and the target's.
    block_efficiency_G: tokens a target call of the lossy decoder.
    effective_responses_G: responses that bear block_efficiency_G, at most those given (Kish).
    """

    total_variation_G: Tensor
    block_efficiency_G: Tensor
    effective_responses_G: Tensor


def lossy_decoding(responses: Iterable[tuple[Tensor, Tensor]], max_lookahead: int) -> LossyDecoding:
    """Estimate the lossy decoder's law and speed from text that the target wrote.

    Args:
        responses: accepted_ratio_T and resampled_ratio_T of each response.

    Raises:
        ValueError: there is no response, or `lossy_walk` refuses one.
    """
    lengths, walks = [], []
    for accepted_ratio_T, resampled_ratio_T in responses:
        lengths.append(len(accepted_ratio_T))
        walks.append(lossy_walk(accepted_ratio_T, resampled_ratio_T, max_lookahead))
    if not walks:
        raise ValueError("responses must hold at least one response.")

    log_ratio_RG = torch.stack([log_ratio_G for log_ratio_G, _ in walks])
    calls_RG = torch.stack([calls_G for _, calls_G in walks])
    # Only quotients of weights are used below, so the largest may as well be 1.
    largest_G = log_ratio_RG.max(0).values.clamp(min=torch.finfo(torch.float64).min)
    weight_RG = (log_ratio_RG - largest_G).exp()
    tokens_G = torch.tensor(lengths, dtype=torch.float64) @ weight_RG
    return LossyDecoding(
        total_variation_G=(-torch.expm1(log_ratio_RG)).clamp(min=0.0).mean(0),
        block_efficiency_G=tokens_G / (weight_RG * calls_RG).sum(0),
        effective_responses_G=weight_RG.sum(0).square() / weight_RG.square().sum(0),
    )


def lossy_walk(
    accepted_ratio_T: Tensor, resampled_ratio_T: Tensor, max_lookahead: int
) -> tuple[Tensor, Tensor]:
    """Walk over one response with all ways in which blocks can lie on it.

    Args:
        accepted_ratio_T: mass of each token among accepted drafts, divided by its p.
        resampled_ratio_T: mass of each token among replacements, divided by its p.

    Returns:
        (log_ratio_G, calls_G): log of the lossy decoder's chance of this text by the target's,
        and the expected target calls of the lossy decoder when it writes this text.

    Raises:
        ValueError: max_lookahead is not positive, the ratios differ in shape, there is no token,
            or a ratio is negative, NaN or infinite.
    """
    _check(accepted_ratio_T, resampled_ratio_T, max_lookahead)
    drafts_G1 = torch.arange(1, max_lookahead + 1)[:, None]
    accepted_S = torch.arange(max_lookahead + 1)
    drafted_GS = (accepted_S < drafts_G1).double()
    full_GS = (accepted_S == drafts_G1).double()

    # weight: of each state of the block. calls: weight times the calls made to get there. Both
    # are rescaled at each token, as products of ratios leave the range of a float.
    weight_GS = torch.zeros_like(drafted_GS)
    weight_GS[:, 0] = 1.0
    calls_GS = weight_GS.clone()
    log_ratio_G = torch.zeros(max_lookahead, dtype=torch.float64)
    pairs = zip(accepted_ratio_T.tolist(), resampled_ratio_T.tolist(), strict=True)
    for t, (accepted, resampled) in enumerate(pairs):
        ends_GS = drafted_GS * resampled + full_GS
        goes_on_GS = drafted_GS * accepted
        starts_G = (weight_GS * ends_GS).sum(-1)
        starts_calls_G = (calls_GS * ends_GS).sum(-1)
        weight_GS = (weight_GS * goes_on_GS).roll(1, -1)
        calls_GS = (calls_GS * goes_on_GS).roll(1, -1)
        weight_GS[:, 0] = starts_G
        last = t == len(accepted_ratio_T) - 1  # nothing follows, so no block starts
        calls_GS[:, 0] = starts_calls_G if last else starts_calls_G + starts_G
        total_G = weight_GS.sum(-1)
        log_ratio_G += total_G.log()
        scale_G1 = torch.where(total_G > 0, total_G, 1.0)[:, None]
        weight_GS, calls_GS = weight_GS / scale_G1, calls_GS / scale_G1
    return log_ratio_G, calls_GS.sum(-1)


def _check(accepted_ratio_T: Tensor, resampled_ratio_T: Tensor, max_lookahead: int) -> None:
    if max_lookahead < 1:
        raise ValueError(f"max_lookahead must be at least 1, but is {max_lookahead}.")
    ratios = {"accepted_ratio_T": accepted_ratio_T, "resampled_ratio_T": resampled_ratio_T}
    for name, ratio_T in ratios.items():
        if ratio_T.dim() != 1 or len(ratio_T) == 0:
            raise ValueError(f"{name} must have one dimension and at least one token.")
        if not bool(((ratio_T >= 0) & (ratio_T < torch.inf)).all()):
            raise ValueError(f"{name} must be finite and not negative.")
    if accepted_ratio_T.shape != resampled_ratio_T.shape:
        raise ValueError("accepted_ratio_T and resampled_ratio_T must cover the same tokens.")
