"""Two processes with unequal parts of the vocabulary against one that holds all of it.

Run as a program, this file is one of the two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.objective import Objective
from draftsmith.kernels.signal import HiddenSignal, LogitsSignal, SparseSignal
from draftsmith.kernels.vocab_parallel import vocab_parallel_divergence
from tests.kernels.textbook import KNOBS

N, V, H, G, CUT = 9, 29, 5, 4, 17


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"hidden": (N, H), "head": (V, H), "bias": (V,), "states": (N, G), "teacher": (V, G)}
    tensors = {
        name: torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
        for name, shape in shapes.items()
    }
    tensors["weight"] = torch.linspace(0, 1, N, dtype=dtype)
    return tensors


def compare(objective: Objective, backend: str, dtype: torch.dtype, part: slice) -> None:
    one = inputs(dtype)
    hidden, head, bias = (one[name].clone().requires_grad_() for name in ("hidden", "head", "bias"))
    label_N = torch.arange(N) * 3
    expected, expected_N = fused_linear_divergence(
        hidden, head, HiddenSignal(one["states"], one["teacher"]), one["weight"],
        divergence=objective.divergence, **KNOBS, temperature=objective.temperature,
        interpolation=objective.interpolation, label_N=label_N,
        label_weight=objective.label_weight, softcap=objective.softcap, student_bias_V=bias,
        backend="eager",
    )  # fmt: skip
    wanted = torch.autograd.grad(expected, (hidden, head, bias))

    own = [one["head"][part].clone(), one["bias"][part].clone()]
    own_head, own_bias = (rows.requires_grad_() for rows in own)
    assert dist.group.WORLD is not None
    loss, loss_N = vocab_parallel_divergence(
        hidden, own_head, HiddenSignal(one["states"], one["teacher"][part]), one["weight"],
        objective=objective, group=dist.group.WORLD, label_N=label_N, student_bias_P=own_bias,
        chunk_bytes=4 * V * 16, backend=backend,
    )  # fmt: skip
    got = torch.autograd.grad(2 * loss, (hidden, own_head, own_bias))
    exact = dtype == torch.float64
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12} if exact else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(loss, expected, **close)
    torch.testing.assert_close(loss_N, expected_N, **close)
    expected_parts = (2 * wanted[0], 2 * wanted[1][part], 2 * wanted[2][part])
    torch.testing.assert_close(got, expected_parts, **close)


def main() -> None:
    dist.init_process_group("gloo")
    part = slice(0, CUT) if dist.get_rank() == 0 else slice(CUT, V)
    backend = sys.argv[1]
    dtype = torch.float32 if backend == "triton" else torch.float64
    for name in DIVERGENCES:
        compare(Objective(name, **KNOBS), backend, dtype, part)
    every = Objective(
        "jsd", **KNOBS, temperature=1.7, interpolation=0.4, label_weight=0.5, softcap=3.0
    )
    compare(every, backend, dtype, part)
    dist.barrier()
    os._exit(0)  # taking gloo's threads down aborted about one process in ten


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_two_processes_are_as_one(backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, __file__, backend],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_sparse_teacher_cannot_be_split() -> None:
    ids_NK = torch.zeros(N, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="teacher must be a HiddenSignal or a LogitsSignal"):
        vocab_parallel_divergence(
            torch.zeros(N, H),
            torch.zeros(V, H),
            SparseSignal(ids_NK, torch.zeros(N, 1), V),  # type: ignore[arg-type]
            torch.ones(N),
            objective=Objective(),
            group=None,  # type: ignore[arg-type]
        )


def test_shapes_are_checked_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="weight_N must have shape"):
        vocab_parallel_divergence(
            torch.zeros(N, H),
            torch.zeros(V, H),
            LogitsSignal(torch.zeros(N, V)),
            torch.ones(N + 1),
            objective=Objective(),
            group=None,  # type: ignore[arg-type]
        )


if __name__ == "__main__":
    main()
