"""Exact block efficiency of speculative decoding from one number a token.

Given text that the target wrote, an output token x_t would have been an accepted draft token with
probability a_t = min(1, q_t(x_t) / p_t(x_t)), independently of the others; under greedy decoding
a_t is 1 where the argmaxes agree and 0 elsewhere. Where blocks start then follows a linear
recursion, so the expected number of target calls for *every* lookahead comes from one pass of both
models, without drawing a sample. Averages such as (1 - alpha^(g+1)) / (1 - alpha) (arXiv
2211.17192) assume equal, independent acceptance at all positions, which real text does not have.

Legend: T tokens of one response, G lookaheads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor


def acceptance_probability_T(log_p_T: Tensor, log_q_T: Tensor) -> Tensor:
    """min(1, q / p) of the tokens that the target chose."""
    return (log_q_T - log_p_T).clamp(max=0.0).exp()


def expected_target_calls(accept_T: Sequence[float], lookahead: int) -> float:
    """Expected number of target passes that a response takes with this lookahead.

    Args:
        accept_T: acceptance probability of each token of the response.
        lookahead: drafted tokens a block (gamma in papers, num_speculative_tokens in vLLM).

    Raises:
        ValueError: lookahead is negative.
    """
    if lookahead < 0:
        raise ValueError(f"lookahead must not be negative, but is {lookahead}.")
    length = len(accept_T)
    starts = [0.0] * (length + lookahead + 2)  # chance that a block starts at each position
    starts[0] = 1.0
    for start in range(length):
        survival = starts[start]
        for drafted in range(lookahead):
            position = start + drafted
            accept = accept_T[position] if position < length else 1.0
            starts[position + 1] += survival * (1.0 - accept)  # rejected: the target's own token
            survival *= accept
        starts[start + lookahead + 1] += survival  # all accepted: one more from the target
    return math.fsum(starts[:length])


def block_efficiency(responses: Iterable[Sequence[float]], lookahead: int) -> float:
    """Mean tokens a target call (tau) over responses, weighted by their lengths.

    Raises:
        ValueError: there is no token.
    """
    tokens, calls = 0, 0.0
    for accept_T in responses:
        tokens += len(accept_T)
        calls += expected_target_calls(accept_T, lookahead)
    if tokens == 0:
        raise ValueError("Block efficiency needs at least one token.")
    return tokens / calls
