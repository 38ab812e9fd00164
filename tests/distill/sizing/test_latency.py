"""The latency model: formulas by hand, and coefficients found again in steps made from them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from draftsmith.distill.sizing.calibrate import calibrate
from draftsmith.distill.sizing.latency import EngineStep, LatencyModel, fit_to_engine
from draftsmith.distill.student.sizing import Size

TRUE = LatencyModel(
    step_s=2e-3, pass_s=1e-3, layer_s=3e-4, byte_s=4e-11, flop_s=5e-12, source="known"
)
TARGET = Size(
    embedding=28_000_000,
    layers=106_000_000,
    depth=30,
    head=0,
    rows=49_152,
    width=576,
    item_bytes=2,
)
SMALL = Size(
    embedding=9_400_000, layers=1_700_000, depth=4, head=0, rows=8_192, width=192, item_bytes=2
)
DEEP = dataclasses.replace(SMALL, layers=7_000_000, depth=12)


def steps(*drafts: Size) -> list[EngineStep]:
    plain = [
        EngineStep(TARGET, None, batch, 0, TRUE.plain_seconds(TARGET, batch))
        for batch in (1, 2, 4, 8)
    ]
    return plain + [
        EngineStep(TARGET, one, batch, k, TRUE.speculative_seconds(TARGET, one, batch, k))
        for one in drafts
        for batch in (1, 2, 4, 8)
        for k in (1, 2, 3, 4)
    ]


def test_a_step_by_hand() -> None:
    # 2 bytes a weight wait 8e-11 s; a position's two operations take 1e-11 s: memory up to 8.
    head = 49_152 * 576
    assert TRUE.plain_seconds(TARGET, 8) == pytest.approx(
        2e-3 + 1e-3 + 30 * 3e-4 + (106_000_000 + head) * 8e-11, rel=1e-12
    )
    assert TRUE.plain_seconds(TARGET, 16) == pytest.approx(
        2e-3 + 1e-3 + 30 * 3e-4 + (106_000_000 + head) * 16e-11, rel=1e-12
    )
    # K = 3 for 4 requests: 16 positions in the target and in the draft's first pass, then 4 twice;
    # the draft scores 4 of them each time.
    small_head = 8_192 * 192
    fixed = 1e-3 + 4 * 3e-4
    assert TRUE.speculative_seconds(TARGET, SMALL, 4, 3) == pytest.approx(
        TRUE.plain_seconds(TARGET, 16)
        + 3 * (fixed + small_head * 8e-11)
        + 1_700_000 * (16e-11 + 2 * 8e-11),
        rel=1e-12,
    )


def test_the_fit_finds_known_coefficients_from_drafts_of_two_depths() -> None:
    kernels = TRUE.model_copy(update={"byte_s": 2e-11, "flop_s": 2.5e-12, "layer_s": 9.0})
    found = fit_to_engine(kernels, steps(SMALL, DEEP), "test")
    for name in ("step_s", "pass_s", "layer_s", "byte_s", "flop_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6), name
    assert found.relative_error == pytest.approx(0, abs=1e-9)
    assert found.source == "test"


def test_one_depth_cannot_tell_layers_from_passes_and_says_so() -> None:
    kernels = TRUE.model_copy(update={"byte_s": 2e-11, "flop_s": 2.5e-12})
    found = fit_to_engine(kernels, steps(SMALL), "test")
    assert found.layer_s == TRUE.layer_s
    assert found.step_s == pytest.approx(TRUE.step_s, rel=1e-6)
    assert found.pass_s == pytest.approx(TRUE.pass_s, rel=1e-6)
    assert "seconds a layer by torch" in found.source


def test_an_engine_that_computes_slower_than_torch_is_found() -> None:
    """It leaves a core to its scheduler, say: reading is as fast, products take three times."""
    kernels = TRUE.model_copy(update={"flop_s": TRUE.flop_s / 3, "step_s": 0.0})
    found = fit_to_engine(kernels, steps(SMALL), "test")
    assert found.flop_s == pytest.approx(TRUE.flop_s, rel=0.1)
    assert found.byte_s == pytest.approx(TRUE.byte_s, rel=0.1)
    assert found.relative_error is not None
    assert found.relative_error < 0.01


def test_where_no_step_computes_torch_is_believed() -> None:
    kernels = TRUE.model_copy(update={"flop_s": TRUE.flop_s / 100})
    reading = [
        dataclasses.replace(one, seconds=kernels.plain_seconds(TARGET, one.batch))
        if one.draft is None
        else dataclasses.replace(
            one, seconds=kernels.speculative_seconds(TARGET, one.draft, one.batch, one.lookahead)
        )
        for one in steps(SMALL)
    ]
    found = fit_to_engine(kernels, reading, "test")
    assert found.flop_s == pytest.approx(kernels.flop_s, rel=1e-6)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="two lookaheads"):
        fit_to_engine(TRUE, steps()[:3], "test")
    with pytest.raises(ValueError, match="two lookaheads"):
        fit_to_engine(TRUE, steps(), "test")


def test_this_machine_is_timed_within_the_bounds_of_hardware() -> None:
    found = calibrate(torch.float32)
    assert 1e9 < 1 / found.byte_s < 1e13, "bytes a second"
    assert 1e9 < 1 / found.flop_s < 1e16, "operations a second"
    assert 1e-6 < found.layer_s < 0.1
    assert found.step_s == 0
    assert "torch" in found.source
