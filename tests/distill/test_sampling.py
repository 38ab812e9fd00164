"""Generation: the right distribution, and the same text whatever the batch looks like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from draftsmith.distill.models import load_model
from draftsmith.distill.sampling import InverseCdfSampler, Sampling, generate

PROMPTS = [[1, 80, 81, 82], [5], [9, 8, 7, 6, 5, 4, 3], [40, 41]]
NEVER = [365]  # an id that this model's prompts do not use; sampled rarely, if at all


@pytest.fixture(scope="module")
def model(tiny_target: Path) -> PreTrainedModel:
    return load_model(tiny_target, torch.float32)


def sample(model: PreTrainedModel, batch_size: int, prompts: list[list[int]]) -> list[list[int]]:
    seeds = [100 + PROMPTS.index(prompt) for prompt in prompts]
    sampling = Sampling(max_new_tokens=20, temperature=1.3, top_p=0.95)
    return generate(model, prompts, seeds, sampling, stop_tokens=NEVER, batch_size=batch_size)


def test_text_does_not_depend_on_the_batch(model: PreTrainedModel) -> None:
    together = sample(model, 4, PROMPTS)
    assert sample(model, 1, PROMPTS) == together
    assert sample(model, 3, PROMPTS[::-1]) == together[::-1]
    assert len({tuple(text) for text in together}) == 4


def test_greedy_is_the_argmax_of_the_plain_forward_pass(model: PreTrainedModel) -> None:
    (response,) = generate(
        model, [PROMPTS[0]], [0], Sampling(8, temperature=0), stop_tokens=NEVER, batch_size=1
    )
    tokens = list(PROMPTS[0])
    for token in response:
        assert token == model(torch.tensor([tokens])).logits[0, -1].argmax()
        tokens.append(token)


def test_the_stop_token_ends_a_response_and_is_kept(model: PreTrainedModel) -> None:
    (free,) = sample(model, 1, PROMPTS[:1])
    stop = free[5]
    stopped = generate(
        model, PROMPTS[:2], [100, 101], Sampling(20, 1.3, 0.95), stop_tokens=[stop], batch_size=2
    )
    assert stopped[0] == free[: free.index(stop) + 1]


def test_samples_follow_the_distribution() -> None:
    """Chi-square of 20,000 draws, each with a seed of its own."""
    logits = torch.tensor([2.0, 0.0, -torch.inf, 1.0, -3.0, 0.5])
    count = 20_000
    sampler = InverseCdfSampler(list(range(count)), prompt_length=0, max_new_tokens=1)
    scores = sampler(torch.zeros(count, 0, dtype=torch.long), logits.expand(count, -1))
    drawn = scores.argmax(-1).bincount(minlength=6).double()
    expected = logits.double().softmax(-1) * count
    assert drawn[2] == 0, "an impossible token was drawn"
    kept = expected > 0
    statistic = ((drawn - expected)[kept].pow(2) / expected[kept]).sum()
    assert statistic < 18.5  # 99.9 % point of chi-square with 4 degrees of freedom


def test_the_largest_uniform_number_never_draws_an_impossible_token() -> None:
    sampler = InverseCdfSampler([0], prompt_length=0, max_new_tokens=1)
    sampler.uniform_BT[:] = 1 - 2**-53
    logits = torch.tensor([[0.1, 0.3, -0.2, -torch.inf, -torch.inf]])
    assert sampler(torch.zeros(1, 0, dtype=torch.long), logits).argmax() == 2
