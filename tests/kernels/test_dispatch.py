"""Which rows are computed by what, and that it is said."""

from __future__ import annotations

import logging

import pytest
import torch

from draftsmith.kernels import dispatch
from draftsmith.kernels.objective import Objective
from draftsmith.kernels.rows_compiled import blocks_of, compiled_rows, eager_rows
from draftsmith.kernels.rows_torch import Block

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("backend", "device", "dtype", "vocab", "expected"),
    [
        ("auto", CPU, torch.bfloat16, 49152, "compiled"),
        ("torch", CPU, torch.float32, 49152, "compiled"),
        ("eager", CPU, torch.float32, 49152, "eager"),
        ("auto", CPU, torch.float32, 384, "eager"),
        ("auto", CPU, torch.float64, 49152, "eager"),
        ("auto", CUDA, torch.bfloat16, 384, "triton"),
        ("triton", CUDA, torch.bfloat16, 384, "triton"),
        ("auto", CUDA, torch.float64, 49152, "eager"),
        ("auto", torch.device("mps"), torch.float32, 49152, "eager"),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    vocab: int,
    expected: str,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert dispatch.choose(backend, device, dtype, vocab)[0] == expected


def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dispatch._say_once.cache_clear()
    monkeypatch.setattr("shutil.which", lambda name: None)
    with caplog.at_level(logging.WARNING, logger=dispatch.__name__):
        dispatch.row_function("auto", CPU, torch.float32, 49152)
        dispatch.row_function("auto", CPU, torch.float32, 49152)
    (record,) = caplog.records
    assert "no C++ compiler" in record.getMessage()
    dispatch._say_once.cache_clear()


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="choose one of auto, torch, eager, triton"):
        dispatch.choose("cuda", CPU, torch.float32, 100)


@pytest.mark.parametrize("count", [1, 2, 33, 65, 100])
def test_blocks_cover_all_rows_and_none_is_a_single_row(count: int) -> None:
    block = Block(torch.zeros(count, 49152), torch.zeros(count, 49152), torch.zeros(count))
    sizes = [len(part.weight_R) for part in blocks_of(block)]
    assert sum(sizes) == count
    assert count == 1 or min(sizes) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward_kl", "jsd", "lk"])
def test_compiled_rows_equal_eager_rows(name: str) -> None:
    generator = torch.Generator().manual_seed(7)
    student, teacher = 3 * torch.randn(2, 70, 5000, generator=generator).bfloat16()
    weight = torch.rand(70, generator=generator)
    label = torch.arange(70)
    objective = Objective(name, temperature=2.0, interpolation=0.5, label_weight=0.5)
    knobs, terms = objective.knobs(None, torch.float32, CPU), objective.terms(None)
    results = []
    for rows in (eager_rows, compiled_rows):
        block = Block(student.clone(), teacher, weight, label)
        results.append((rows(block, knobs, terms, True), block.student_RV))
    (expected, expected_gradient), (loss, gradient) = results
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=2**-7, atol=1e-7)
