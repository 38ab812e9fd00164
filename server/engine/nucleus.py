"""top-p without sorting the vocabulary, inside vLLM on a CPU.

Most models come with a `top_p` in their generation config, so that most requests have one. vLLM
sorts all logits of every row for it: a CPU takes some four milliseconds for 49,152 tokens, and a
step that verifies three proposals has four rows a request. But a nucleus is nearly always small: it
is looked for among the most probable tokens, and only rows where it is larger are sorted.

Legend: N rows, R some of them, V vocabulary, M most probable tokens.
"""

from __future__ import annotations

import torch

_MOST = (128, 2048)
"""Tokens among which a nucleus is looked for, at first and, where it is larger, once more."""


def find_nuclei_without_sorting() -> None:
    """Put this in the place of vLLM's function."""
    from vllm.v1.sample.ops import topk_topp_sampler

    stock = topk_topp_sampler.apply_top_k_top_p_pytorch
    if hasattr(stock, "_draftsmith"):
        return

    def apply(
        logits: torch.Tensor,
        k: torch.Tensor | None,
        p: torch.Tensor | None,
        allow_cpu_sync: bool = False,
    ) -> torch.Tensor:
        if k is not None:
            logits = topk_topp_sampler.apply_top_k_only(logits, k)
        if p is not None and len(large_R := keep_nuclei(logits, p)):
            logits[large_R] = stock(logits[large_R], None, p[large_R], allow_cpu_sync)
        return logits

    apply._draftsmith = True  # type: ignore[attr-defined]
    topk_topp_sampler.apply_top_k_top_p_pytorch = apply


def keep_nuclei(logits_NV: torch.Tensor, p_N: torch.Tensor) -> torch.Tensor:
    """Set logits outside of the nucleus to -inf, in place.

    The nucleus of a row are its most probable tokens, as many as it takes to reach `p_N`. A row
    with p = 1 stays as it is.

    Returns:
        int64 [R]: rows whose nucleus is too large to be found here; they are as they were.
    """
    left_R = (p_N < 1).nonzero()[:, 0]
    for most in _MOST:
        if len(left_R):
            left_R = _keep_among(logits_NV, p_N, left_R, min(most, logits_NV.shape[1]))
    return left_R


def _keep_among(
    logits_NV: torch.Tensor, p_N: torch.Tensor, row_R: torch.Tensor, most: int
) -> torch.Tensor:
    """Those of `row_R` whose nucleus has more than `most` tokens; the others are done."""
    logits_RV = logits_NV if len(row_R) == len(logits_NV) else logits_NV[row_R]
    logit_RM, token_RM = logits_RV.topk(most)
    largest_R1 = logit_RM[:, :1]
    total_R1 = (logits_RV - largest_R1).exp_().sum(-1, keepdim=True, dtype=torch.float64)
    sum_RM = (logit_RM - largest_R1).double().exp().cumsum(1) / total_R1
    before_RM = torch.nn.functional.pad(sum_RM[:, :-1], (1, 0))
    kept_RM = logit_RM.masked_fill(before_RM >= p_N[row_R, None], -torch.inf)
    found_R = sum_RM[:, -1] >= p_N[row_R]
    done_R = row_R[found_R]
    logits_NV.index_fill_(0, done_R, -torch.inf)
    logits_NV[done_R[:, None], token_RM[found_R]] = kept_RM[found_R]
    return row_R[~found_R]
