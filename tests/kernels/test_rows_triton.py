"""Triton's rows against torch's, under Triton's interpreter where there is no GPU.

The interpreter must be asked for before Triton is imported, so that the tests of this file run in
a process of their own: see the last function.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from draftsmith.kernels.dispatch import choose
from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.objective import Knobs, Objective
from draftsmith.kernels.rows_torch import Block, OneProcess, row_block
from tests.kernels.textbook import KNOBS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
runs_triton = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="run by test_under_the_interpreter"
)
pytest.importorskip("triton")

# Wider than a block of 8192, and a multiple of nothing.
WIDE, NARROW = 8211, 53


def rows(vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Ordinary, equal, agreeing and disagreeing point masses, excluded tokens, weight 0."""
    generator = torch.Generator().manual_seed(5)
    student, teacher = 4 * torch.randn(2, 7, vocab, generator=generator)
    teacher[1] = student[1]
    student[2:4], teacher[2:4] = -30.0, -30.0
    student[2, 3] = student[3, 3] = teacher[2, 3] = teacher[3, 7] = 30.0
    student[4, : vocab // 2] = teacher[4, : vocab // 2] = -torch.inf
    weight = torch.rand(7, generator=generator)
    weight[5] = 0
    return student.to(dtype).to(DEVICE), teacher.to(dtype).to(DEVICE), weight.to(DEVICE)


def compare(vocab: int, dtype: torch.dtype, objective: Objective, **parts: Any) -> None:
    from draftsmith.kernels.rows_triton import triton_rows

    student, teacher, weight = rows(vocab, dtype)
    cap = parts.pop("teacher_cap", None)
    stages = parts.pop("stages", None)
    terms = objective.terms(cap)

    def run(function: Any, precision: torch.dtype, *more: Any) -> tuple[Tensor, Tensor]:
        block = Block(student.to(precision, copy=True), teacher, weight, **parts)
        exact = torch.promote_types(precision, torch.float32)
        knobs: Knobs = objective.knobs(cap, exact, DEVICE)
        return function(block, knobs, terms, True, *more), block.student_RV

    expected, expected_gradient = run(row_block, torch.float64)
    loss, gradient = run(triton_rows, dtype, *([stages] if stages else []))
    torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=2e-5)
    # The interpreter cuts bfloat16 off where a GPU rounds to nearest.
    rtol = 2e-5 if dtype == torch.float32 else 2**-7
    error = (gradient.double() - expected_gradient).abs()
    largest = expected_gradient.abs().amax(-1, keepdim=True)
    assert (error <= rtol * expected_gradient.abs() + 2e-5 * largest + 1e-6).all()


@runs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence(name: str, dtype: torch.dtype) -> None:
    compare(NARROW, dtype, Objective(name, **KNOBS))


@runs_triton
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_vocabulary_wider_than_a_block(name: str) -> None:
    compare(WIDE, torch.float32, Objective(name, **KNOBS, temperature=2.0))


def every_term(name: str, vocab: int) -> tuple[Objective, dict[str, Any]]:
    objective = Objective(
        name, **KNOBS, temperature=0.5, interpolation=0.3, label_weight=0.6, softcap=20.0
    )
    bias = torch.linspace(-1, 1, vocab, device=DEVICE)
    label = torch.arange(7, device=DEVICE)
    parts = {"label_R": label, "student_bias_V": bias, "teacher_bias_V": -bias, "teacher_cap": 25.0}
    return objective, parts


@runs_triton
@pytest.mark.parametrize("name", ["forward_kl", "jsd", "lk_hybrid"])
def test_every_term(name: str) -> None:
    objective, parts = every_term(name, NARROW)
    compare(NARROW, torch.float32, objective, **parts)


@runs_triton
@pytest.mark.parametrize("name", DIVERGENCES)
def test_stage_by_stage_is_the_same(name: str) -> None:
    objective, parts = every_term(name, NARROW)
    compare(NARROW, torch.float32, objective, **parts, stages=OneProcess())


@runs_triton
def test_labels_alone_at_temperature_one() -> None:
    objective = Objective("reverse_kl", label_weight=2.0)
    compare(NARROW, torch.float32, objective, label_R=torch.arange(7, device=DEVICE))


@runs_triton
def test_the_fused_loss_with_triton_rows() -> None:
    from draftsmith.kernels.linear import fused_linear_divergence
    from draftsmith.kernels.signal import HiddenSignal

    generator = torch.Generator().manual_seed(6)
    hidden, head = (torch.randn(n, 5, generator=generator) for n in (9, NARROW))
    teacher = HiddenSignal(
        torch.randn(9, 3, generator=generator).to(DEVICE),
        torch.randn(NARROW, 3, generator=generator).to(DEVICE),
    )
    hidden, head = hidden.to(DEVICE).requires_grad_(), head.to(DEVICE).requires_grad_()
    weight = torch.linspace(0, 1, 9, device=DEVICE)
    results = []
    for backend in ("eager", "triton"):
        loss, loss_N = fused_linear_divergence(
            hidden, head, teacher, weight, divergence="jsd", backend=backend, chunk_bytes=2000
        )
        results.append([loss.detach(), loss_N, *torch.autograd.grad(loss, (hidden, head))])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="Triton runs here")
def test_triton_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, but the tensors are on cpu"):
        choose("triton", torch.device("cpu"), torch.float32, 100)


def test_triton_refuses_float64() -> None:
    with pytest.raises(ValueError, match="float64"):
        choose("triton", DEVICE, torch.float64, 100)


@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="this is that process")
def test_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
