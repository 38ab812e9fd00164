"""Responses that the student wrote earlier, to train on again instead of generating.

Every process holds the same buffer, filled in the order of step and place, so that what is
replayed depends on no split; it lies in the checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from draftsmith.distill.batch import Example


class ReplayBuffer:
    """At most `capacity` examples, the newest ones; with 0 it stays empty."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._examples: deque[Example] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: int) -> Example:
        return self._examples[place]

    def add(self, examples: Sequence[Example]) -> None:
        """Keep `examples`, in this order, and drop the oldest ones beyond the capacity."""
        self._examples.extend(replace(example, source="replay") for example in examples)

    def state(self) -> list[Any]:
        return [[list(one.prompt), list(one.response), one.version] for one in self._examples]

    def restore(self, state: list[Any]) -> None:
        self._examples.clear()
        for prompt, response, *version in state:  # older checkpoints hold no version
            written = version[0] if version else None
            self._examples.append(Example(tuple(prompt), tuple(response), "replay", written))
