"""The draft rests in steps that propose nothing, and reads what it missed before it proposes again.

vLLM lets its draft read every token in every step, also where no token is drafted: lookahead 0
would cost a pass of the draft, and a server whose draft does not pay at the present load would be
slower than one without a draft. Here the draft does nothing in such a step. How far it has read
each request is kept in `Ledger`; before it proposes again it reads the rest in one pass.

Only what is proposed depends on it, never what is answered. On the CPU only: with a GPU vLLM
overlaps its steps and captures the draft's passes as graphs of a fixed length.

Legend: R requests of a step, N tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

_READING = "_draftsmith_reading"


class Gap(NamedTuple):
    """Positions `start` to `end` (not included) of the request in row `row`."""

    row: int
    start: int
    end: int


@dataclass(frozen=True)
class Row:
    """One request in one step.

    start: tokens computed before the step. end: those after it, without refused proposals.
    blocks: of the cache, in order; enough of them for all positions.
    """

    name: str
    start: int
    end: int
    blocks: Sequence[int]


class Ledger:
    """How far the draft has read, by request and by block of the cache.

    Blocks outlive requests: a prompt that was computed before is found again by its blocks, and
    the draft may have been at rest when they were filled. A block counts as unread where the draft
    lacks any of its computed positions.
    """

    def __init__(self, block_size: int) -> None:
        """`block_size`: positions of a block."""
        self.block_size = block_size
        self._read: dict[str, int] = {}
        self._started: dict[str, int] = {}
        self._unread_by_default = False
        self._other_blocks: set[int] = set()
        """Those that are not as by default."""

    def read_until(self, row: Row) -> int:
        """Positions from the first that the draft has read without a gap, at most `row.start`."""
        begun_anew = row.start < self._started.get(row.name, 0)
        known = None if begun_anew else self._read.get(row.name)
        if known is not None:
            return min(known, row.start)
        shared = row.blocks[: -(-row.start // self.block_size)]
        first = next((at for at, one in enumerate(shared) if self._is_unread(one)), None)
        return row.start if first is None else first * self.block_size

    def step(self, rows: Sequence[Row], *, read: bool) -> None:
        """After a step: the draft has read all of `rows`, or rested."""
        for row in rows:
            before = self.read_until(row)
            after = row.end if read else before
            self._read[row.name], self._started[row.name] = after, row.start
            whole = after // self.block_size
            for at in range(before // self.block_size, -(-row.end // self.block_size)):
                self._mark(row.blocks[at], unread=at >= whole and after < row.end)

    def keep_only(self, names: set[str]) -> None:
        """Forget requests that are over."""
        for name in self._read.keys() - names:
            del self._read[name], self._started[name]

    def forget(self) -> None:
        """Another draft has read nothing yet."""
        self._read.clear()
        self._started.clear()
        self._other_blocks.clear()
        self._unread_by_default = True

    def _is_unread(self, block: int) -> bool:
        return (block in self._other_blocks) != self._unread_by_default

    def _mark(self, block: int, *, unread: bool) -> None:
        if unread == self._unread_by_default:
            self._other_blocks.discard(block)
        else:
            self._other_blocks.add(block)


def let_drafts_rest() -> None:
    """Wrap the function in which vLLM's runner asks its draft for proposals."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    propose = GPUModelRunner.propose_draft_token_ids
    if hasattr(propose, _READING):
        return

    def propose_or_rest(
        self: Any, scheduler_output: Any, sampled: Any, *args: Any, **options: Any
    ) -> Any:
        if not _can_rest(self):
            return propose(self, scheduler_output, sampled, *args, **options)
        metadata, verified = _attention_metadata(args, options)
        ledger = _ledger(self)
        ledger.keep_only(self.requests.keys())
        rows = list(_rows(self, scheduler_output, sampled, metadata, verified))
        rests = scheduler_output.num_spec_tokens_to_schedule == 0
        if rests:
            self._draft_probs = self._draft_prob_req_ids = None
            proposals = torch.empty(len(rows), 0, dtype=torch.int64)
        else:
            gaps = [
                Gap(at, begin, row.start)
                for at, row in enumerate(rows)
                if (begin := ledger.read_until(row)) < row.start
            ]
            for part in passes(gaps, self.drafter.max_num_tokens):
                _read(self, metadata, part)
            proposals = propose(self, scheduler_output, sampled, *args, **options)
        ledger.step(rows, read=not rests)
        return proposals

    setattr(propose_or_rest, _READING, True)
    GPUModelRunner.propose_draft_token_ids = propose_or_rest


