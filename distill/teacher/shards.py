"""Compute a teacher's signals on recorded texts, a shard at a time; see `store`.

Legend: N response tokens, G teacher width, K stored tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from draftsmith.distill.batch import Example
from draftsmith.distill.manifest import flush_to_disk
from draftsmith.distill.progress import track
from draftsmith.distill.teacher.layout import Layout
from draftsmith.distill.teacher.live import LiveTeacher
from draftsmith.distill.teacher.store import Part, StoredText, shard_name
from draftsmith.kernels.top_k import top_k_signal


@dataclass(frozen=True)
class Batch:
    """Texts whose signals are computed together."""

    part: Part
    examples: Sequence[Example]

    @property
    def tokens(self) -> int:
        return sum(len(example.response) for example in self.examples)


def slices(examples: Sequence[Example], size: int) -> list[Sequence[Example]]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def cut_shards(batches: Sequence[Batch], tokens_a_shard: int) -> list[list[Batch]]:
    """Whole batches, as many as fit."""
    shards: list[list[Batch]] = [[]]
    room = tokens_a_shard
    for batch in batches:
        if shards[-1] and batch.tokens > room:
            shards.append([])
            room = tokens_a_shard
        shards[-1].append(batch)
        room -= batch.tokens
    return shards


def texts_of(shards: Sequence[Sequence[Batch]]) -> list[StoredText]:
    texts = []
    for number, shard in enumerate(shards):
        row = 0
        for batch in shard:
            for example in batch.examples:
                texts.append(StoredText(batch.part, example.prompt, example.response, number, row))
                row += len(example.response)
    return texts


def write_signals(
    teacher: LiveTeacher,
    partial: Path,
    shards: Sequence[Sequence[Batch]],
    layout: Layout,
    temperature: float,
) -> None:
    finished = [(partial / shard_name(number)).is_file() for number in range(len(shards))]
    sizes = [sum(len(batch.examples) for batch in shard) for shard in shards]
    done = sum(size for size, there in zip(sizes, finished, strict=True) if there)
    with track("teacher signals", sum(sizes), done) as bar:
        for number, shard in enumerate(shards):
            if finished[number]:
                continue
            rows = []
            for batch in shard:
                # Acceptance is measured at the temperature of serving, from logits at 1.
                rows.append(
                    _rows(teacher, batch, layout, temperature if batch.part == "train" else 1.0)
                )
                bar.advance(len(batch.examples))
            tensors = {name: torch.cat([one[name] for one in rows]) for name in rows[0]}
            path = partial / shard_name(number)
            draft = path.with_suffix(".partial")
            save_file(tensors, draft)
            flush_to_disk(draft)
            draft.replace(path)


def _rows(
    teacher: LiveTeacher, batch: Batch, layout: Layout, temperature: float
) -> dict[str, Tensor]:
    if layout.top_k is None:
        return {"hidden": teacher.signal(batch.examples).hidden_NG.cpu()}
    # From exact products: rounded logits would move the order of the k.
    signal = teacher.signal(batch.examples, torch.float32)
    tokens = [token for example in batch.examples for token in example.response]
    token_N = torch.tensor(tokens, device=teacher.device)
    sparse = top_k_signal(signal, layout.top_k, token_N, temperature=temperature)
    rows = {"ids": sparse.ids_NK.int().cpu(), "log_p": sparse.log_p_NK.cpu()}
    if sparse.log_tail_N is not None:
        rows["log_tail"] = sparse.log_tail_N.cpu()
    return rows
