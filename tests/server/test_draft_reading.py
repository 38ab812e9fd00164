"""A draft that rests, and reads what it missed: the account of it, and real engines (K = 3)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from draftsmith.server.engine.draft_reading import Gap, Ledger, Row, passes
from tests.server.processes import MODEL, GatewayProcess

K = 3
BLOCKS = list(range(100, 120))


def row(start: int, end: int, name: str = "a", blocks: list[int] = BLOCKS) -> Row:
    return Row(name, start, end, blocks)


def test_a_draft_that_never_rests_misses_nothing() -> None:
    ledger = Ledger(block_size=4)
    for start, end in ((0, 9), (9, 11), (11, 15)):
        assert ledger.read_until(row(start, end)) == start
        ledger.step([row(start, end)], read=True)
    # A prompt that shares two blocks, and one whose cached part ends inside a block.
    assert ledger.read_until(row(8, 12, "b")) == 8
    assert ledger.read_until(row(7, 12, "c")) == 7


def test_what_was_missed_is_known_until_it_was_read() -> None:
    ledger = Ledger(block_size=4)
    ledger.step([row(0, 6)], read=True)
    for start in range(6, 11):
        ledger.step([row(start, start + 1)], read=False)
    assert ledger.read_until(row(11, 12)) == 6
    # Another request finds the first three blocks in the cache: the draft knows the first.
    assert ledger.read_until(row(11, 12, "b")) == 4
    ledger.step([row(11, 12)], read=True)
    assert ledger.read_until(row(12, 13)) == 12
    assert ledger.read_until(row(11, 12, "b")) == 11


def test_refused_proposals_are_not_read() -> None:
    """A step of four tokens that ends with two of them: the next begins where it ends."""
    ledger = Ledger(block_size=4)
    ledger.step([row(0, 10)], read=True)
    ledger.step([row(10, 12)], read=True)
    ledger.step([row(12, 13)], read=False)
    assert ledger.read_until(row(13, 14)) == 12


def test_a_request_that_is_begun_anew_has_other_blocks() -> None:
    ledger = Ledger(block_size=4)
    ledger.step([row(0, 10)], read=True)
    ledger.step([row(10, 11)], read=True)
    others = [7, 8, 9]
    ledger.step([row(0, 8, "b", others)], read=False)
    assert ledger.read_until(row(8, 12, "a", others)) == 0  # preempted, and resumed on b's blocks


def test_another_draft_has_read_nothing() -> None:
    ledger = Ledger(block_size=4)
    ledger.step([row(0, 10)], read=True)
    ledger.forget()
    assert ledger.read_until(row(10, 11)) == 0
    assert ledger.read_until(row(8, 12, "b")) == 0
    ledger.step([row(10, 11)], read=True)
    assert ledger.read_until(row(8, 12, "b")) == 8
    assert ledger.read_until(row(8, 12, "c", [50, 51, 52])) == 0


def test_requests_that_are_over_are_forgotten() -> None:
    ledger = Ledger(block_size=4)
    ledger.step([row(0, 4), row(0, 4, "b", [50])], read=False)
    ledger.keep_only({"b"})
    assert ledger.read_until(row(4, 5, "b", [50, 51])) == 0
    # Judged by its blocks again, as one that was never seen.
    ledger.step([row(0, 4, "c")], read=True)
    assert ledger.read_until(row(4, 5)) == 4


def test_passes_hold_no_more_than_the_drafts_buffers() -> None:
    gaps = [Gap(0, 2, 9), Gap(1, 0, 3), Gap(2, 5, 16)]
    parts = list(passes(gaps, 8))
    assert all(sum(end - start for _, start, end in part) <= 8 for part in parts)
    assert all(len({one.row for one in part}) == len(part) for part in parts)
    read = [(one.row, at) for part in parts for one in part for at in range(one.start, one.end)]
    assert read == [(one.row, at) for one in gaps for at in range(one.start, one.end)]
    assert list(passes([], 8)) == []


def complete(gateway: GatewayProcess, prompt: list[int], **options: Any) -> dict[str, Any]:
    lookahead = options.pop("lookahead", K)
    extra = {"ignore_eos": True, "speculation": {"num_tokens": lookahead}}
    create: Any = gateway.openai().completions.create
    answer = create(
        model=MODEL, prompt=prompt, temperature=0, extra_body=extra, **{"max_tokens": 40} | options
    )
    found: dict[str, Any] = answer.metrics["speculative_decoding"]
    return found


@pytest.mark.parametrize("length", [70, 300])
def test_a_prompt_that_was_computed_while_the_draft_rested(
    gateway: GatewayProcess, length: int
) -> None:
    """The target finds it in its cache; a draft that had not read it would propose nonsense.

    300 tokens are more than a pass of this draft can read.
    """
    prompt = [(7 * at + length) % 290 + 3 for at in range(length)]
    rested = complete(gateway, prompt, lookahead=0)
    assert rested["num_draft_tokens"] == 0
    assert complete(gateway, prompt)["draft_acceptance_rate"] == 1.0


def test_a_request_that_joins_one_without_proposals(gateway: GatewayProcess) -> None:
    """The draft reads what the first has said so far, and is right about the second."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(complete, gateway, [5, 6, 7, 8] * 9, lookahead=0, max_tokens=600)
        for place in range(4):
            joined = complete(gateway, [9 + place, 77, 12, 150] * 5)
            assert joined["draft_acceptance_rate"] == 1.0
        assert first.result()["num_draft_tokens"] == 0
