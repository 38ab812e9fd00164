"""Adapters: nothing else is trained, and the export is the sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from draftsmith.distill.export import export_draft
from draftsmith.distill.models import load_model
from draftsmith.distill.recipe import load_recipe
from draftsmith.distill.sections import LoraSection, StudentSection
from draftsmith.distill.student import make_student
from draftsmith.distill.student.lora import add_lora
from tests.distill.runs import succeed

TOKENS = torch.arange(5, 25)[None]


@pytest.fixture
def teacher(tiny_target: Path) -> PreTrainedModel:
    return load_model(tiny_target, torch.float32)


def adapted(teacher: PreTrainedModel, **lora: Any) -> PreTrainedModel:
    """A student whose adapters are away from where they start."""
    section = StudentSection(lora=LoraSection(rank=4, alpha=6, **lora))
    student = make_student(teacher, section, seed=1)
    torch.testing.assert_close(student(TOKENS).logits, teacher(TOKENS).logits)
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return student


def test_only_adapters_are_trained(teacher: PreTrainedModel) -> None:
    student = adapted(teacher, target_modules=["q_proj", "down_proj"])
    trained = {name: one.numel() for name, one in student.named_parameters() if one.requires_grad}
    assert all(".lora_" in name for name in trained)
    # Two layers, rank 4: q is 64 x 64, down is 64 x 128.
    assert sum(trained.values()) == 2 * 4 * ((64 + 64) + (64 + 128))


def test_the_export_is_a_plain_model_with_the_adapters_logits(
    teacher: PreTrainedModel, tiny_target: Path, tmp_path: Path
) -> None:
    student = adapted(teacher)
    expected = student(TOKENS).logits
    assert (expected - teacher(TOKENS).logits).abs().max() > 0.1
    recipe = load_recipe("tiny", [f"teacher.model={tiny_target}", "export.dtype=float32"])
    for _ in range(2):  # exporting must not change what is exported
        export_draft(student, tiny_target, recipe, tmp_path / "draft", {})
    exported = load_model(tmp_path / "draft", torch.float32)
    assert exported.state_dict().keys() == teacher.state_dict().keys()
    torch.testing.assert_close(exported(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_projection_is_one_sentence(teacher: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"no projection 'lm_head' .*down_proj, gate_proj"):
        add_lora(teacher, LoraSection(target_modules=["lm_head"]), seed=0)


def test_adapters_train_alike_under_zero_3(tiny_target: Path, tmp_path: Path) -> None:
    records = {
        stage: [
            one
            for one in succeed(
                tiny_target,
                tmp_path / f"zero-{stage}",
                student__num_layers=2,
                student__lora__rank=4,
                train__learning_rate=0.01,
                train__zero_stage=stage,
                train__steps=3,
            )
            if one["kind"] == "evaluation"
        ]
        for stage in (1, 3)
    }
    for ours, theirs in zip(records[1], records[3], strict=True):
        assert ours["forward_kl"] == pytest.approx(theirs["forward_kl"], rel=1e-4, abs=1e-6)
