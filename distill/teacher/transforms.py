"""What a recipe does to the teacher's signal before the objective sees it.

Acceptance is measured against the signal as it is. Noise belongs to the seed, the step, the text
and the place in it, so that no split of a batch and no resumption changes it.

Legend: N response tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerBase

from draftsmith.distill.batch import Example
from draftsmith.distill.draws import draw_bits
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections.teacher import PrivacySection
from draftsmith.kernels.privacy import private_signal
from draftsmith.kernels.reliable import reliable_signal
from draftsmith.kernels.signal import Teacher as Signal


class Transforms:
    """The [teacher] section's `reliable`, then its `privacy`; nothing where there is neither."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self._section, self._seed = recipe.teacher, recipe.seed
        self._divergence_temperature = recipe.objective.divergence_temperature
        self._tokenizer = tokenizer
        self._private: dict[Example, list[bool]] = {}

    def __call__(self, signal: Signal, examples: Sequence[Example], step: int) -> Signal:
        """Args: examples are those whose N response tokens the signal is about, in order."""
        reliable, privacy = self._section.reliable, self._section.privacy
        if reliable is not None:
            signal = reliable_signal(
                signal,
                mass=reliable.mass,
                top_k=reliable.top_k,
                temperature=reliable.temperature,
                tail=reliable.tail,
                divergence_temperature=self._divergence_temperature,
            )
        if privacy is not None:
            signal = self._hide(signal, examples, step, privacy)
        return signal

    def _hide(
        self, signal: Signal, examples: Sequence[Example], step: int, section: PrivacySection
    ) -> Signal:
        private, seeds = [], []
        for example in examples:
            text = draw_bits(*example.prompt, "response", *example.response)
            for place, hidden in enumerate(self._private_tokens(example, section)):
                private.append(float(hidden))
                seeds.append(draw_bits(self._seed, "privacy", step, text, place) if hidden else 0)
        return private_signal(
            signal,
            torch.tensor(private),
            seeds,
            temperature=section.temperature,
            noise=section.noise,
        )

    def _private_tokens(self, example: Example, section: PrivacySection) -> list[bool]:
        if example.has_labels:  # recorded text comes back in every pass
            if example not in self._private:
                self._private[example] = private_tokens(
                    self._tokenizer, example.response, section.patterns
                )
            return self._private[example]
        return private_tokens(self._tokenizer, example.response, section.patterns)


def private_tokens(
    tokenizer: PreTrainedTokenizerBase, response: Sequence[int], patterns: Sequence[str]
) -> list[bool]:
    """True for each token whose text overlaps a match of a pattern in the response's text."""
    ends = [
        len(tokenizer.decode(response[:length], clean_up_tokenization_spaces=False))
        for length in range(len(response) + 1)
    ]
    text = tokenizer.decode(response, clean_up_tokenization_spaces=False)
    spans = [match.span() for pattern in patterns for match in re.finditer(pattern, text)]
    return [
        any(start < max(end, begin + 1) and begin < stop for start, stop in spans)
        for begin, end in pairwise(ends)
    ]
