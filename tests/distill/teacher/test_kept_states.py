"""Hidden states that one run leaves to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from draftsmith.distill.batch import Example
from draftsmith.distill.models import load_model
from draftsmith.distill.teacher import LiveTeacher

EXAMPLES = [
    Example((1, 5, 9), (40, 41, 42, 43), "recorded"),
    Example((1, 7), (50, 51), "recorded"),
    Example((4, 4, 4, 4, 4, 4), (8,), "recorded"),
]


def teacher(target: Path, states: Path | None) -> LiveTeacher:
    return LiveTeacher(load_model(target, torch.float32), 0, states=states)


def test_the_next_run_reads_the_same_bits(tiny_target: Path, tmp_path: Path) -> None:
    path = tmp_path / "plans" / "states.safetensors"
    first, second, alone = (teacher(tiny_target, one) for one in (path, path, None))
    for one in (first, second, alone):
        assert one.keep_signals(EXAMPLES, 1e6)
    expected = alone.signal(EXAMPLES).hidden_NG
    assert torch.equal(first.signal(EXAMPLES).hidden_NG, expected)
    assert torch.equal(second.signal(EXAMPLES).hidden_NG, expected)

    # What is read is what lies there: nothing was computed in its stead.
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"states": load_file(path)["states"] + 1}, path, metadata=metadata)
    third = teacher(tiny_target, path)
    assert third.keep_signals(EXAMPLES, 1e6)
    assert torch.equal(third.signal(EXAMPLES).hidden_NG, expected + 1)


def test_states_of_something_else_are_replaced(tiny_target: Path, tmp_path: Path) -> None:
    path = tmp_path / "states.safetensors"
    teacher(tiny_target, path).keep_signals(EXAMPLES, 1e6)
    fewer, before = EXAMPLES[:2], path.read_bytes()
    other = teacher(tiny_target, path)
    other.keep_signals(fewer, 1e6)
    expected = teacher(tiny_target, None).signal(fewer).hidden_NG
    assert torch.allclose(other.signal(fewer).hidden_NG, expected, atol=1e-6)
    assert path.read_bytes() != before

    changed = teacher(tiny_target, path)
    with torch.no_grad():
        next(changed.model.parameters()).add_(0.5)
    changed.keep_signals(fewer, 1e6)
    assert not torch.allclose(changed.signal(fewer).hidden_NG, expected, atol=1e-3)


def test_what_does_not_fit_is_not_kept(tiny_target: Path, tmp_path: Path) -> None:
    path = tmp_path / "states.safetensors"
    assert not teacher(tiny_target, path).keep_signals(EXAMPLES, 100)
    assert not path.exists()


def test_another_file_is_refused(tiny_target: Path, tmp_path: Path) -> None:
    path = tmp_path / "states.safetensors"
    path.write_text("something else")
    with pytest.raises(ValueError, match=r"states\.safetensors holds no states"):
        teacher(tiny_target, path).keep_signals(EXAMPLES, 1e6)
