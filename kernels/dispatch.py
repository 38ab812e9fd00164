"""Which code computes the rows, chosen once and said: never a silent fallback.

eager    torch operations as they stand
torch    the same functions, compiled where a compiler is and it pays, else eager
triton   the Triton kernels: an NVIDIA GPU, or Triton's interpreter
auto     triton on an NVIDIA GPU with Triton, else torch
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from draftsmith.kernels.objective import Knobs, RowTerms
from draftsmith.kernels.rows_compiled import compiled_rows, eager_rows
from draftsmith.kernels.rows_sparse import SparseTeacher, sparse_rows
from draftsmith.kernels.rows_torch import Block

BACKENDS = ("auto", "torch", "eager", "triton")
_LEAST_COMPILED_VOCAB = 4096
"""Smaller vocabularies are done before a compiler has started."""

_log = logging.getLogger(__name__)

RowFunction = Callable[[Block, SparseTeacher | None, Knobs, RowTerms, bool], Tensor]
"""(block, sparse teacher, knobs, terms, gradient) -> loss_C; see rows_torch.row_block."""


def check_backend(backend: str) -> None:
    """Raises ValueError for a name that is not in BACKENDS."""
    if backend not in BACKENDS:
        raise ValueError(f"Unknown backend '{backend}': choose one of {', '.join(BACKENDS)}.")


def row_function(backend: str, device: torch.device, dtype: torch.dtype, vocab: int) -> RowFunction:
    """The code that computes rows of this dtype on this device; its name is logged once.

    Raises:
        ValueError: unknown backend, or triton where it cannot run.
    """
    name, reason = choose(backend, device, dtype, vocab)
    _say_once(name, reason)
    if name == "triton":
        from draftsmith.kernels.rows_triton import triton_rows  # Triton is only there for a GPU

        dense_rows = triton_rows
    else:
        dense_rows = compiled_rows if name == "compiled" else eager_rows

    def rows(
        block: Block, sparse: SparseTeacher | None, knobs: Knobs, terms: RowTerms, gradient: bool
    ) -> Tensor:
        if sparse is not None:
            return sparse_rows(block, sparse, knobs, terms, gradient)
        return dense_rows(block, knobs, terms, gradient)

    return rows


def choose(backend: str, device: torch.device, dtype: torch.dtype, vocab: int) -> tuple[str, str]:
    """`eager`, `compiled` or `triton`, and why.

    Raises:
        ValueError: unknown backend, or triton where it cannot run.
    """
    check_backend(backend)
    if backend == "eager":
        return "eager", "asked for"
    if backend == "triton":
        _check_triton(device, dtype)
        return "triton", "asked for"
    if backend == "auto" and device.type == "cuda" and dtype != torch.float64:
        if _has_triton():
            return "triton", "an NVIDIA GPU"
        return _torch_rows(device, dtype, vocab, "Triton is not installed; ")
    return _torch_rows(device, dtype, vocab, "")


def _torch_rows(device: torch.device, dtype: torch.dtype, vocab: int, why: str) -> tuple[str, str]:
    if dtype == torch.float64:
        return "eager", why + "float64 is for checks"
    if vocab < _LEAST_COMPILED_VOCAB:
        return "eager", why + f"a vocabulary below {_LEAST_COMPILED_VOCAB}"
    if device.type == "cuda":
        if _has_triton():
            return "compiled", why + "torch.compile"
        return "eager", why + "torch.compile needs Triton on a GPU"
    if device.type == "cpu":
        if shutil.which(os.environ.get("CXX", "g++")) is not None:
            return "compiled", why + "a C++ compiler was found"
        return "eager", why + "there is no C++ compiler (g++): rows take several times as long"
    return "eager", why + f"no compiler is known for {device.type}"


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _check_triton(device: torch.device, dtype: torch.dtype) -> None:
    if not _has_triton():
        raise ValueError("backend 'triton' needs the package triton, which is not installed.")
    if dtype == torch.float64:
        raise ValueError("backend 'triton' computes in float32; use 'torch' for float64 inputs.")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        raise ValueError(
            f"backend 'triton' needs an NVIDIA GPU, but the tensors are on {device.type}; use "
            "'auto', or set TRITON_INTERPRET=1 before Python starts to test under its interpreter."
        )


@lru_cache
def _say_once(name: str, reason: str) -> None:
    level = logging.WARNING if "no C++ compiler" in reason else logging.INFO
    _log.log(level, "divergence rows: %s (%s)", name, reason)
