"""Examples of the steps to come, which were drawn together and not trained on yet.

They were sampled with earlier weights, so they go into the checkpoint: a run that is stopped
between two rollouts could not draw them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draftsmith.distill import distributed
from draftsmith.distill.batch import Example


class Ahead:
    """This process's share of each step's examples, by step."""

    def __init__(self) -> None:
        self._by_step: dict[int, list[Example]] = {}

    def __contains__(self, step: int) -> bool:
        return step in self._by_step

    def add(self, steps: Sequence[int], examples: Sequence[list[Example]]) -> None:
        self._by_step |= dict(zip(steps, examples, strict=True))

    def pop(self, step: int) -> list[Example]:
        return self._by_step.pop(step)

    def state(self) -> dict[int, list[Any]]:
        """The examples of all processes, in the order of their places in the batch."""
        parts = distributed.gather_objects(self._by_step)
        return {
            step: [
                [list(example.prompt), list(example.response), example.source, example.version]
                for places in zip(*(part[step] for part in parts), strict=True)
                for example in places
            ]
            for step in self._by_step
        }

    def restore(self, state: dict[int, list[Any]]) -> None:
        rank, size = distributed.rank(), distributed.world_size()
        self._by_step = {
            step: [
                Example(tuple(prompt), tuple(response), source, version)
                for prompt, response, source, version in examples[rank::size]
            ]
            for step, examples in state.items()
        }
