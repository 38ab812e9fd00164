"""Random choices as pure functions of the seed and of what is being chosen.

Nothing here has a state: which prompts a step sees, whose response each gets and every sampled
token depend on (seed, step, position) alone. A run that is resumed, split over more processes
or given another micro-batch therefore draws exactly the same, and there is no generator to save.
"""

from __future__ import annotations

import hashlib

import torch

from draftsmith.distill.recipe import Recipe


def draw_bits(*key: int | str) -> int:
    """63 random bits that belong to `key`."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def draw_uniform(*key: int | str) -> float:
    """A number in [0, 1) that belongs to `key`."""
    return draw_bits(*key) / 2**63


def prompts_of_step(recipe: Recipe, step: int, num_prompts: int) -> list[int]:
    """Indices of the prompts of one step: consecutive places in shuffled passes over the data."""
    size = recipe.train.batch_size
    places = range(step * size, (step + 1) * size)
    passes = {place // num_prompts for place in places}
    order = {number: _shuffled(recipe.seed, number, num_prompts) for number in passes}
    return [order[place // num_prompts][place % num_prompts] for place in places]


def _shuffled(seed: int, number: int, size: int) -> list[int]:
    generator = torch.Generator().manual_seed(draw_bits(seed, "pass", number))
    return torch.randperm(size, generator=generator).tolist()
