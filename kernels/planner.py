"""How many tokens a chunk holds, and what a call will cost: bytes, FLOPs, least time.

A larger chunk reads both heads and rewrites the head's gradient less often; a smaller one needs
less memory and, on a CPU, stays in cache.

Legend: N tokens, V vocabulary, H student width, G teacher width, C tokens a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_CPU_BUDGET = 64 * 2**20
_GPU_BUDGET = 2 * 2**30
_ROUND = {"cpu": 32, "cuda": 256}
# Below this many rows, the float32 head gradient costs more to rewrite than its product to take.
_FEWEST = {"cpu": 256, "cuda": 1024}


@dataclass(frozen=True)
class Plan:
    """What one forward and backward pass of the loss costs.

    chunk: tokens a chunk.
    peak_bytes: predicted peak above the inputs.
    flops: floating-point operations of the matrix products.
    """

    chunk: int
    peak_bytes: int
    flops: int

    def least_seconds(self, flops_per_second: float) -> float:
        """Time of the matrix products alone at the rate at which the device multiplies."""
        return self.flops / flops_per_second


def chunk_rows(
    tokens: int,
    vocab: int,
    bytes_per_token_and_id: int,
    device_type: str,
    budget: int | None = None,
) -> int:
    """Tokens a chunk such that all chunks are about equal and fit into the budget.

    Args:
        bytes_per_token_and_id: of the logits that a chunk holds, both models together.
        budget: bytes of a chunk's logits. By default 64 MiB on a CPU and 2 GiB on a GPU, and
            more where so few tokens would fit that the products became slow.

    Raises:
        ValueError: the budget is not positive.
    """
    if budget is not None and budget <= 0:
        raise ValueError(f"chunk_bytes must be positive, but is {budget}.")
    kind = device_type if device_type in _ROUND else "cpu"
    default = _GPU_BUDGET if kind == "cuda" else _CPU_BUDGET
    most = max(1, (budget or default) // (vocab * bytes_per_token_and_id))
    if budget is None:
        most = max(most, _FEWEST[kind])
    if tokens <= most:
        return max(1, tokens)
    equal = -(-tokens // -(-tokens // most))
    return min(most, -(-equal // _ROUND[kind]) * _ROUND[kind])


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

    The peak holds the chunk's logits of both models, the float32 head gradient with its copy in
    the head's dtype, and the gradient of the hidden states.
    """
    size = dtype.itemsize
    chunk = chunk_rows(tokens, vocab, 2 * size, device_type, chunk_bytes)
    exact = torch.promote_types(dtype, torch.float32).itemsize
    head = vocab * student_width * (exact + (size if size < exact else 0)) if trains_head else 0
    logits = 2 * chunk * vocab * size
    grad_hidden = 2 * tokens * student_width * size
    products = 2 * tokens * vocab * (teacher_width + student_width * (3 if trains_head else 2))
    return Plan(chunk, head + logits + grad_hidden, products)
