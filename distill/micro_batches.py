"""Cut a process's share of a step into micro-batches of similar lengths.

All processes get equally many: ZeRO 2 and 3 exchange gradients and weights in every one of them,
and would wait forever for a process that has fewer.
"""

from __future__ import annotations

from collections.abc import Sequence

from draftsmith.distill import distributed
from draftsmith.distill.batch import Example
from draftsmith.distill.sections import TrainSection


def micro_batches(examples: Sequence[Example], train: TrainSection) -> list[list[Example]]:
    """Sequences of similar lengths together, which leaves little padding."""
    ordered = sorted(examples, key=lambda example: example.length)
    if train.micro_batch_tokens is None:
        size = train.micro_batch_size
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]
    parts = bounded_by_tokens(ordered, train.micro_batch_tokens)
    return split_up(parts, distributed.max_over_processes(len(parts)))


def bounded_by_tokens(ordered: Sequence[Example], limit: int) -> list[list[Example]]:
    """Consecutive groups of at most `limit` tokens, padding included; at least one example each.

    Args:
        ordered: by length, shortest first.
    """
    parts: list[list[Example]] = [[]]
    for example in ordered:
        if parts[-1] and (len(parts[-1]) + 1) * example.length > limit:
            parts.append([])
        parts[-1].append(example)
    return parts


def split_up(parts: list[list[Example]], count: int) -> list[list[Example]]:
    """Halve groups of several examples, the largest ones first, until there are `count`."""
    parts = list(parts)
    while len(parts) < count:
        widest = max(range(len(parts)), key=lambda place: len(parts[place]))
        part = parts[widest]
        assert len(part) > 1, "every process has equally many examples"
        parts[widest : widest + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return parts
