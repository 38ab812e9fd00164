"""Generate responses with Hugging Face `generate`, every sampling parameter explicit.

Each sequence has a seed of its own, and a token costs one uniform number, turned into a token by
inverting the cumulative distribution. What is sampled does not depend on which other sequences
share the batch, on padding or on the number of processes (but for ties within rounding).

Legend: B sequences, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 keeps all tokens."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class Generate(Protocol):
    """Continues prompts as `generate` does, with the model of whoever offers it."""

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        *,
        stop_tokens: Sequence[int],
        batch_size: int,
        on_batch: Callable[[int], None],
    ) -> list[list[int]]: ...


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    *,
    stop_tokens: Sequence[int],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Continue each prompt until a stop token, which is kept, or `max_new_tokens`.

    Args:
        prompts: token ids of each prompt.
        seeds: seed of each sequence.
        on_batch: called with the number of sequences of each finished batch.

    Returns:
        The new token ids of each prompt, in the order given.
    """
    assert len(prompts) == len(seeds), "every prompt needs its own seed"
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    responses: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(by_length), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = _generate_batch(
            model,
            [prompts[index] for index in chosen],
            [seeds[index] for index in chosen],
            sampling,
            stop_tokens,
        )
        for index, response in zip(chosen, batch, strict=True):
            responses[index] = response
        on_batch(len(chosen))
    return responses


def _generate_batch(
    model: PreTrainedModel,
    prompts: list[Sequence[int]],
    seeds: list[int],
    sampling: Sampling,
    stop_tokens: Sequence[int],
) -> list[list[int]]:
    length = max(len(prompt) for prompt in prompts)
    tokens_BS = torch.full((len(prompts), length), stop_tokens[0])
    mask_BS = torch.zeros_like(tokens_BS)
    for row, prompt in enumerate(prompts):  # padded on the left: responses start together
        tokens_BS[row, length - len(prompt) :] = torch.tensor(prompt)
        mask_BS[row, length - len(prompt) :] = 1
    output = model.generate(
        tokens_BS.to(model.device),
        attention_mask=mask_BS.to(model.device),
        generation_config=_generation_config(sampling, stop_tokens),
        logits_processor=_processors(sampling, seeds, length),
    )
    return [until_stop(row, set(stop_tokens)) for row in output[:, length:].tolist()]


def _generation_config(sampling: Sampling, stop_tokens: Sequence[int]) -> GenerationConfig:
    # do_sample stays off: the processors below pick the token, generate() only takes the argmax.
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(stop_tokens),
        pad_token_id=stop_tokens[0],
        use_cache=True,
    )


def _processors(sampling: Sampling, seeds: list[int], prompt_length: int) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if sampling.temperature == 0:
        return processors
    if sampling.temperature != 1:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(InverseCdfSampler(seeds, prompt_length, sampling.max_new_tokens))
    return processors


class InverseCdfSampler(LogitsProcessor):
    """Replaces scores [B, V] by 0 for the sampled token and -inf for all others."""

    def __init__(self, seeds: Sequence[int], prompt_length: int, max_new_tokens: int) -> None:
        rows = [
            torch.rand(
                max_new_tokens,
                dtype=torch.float64,
                generator=torch.Generator().manual_seed(seed % 2**63),
            )
            for seed in seeds
        ]
        self.uniform_BT = torch.stack(rows)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform_B = self.uniform_BT[:, input_ids.shape[1] - self.prompt_length].to(scores.device)
        cumulative_BV = scores.float().softmax(-1).cumsum(-1)
        total_B = cumulative_BV[:, -1]
        # Strictly below the last sum: rounding can never point past the last possible token.
        threshold_B = torch.minimum(
            (uniform_B * total_B).float(), torch.nextafter(total_B, total_B * 0)
        )
        token_B1 = torch.searchsorted(cumulative_BV, threshold_B[:, None], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)


def until_stop(tokens: list[int], stop_tokens: set[int]) -> list[int]:
    """The tokens up to the first stop token, which is kept."""
    for place, token in enumerate(tokens):
        if token in stop_tokens:
            return tokens[: place + 1]
    return tokens
