"""Run the row functions over a chunk, a few rows at a time so that they stay in cache.

Compiled rows come from torch.compile: C++ on a CPU, cached on disk between processes. What they
compute is `rows_torch.row_block`, line for line.

Legend: C tokens a chunk, R rows of a block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from draftsmith.kernels.objective import Knobs, RowTerms
from draftsmith.kernels.rows_torch import Block, row_block

_BLOCK_BYTES = {"cpu": 6 * 2**20, "cuda": 256 * 2**20}
_COMPILATIONS = 256
"""How many versions torch.compile may keep: one for each divergence, set of terms and dtype."""


def eager_rows(block: Block, knobs: Knobs, terms: RowTerms, gradient: bool) -> Tensor:
    """rows_torch.row_block on blocks of rows, in torch's own operations."""
    parts = blocks_of(block)
    return torch.cat([row_block(part, knobs, terms, gradient) for part in parts])


def compiled_rows(block: Block, knobs: Knobs, terms: RowTerms, gradient: bool) -> Tensor:
    """The same through torch.compile; a single row is not worth a version of its own."""
    if block.student_RV.shape[0] == 1:
        return row_block(block, knobs, terms, gradient)
    losses = []
    # Beyond torch's default of 8 versions it would fall back without a word.
    with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):
        for part in blocks_of(block):
            _let_rows_vary(part)
            losses.append(_compiled()(part, knobs, terms, gradient))
    return torch.cat(losses)


def blocks_of(block: Block) -> Iterator[Block]:
    """Equal parts of a block, none of them a single row where there are several."""
    rows, vocab = block.student_RV.shape
    budget = _BLOCK_BYTES.get(block.student_RV.device.type, _BLOCK_BYTES["cpu"])
    most = max(2 * torch.get_num_threads(), budget // (4 * vocab))
    size = -(-rows // -(-rows // most))
    for start in range(0, rows, size):
        part = slice(start, start + size)
        yield block._replace(
            student_RV=block.student_RV[part],
            teacher_RV=None if block.teacher_RV is None else block.teacher_RV[part],
            weight_R=block.weight_R[part],
            label_R=None if block.label_R is None else block.label_R[part],
        )


@lru_cache
def _compiled() -> Callable[..., Tensor]:
    rows: Any = torch.compile(row_block, fullgraph=True)
    compiled: Callable[..., Tensor] = rows
    return compiled


def _let_rows_vary(block: Block) -> None:
    for tensor in (block.student_RV, block.teacher_RV, block.weight_R, block.label_R):
        if tensor is not None:
            torch._dynamo.mark_dynamic(tensor, 0)