def forget_reading(runner: Any) -> None:
    """Called when other weights were loaded into the draft."""
    if _can_rest(runner):
        _ledger(runner).forget()


def passes(gaps: Sequence[Gap], most_tokens: int) -> Iterator[list[Gap]]:
    """Cut `gaps` into passes of at most `most_tokens`, a request at most once in each."""
    part: list[Gap] = []
    left = most_tokens
    for row, start, end in gaps:
        while start < end:
            taken = min(left, end - start)
            part.append(Gap(row, start, start + taken))
            start, left = start + taken, left - taken
            if left == 0:
                yield part
                part, left = [], most_tokens
    if part:
        yield part


def _can_rest(runner: Any) -> bool:
    """Whether the draft is a model of its own that needs nothing of the target but its tokens."""
    speculation = runner.speculative_config
    if speculation is None or not speculation.uses_draft_model():
        return False
    drafter = runner.drafter
    special = (
        drafter.supports_mm_inputs,
        drafter.uses_mrope,
        drafter.use_heterogeneous_vocab,
        drafter.parallel_drafting,
        speculation.disable_padded_drafter_batch,
        runner.use_async_scheduling,
    )
    return not any(special)


def _ledger(runner: Any) -> Ledger:
    if _READING not in vars(runner):
        setattr(runner, _READING, Ledger(runner.drafter.block_size))
    found: Ledger = getattr(runner, _READING)
    return found


def _attention_metadata(args: Sequence[Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Of the step, and what it verifies, from the arguments of `propose_draft_token_ids`."""
    assert len(args) == 7, f"vLLM asks for proposals in another way now: {len(args)}, {options}"
    verified, metadata = args[4:6]
    return metadata, verified


def _rows(
    runner: Any, scheduler_output: Any, sampled_RK: torch.Tensor, metadata: Any, verified: Any
) -> Iterator[Row]:
    batch = runner.input_batch
    block_RL = metadata.block_table_tensor.numpy()
    accepted_R = (sampled_RK != -1).sum(dim=1).tolist()
    drafted_R = [0] * batch.num_reqs if verified is None else verified.num_draft_tokens
    for at, name in enumerate(batch.req_ids):
        start = int(batch.num_computed_tokens_cpu[at])
        end = start + scheduler_output.num_scheduled_tokens[name]
        if drafted_R[at]:
            end -= drafted_R[at] + 1 - accepted_R[at]
        yield Row(name, start, end, block_RL[at])


def _read(runner: Any, metadata: Any, gaps: Sequence[Gap]) -> None:
    """One pass of the draft over `gaps`, for its keys and values only."""
    from vllm.forward_context import set_forward_context

    drafter = runner.drafter
    rows = [gap.row for gap in gaps]
    position_N = torch.cat([torch.arange(gap.start, gap.end) for gap in gaps])
    tokens = [runner.input_batch.token_ids_cpu[row, start:end] for row, start, end in gaps]
    token_N = torch.cat([torch.from_numpy(one) for one in tokens])
    lengths = torch.tensor([gap.end - gap.start for gap in gaps])
    owner_N = torch.repeat_interleave(torch.tensor(rows), lengths)
    block_N = metadata.block_table_tensor[owner_N, position_N // drafter.block_size].long()
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    ends = torch.tensor([gap.end for gap in gaps], dtype=torch.int32)
    count = len(position_N)
    common = type(metadata)(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=ends,
        num_reqs=len(gaps),
        num_actual_tokens=count,
        max_query_len=int(lengths.max()),
        max_seq_len=int(ends.max()),
        block_table_tensor=metadata.block_table_tensor[rows],
        slot_mapping=block_N * drafter.block_size + position_N % drafter.block_size,
    )
    drafter.input_ids[:count] = token_N
    drafter._set_positions(count, position_N)
    _, per_layer = drafter.build_per_group_and_layer_attn_metadata(common)
    inputs, size = drafter.build_model_inputs_first_pass(count, count, None)
    slots = drafter._get_slot_mapping(size, common.slot_mapping)
    with set_forward_context(per_layer, drafter.vllm_config, num_tokens=count, slot_mapping=slots):
        drafter.model(**inputs)
