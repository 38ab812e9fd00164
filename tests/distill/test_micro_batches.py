"""Micro-batches: bounded, complete, and equally many everywhere."""

from __future__ import annotations

import random

from draftsmith.distill.batch import Example
from draftsmith.distill.micro_batches import bounded_by_tokens, split_up


def examples(lengths: list[int]) -> list[Example]:
    return [Example((0,), tuple([row] * (length - 1)), "student") for row, length in
            enumerate(sorted(lengths))]  # fmt: skip


def padded(part: list[Example]) -> int:
    return len(part) * max(one.length for one in part)


def test_padding_counts_and_a_long_sequence_is_alone() -> None:
    parts = bounded_by_tokens(examples([2, 2, 3, 5, 40]), 10)
    assert [[one.length for one in part] for part in parts] == [[2, 2, 3], [5], [40]]


def test_every_example_once_and_every_bound_kept() -> None:
    chance = random.Random(0)
    for _ in range(200):
        ordered = examples([chance.randint(2, 60) for _ in range(chance.randint(1, 12))])
        limit = chance.randint(1, 200)
        parts = bounded_by_tokens(ordered, limit)
        assert [one for part in parts for one in part] == ordered
        assert all(padded(part) <= limit or len(part) == 1 for part in parts)
        for count in range(len(parts), len(ordered) + 1):
            more = split_up(parts, count)
            assert len(more) == count
            assert [one for part in more for one in part] == ordered
            assert all(padded(part) <= limit or len(part) == 1 for part in more)
