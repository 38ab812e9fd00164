"""Random tokens at the price of one random number each, inside vLLM on a CPU.

To draw from p, vLLM divides p by an exponential variate for every token of the vocabulary and takes
the largest. A CPU makes those variates one after the other: 49,152 of them take about a
millisecond, for each proposal of the draft and again for what replaces a refused one. With three
proposals for each of 16 requests that is 64 ms, nearly as long as a whole step of the 135M target
alone. Here a token is drawn by inverting the cumulative distribution, with one float64 variate.

And a step in which nothing was proposed is sampled as an engine without a draft samples it:
vLLM would draw replacements there too, for no proposal at all.

Legend: N rows, V vocabulary, P pieces of the vocabulary, W tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

_WIDTH = 256
"""Tokens of a piece: first a piece is drawn, then a token in it, and only it is summed up."""
_GREEDY_BELOW = 1e-5  # vLLM's own bound between greedy and random sampling


def draw_cheaply() -> None:
    """Put these draws in the place of vLLM's. Its CPU kernels must be bound."""
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.spec_decode import llm_base_proposer
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    rejection_sampler.sample_recovered_tokens = recover
    llm_base_proposer.compute_probs_and_sample_next_token = propose
    sample = GPUModelRunner._sample
    if hasattr(sample, "_draftsmith_plain"):
        return

    def sample_what_was_proposed(self: Any, logits: Any, metadata: Any) -> Any:
        nothing = metadata is not None and metadata.max_spec_len == 0
        return sample(self, logits, None if nothing else metadata)

    sample_what_was_proposed._draftsmith_plain = True  # type: ignore[attr-defined]
    GPUModelRunner._sample = sample_what_was_proposed


def draw(weight_NV: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """A token of each row, with a chance in proportion to its weight.

    Args:
        weight_NV: float32, at least 0. A row without any weight gets some token.
        uniform_N: float64 in [0, 1).

    Returns:
        int64 [N].
    """
    vocabulary = weight_NV.shape[1]
    pieces = vocabulary // _WIDTH
    whole = pieces * _WIDTH
    piece_NP = weight_NV[:, :whole].unflatten(1, (pieces, _WIDTH)).sum(-1)
    rest_N1 = weight_NV[:, whole:].sum(-1, keepdim=True)
    piece_N, left_N = _invert(torch.cat([piece_NP, rest_N1], 1), uniform_N)
    token_NW = piece_N[:, None] * _WIDTH + torch.arange(_WIDTH)
    weight_NW = weight_NV.gather(1, token_NW.clamp(max=vocabulary - 1))
    within_N, _ = _invert(weight_NW.masked_fill_(token_NW >= vocabulary, 0), left_N)
    return (piece_N * _WIDTH + within_N).clamp(max=vocabulary - 1)


def _invert(weight_NP: torch.Tensor, uniform_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(place of `uniform_N` among the cumulated weights, how far it is within that place)."""
    sum_NP = weight_NP.double().cumsum(1)
    total_N = sum_NP[:, -1]
    # Strictly below the total: rounding must not point past the last place that has weight.
    sought_N1 = torch.minimum(uniform_N * total_N, total_N.nextafter(total_N * 0))[:, None]
    at_N1 = torch.searchsorted(sum_NP, sought_N1, right=True).clamp(max=weight_NP.shape[1] - 1)
    weight_N1 = weight_NP.gather(1, at_N1).double()
    before_N1 = sum_NP.gather(1, at_N1) - weight_N1
    share_N1 = ((sought_N1 - before_N1) / weight_N1).nan_to_num(0).clamp(0, 1)
    return at_N1[:, 0], share_N1[:, 0]


def propose(
    logits_NV: torch.Tensor, batch: Any, use_fp64_gumbel: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [N] of the draft and the probabilities [N, V] that they were drawn with.

    In place of vLLM's `compute_probs_and_sample_next_token`, which ignores seeds.
    """
    if batch.all_greedy:
        return logits_NV.argmax(-1), logits_NV
    temperature_N = batch.temperature
    greedy_N = temperature_N < _GREEDY_BELOW
    if not batch.all_random:
        temperature_N = torch.where(greedy_N, 1.0, temperature_N)
    prob_NV = logits_NV.div_(temperature_N[:, None]).softmax(-1, dtype=torch.float32)
    random = {row: one for row, one in batch.generators.items() if not greedy_N[row]}
    token_N = draw(prob_NV, uniforms(len(prob_NV), random))
    if not batch.all_random:
        token_N = torch.where(greedy_N, prob_NV.argmax(-1), token_N)
    return token_N, prob_NV


def recover(
    max_spec_len: int,
    num_draft_tokens: Sequence[int],
    cu_num_draft_tokens: torch.Tensor,
    draft_token_N: torch.Tensor,
    draft_prob_NV: torch.Tensor | None,
    target_prob_NV: torch.Tensor,
    sampling_metadata: Any,
    device: torch.device,
    use_fp64_gumbel: bool = False,
) -> torch.Tensor:
    """What replaces each proposal if it is the first refused: drawn from max(p - q, 0).

    In place of vLLM's `sample_recovered_tokens`. A proposal without probabilities was certain
    (n-grams): then p without its token. One variate a request, as only one replacement is used.
    """
    if draft_prob_NV is None:
        residual_NV = target_prob_NV.clone()
        residual_NV.scatter_(1, draft_token_N.clamp(min=0).long()[:, None], 0)
    else:
        residual_NV = (target_prob_NV - draft_prob_NV).clamp_(min=0)
    seeded = sampling_metadata.generators
    drawing = {row: one for row, one in seeded.items() if num_draft_tokens[row] > 0}
    uniform_B = uniforms(len(num_draft_tokens), drawing)
    uniform_N = uniform_B.repeat_interleave(torch.tensor(num_draft_tokens))
    return draw(residual_NV, uniform_N).to(draft_token_N.dtype)


def uniforms(count: int, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """float64 variates in [0, 1), those of rows with a generator from it."""
    uniform_N = torch.rand(count, dtype=torch.float64)
    for row, generator in generators.items():
        uniform_N[row] = torch.rand((), dtype=torch.float64, generator=generator)
    return uniform_N
