"""Students that go on from a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from draftsmith.distill.export import export_draft
from draftsmith.distill.models import load_model, load_tokenizer
from draftsmith.distill.recipe import load_recipe
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.student import make_student, student_config
from draftsmith.distill.student.load import check_same_tokens
from draftsmith.distill.vocabulary import draft_tokens, restrict_head
from tests.tiny import make_target

TOKENS = [2, 5, 9, 100, 365]


@pytest.fixture(scope="module")
def draft(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer draft of the tiny target that may propose five tokens."""
    folder = tmp_path_factory.mktemp("drafts") / "draft"
    overrides = [f"teacher.model={tiny_target}", "export.dtype=float32"]
    recipe = load_recipe("tiny", overrides)
    student = make_student(load_model(tiny_target, torch.float32), recipe.student, seed=3)
    restrict_head(student, TOKENS)
    export_draft(student, tiny_target, recipe, folder, {})
    return folder


def test_a_draft_goes_on_with_its_weights_and_vocabulary(tiny_target: Path, draft: Path) -> None:
    teacher = load_model(tiny_target, torch.float32)
    student = make_student(teacher, StudentSection(init="load", model=str(draft)), seed=0)
    saved = load_model(draft, torch.float32).state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, saved[name])
    kept = draft_tokens(student)
    assert kept is not None
    assert kept.tolist() == TOKENS
    assert all(weight.requires_grad for weight in student.parameters())
    frozen = StudentSection(init="load", model=str(draft), freeze_embeddings=True)
    head = make_student(teacher, frozen, seed=0).get_output_embeddings()
    assert head.held_DH is not None, "frozen rows are picked once"


def test_another_vocabulary_is_refused(tiny_target: Path, draft: Path) -> None:
    teacher = load_model(tiny_target, torch.float32)
    section = StudentSection(init="load", model=str(draft), vocabulary=7)
    with pytest.raises(ValueError, match=r"student\.vocabulary: .* already proposes 5 tokens"):
        make_student(teacher, section, seed=0)


def test_another_tokenizer_is_refused(tiny_target: Path, tmp_path: Path) -> None:
    other = make_target(tmp_path / "other")
    content = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(content.replace('"<|endoftext|>"', '"<|start|>"'))
    tokenizer = load_tokenizer(tiny_target)
    check_same_tokens(tokenizer, tiny_target)
    with pytest.raises(ValueError, match=r"different tokenizers: '<\|endoftext\|>'"):
        check_same_tokens(tokenizer, other)


def test_a_missing_model_is_refused_before_anything_is_loaded(tiny_target: Path) -> None:
    config = load_model(tiny_target, torch.float32).config
    with pytest.raises(ValueError, match=r"student\.model: nowhere holds no model"):
        student_config(config, StudentSection(init="load", model="nowhere"))
