"""How a call is cut up, and what it will cost: bytes, FLOPs, least time.

Both models' logits are made tile by tile, small enough to stay in a cache until they are read. The
student's, turned into their gradient, are kept for a whole chunk, since every product with them
rewrites the float32 gradient of the head.

Legend: N tokens, V vocabulary, H student width, G teacher width, C tokens a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# By device: bytes of the student's logits in a chunk, and of the logits of both models in a tile.
_CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
_TILE_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
# Fewer rows make the products slow, and the head's gradient dear to rewrite.
_LEAST_CHUNK = {"cpu": 512, "cuda": 2048}
_LEAST_TILE = {"cpu": 128, "cuda": 1024}
_ROUND = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True)
class Tiling:
    """chunk: tokens whose logit gradients are held together, and multiplied back by one product.
    tile: tokens of a chunk that are projected together, by both heads."""

    chunk: int
    tile: int


@dataclass(frozen=True)
class Plan:
    """What one forward and backward pass of the loss costs.

    peak_bytes: predicted peak above the inputs.
    flops: floating-point operations of the matrix products.
    """

    tiling: Tiling
    peak_bytes: int
    flops: int

    def least_seconds(self, flops_per_second: float) -> float:
        """Time of the matrix products alone at the rate at which the device multiplies."""
        return self.flops / flops_per_second


def tiling(
    tokens: int,
    vocab: int,
    student_bytes: int,
    teacher_bytes: int,
    device_type: str,
    chunk_bytes: int | None = None,
) -> Tiling:
    """How to cut up a call so that chunks, and tiles in them, are about equal.

    Args:
        student_bytes, teacher_bytes: of one logit; 0 for a teacher that is not projected.
        chunk_bytes: of the logits held at a time. By default a constant of the device, or more
            where so few tokens would fit that the products became slow.

    Raises:
        ValueError: chunk_bytes is not positive.
    """
    if chunk_bytes is not None and chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, but is {chunk_bytes}.")
    kind = device_type if device_type in _ROUND else "cpu"
    both = vocab * (student_bytes + teacher_bytes)
    if chunk_bytes is not None:
        chunk = max(1, chunk_bytes // both)
        return Tiling(_equal(tokens, chunk, 1), _equal(min(tokens, chunk), chunk, 1))
    chunk = max(_LEAST_CHUNK[kind], _CHUNK_BYTES[kind] // (vocab * student_bytes))
    chunk = _equal(tokens, chunk, _ROUND[kind])
    tile = max(_LEAST_TILE[kind], _TILE_BYTES[kind] // both)
    return Tiling(chunk, _equal(chunk, tile, _ROUND[kind]))


def _equal(count: int, most: int, multiple: int) -> int:
    """Size of about equal parts of `count` that are multiples and at most `most`."""
    if count <= most:
        return max(1, count)
    part = -(-count // -(-count // most))
    return min(most, -(-part // multiple) * multiple)


def plan(
    tokens: int,
    vocab: int,
    student_width: int,
    teacher_width: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device_type: str = "cuda",
    trains_head: bool = True,
    chunk_bytes: int | None = None,
) -> Plan:
    """Cost of one call whose teacher is hidden states and a head, both in `dtype`.

    The peak holds a chunk's student logits, a tile's teacher logits, the head's gradient (with its
    float32 accumulator, where there are several chunks) and the gradient of the hidden states.
    """
    size = dtype.itemsize
    exact = torch.promote_types(dtype, torch.float32).itemsize
    cut = tiling(tokens, vocab, size, size, device_type, chunk_bytes)
    logits = (cut.chunk + cut.tile) * vocab * size
    several = tokens > cut.chunk and exact > size
    head = vocab * student_width * (size + (exact if several else 0)) if trains_head else 0
    grad_hidden = 2 * tokens * student_width * size
    products = 2 * tokens * vocab * (teacher_width + student_width * (3 if trains_head else 2))
    return Plan(cut, logits + head + grad_hidden, products)
