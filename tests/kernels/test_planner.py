"""How calls are cut up, and what is foretold about them."""

from __future__ import annotations

import pytest
import torch

from draftsmith.kernels.planner import plan, tiling


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tokens", [1, 100, 2048, 2049, 16384])
@pytest.mark.parametrize("vocab", [384, 49152, 151936])
def test_chunks_and_tiles_are_about_equal(device: str, tokens: int, vocab: int) -> None:
    cut = tiling(tokens, vocab, 2, 2, device)
    assert 1 <= cut.tile <= cut.chunk <= tokens
    for whole, part in ((tokens, cut.chunk), (cut.chunk, cut.tile)):
        last = whole % part or part
        assert last >= part // 4, "no tiny tail"


def test_an_explicit_budget_is_kept_to() -> None:
    assert tiling(1000, 100, 2, 2, "cpu", chunk_bytes=400 * 7).chunk <= 7
    assert tiling(1000, 100, 2, 2, "cpu", chunk_bytes=1).chunk == 1
    with pytest.raises(ValueError, match="chunk_bytes must be positive"):
        tiling(1000, 100, 2, 2, "cpu", chunk_bytes=-1)


@pytest.mark.parametrize(
    ("shape", "teraflops", "gigabytes"),
    [
        ((8192, 49152, 576, 576), 1.86, 2),
        ((8192, 128256, 2048, 4096), 21.5, 4),
        ((16384, 151936, 896, 3584), 31.2, 4),
    ],
)
def test_shapes_of_the_benchmark(
    shape: tuple[int, int, int, int], teraflops: float, gigabytes: float
) -> None:
    foretold = plan(*shape)
    assert foretold.flops / 1e12 == pytest.approx(teraflops, rel=0.01)
    assert foretold.peak_bytes < gigabytes * 1e9
    assert foretold.least_seconds(8e14) == pytest.approx(foretold.flops / 8e14)


def test_a_frozen_head_saves_a_third_of_the_students_products() -> None:
    free, frozen = (plan(2048, 1000, 64, 64, trains_head=trains) for trains in (True, False))
    assert frozen.flops == free.flops * 3 // 4
    assert frozen.peak_bytes < free.peak_bytes


def test_float32_inputs_need_no_second_accumulator() -> None:
    low = plan(10**6, 1000, 64, 64, dtype=torch.bfloat16)
    high = plan(10**6, 1000, 64, 64, dtype=torch.float32)
    assert high.peak_bytes > low.peak_bytes
