"""The replay buffer: the newest ones, in order, whole after a checkpoint."""

from __future__ import annotations

import json

from draftsmith.distill.batch import Example
from draftsmith.distill.replay import ReplayBuffer


def example(number: int) -> Example:
    return Example((number, 1), (number, 2, 3), "student")


def test_the_oldest_are_dropped() -> None:
    buffer = ReplayBuffer(3)
    buffer.add([example(1), example(2)])
    buffer.add([example(3), example(4)])
    assert [buffer[place].prompt[0] for place in range(len(buffer))] == [2, 3, 4]
    assert {buffer[place].source for place in range(3)} == {"replay"}


def test_without_capacity_it_stays_empty() -> None:
    buffer = ReplayBuffer(0)
    buffer.add([example(1)])
    assert len(buffer) == 0


def test_the_state_is_plain_and_whole() -> None:
    buffer, other = ReplayBuffer(3), ReplayBuffer(3)
    buffer.add([example(number) for number in range(5)])
    other.add([example(9)])
    other.restore(json.loads(json.dumps(buffer.state())))
    assert [other[place] for place in range(3)] == [buffer[place] for place in range(3)]
