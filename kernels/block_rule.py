"""Block verification (arXiv 2403.10444): the drafts of a block are judged together.

The rule keeps the output exact and accepts at least as many tokens as the token rule, because a
draft may spend on one token the likelihood that it gained on another. With r = p / q of the
drafted tokens, draft i keeps the weight w_i = min(1, w_{i-1} r_i), and the chance that at least
i drafts are accepted is w_i, whatever the lookahead.

On text that the target wrote this takes two scalars a token and no draft at all. The first i
tokens of the text came out of accepted drafts with chance

    w_i q(x_1..x_i) / p(x_1..x_i)  =  min(1, min over j <= i of q(x_1..x_j) / p(x_1..x_j)),

since w_i = p/q of the whole prefix divided by max(1, max over j of p/q of the first j). It does
not depend on what follows: summed over "i accepted, then the residual max(w_i p - q, 0)" and "i + 1
accepted", the next token's law is p. So where blocks start follows the same recursion as under
the token rule (`kernels.expected_calls`). A greedy draft gains nothing, for its q is 0 or 1.

Legend: T tokens of one response, S = lookahead + 1 numbers of accepted tokens, from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draftsmith.kernels.acceptance import ahead_TG, with_no_draft


def block_survival_TS(log_ratio_T: Tensor, lookahead: int) -> Tensor:
    """Chance that a block's first 0, 1, ... lookahead drafts are accepted by the block rule.

    Args:
        log_ratio_T: log(q / p) of each token of a response.
        lookahead: drafted tokens a block (gamma in papers, num_speculative_tokens in vLLM).

    Returns:
        survival_TS: row t is for a block that starts at token t; drafts past the end count as
        accepted where the block was accepted so far.

    Raises:
        ValueError: log_ratio_T holds NaN or +inf, or lookahead is not positive.
    """
    prefix_TG = ahead_TG(log_ratio_T, lookahead).cumsum(-1)
    return with_no_draft(torch.cummin(prefix_TG, dim=-1).values.clamp(max=0.0).exp())
