"""Students: what is cut is the teacher's, what is narrow keeps its geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from draftsmith.distill.models import load_model
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.student import make_student
from draftsmith.distill.student.load import check_same_vocabulary
from tests.tiny import make_target


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = make_target(tmp_path_factory.mktemp("models") / "six", num_hidden_layers=6)
    return load_model(folder, torch.float32)


def make(teacher: PreTrainedModel, **section: Any) -> PreTrainedModel:
    return make_student(teacher, StudentSection(**section), seed=0)


def test_all_layers_make_the_teacher_itself(teacher: PreTrainedModel) -> None:
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(make(teacher)(tokens).logits, teacher(tokens).logits)


@pytest.mark.parametrize(
    ("section", "kept"),
    [
        ({"layers": [0, 4, -1]}, [0, 4, 5]),
        ({"num_layers": 3}, [0, 2, 5]),
        ({"num_layers": 1}, [0]),
    ],
)
def test_cut_layers_are_the_teachers(
    teacher: PreTrainedModel, section: dict[str, Any], kept: list[int]
) -> None:
    student = make(teacher, **section)
    assert student.config.num_hidden_layers == len(kept)
    for layer, origin in zip(student.model.layers, kept, strict=True):
        expected = teacher.model.layers[origin].state_dict()
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, expected[name])
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)


def test_narrow_embedding_keeps_as_much_of_the_inner_products_as_can_be(
    teacher: PreTrainedModel,
) -> None:
    width = 32
    student = make(teacher, hidden_size=width, num_layers=2)
    full = teacher.get_input_embeddings().weight
    narrow = student.get_input_embeddings().weight
    assert narrow.shape == (full.shape[0], width)
    # Eckart-Young: the truncated SVD is the nearest matrix of this rank, and its inner products
    # are the narrow embedding's, up to the one scale that sets the first logits.
    left, singular, _ = torch.linalg.svd(full, full_matrices=False)
    nearest = left[:, :width] * singular[:width]
    scale = 0.7 / nearest.norm(dim=-1).mean()
    expected = scale**2 * nearest @ nearest.T
    torch.testing.assert_close(narrow @ narrow.T, expected, rtol=1e-3, atol=1e-4)
    assert student.config.num_attention_heads == 1
    assert student(torch.arange(5)[None]).logits.shape == (1, 5, full.shape[0])


def test_frozen_embeddings_are_not_trained(teacher: PreTrainedModel) -> None:
    student = make(teacher, num_layers=2, freeze_embeddings=True)
    trained = {name for name, one in student.named_parameters() if one.requires_grad}
    assert trained
    assert not any("embed" in name or "lm_head" in name for name in trained)


def test_random_student_depends_on_the_seed_alone(teacher: PreTrainedModel) -> None:
    section = StudentSection(init="random", num_layers=2)
    first, again, other = (make_student(teacher, section, seed) for seed in (1, 1, 2))
    for left, right in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"layers": [0, 6]}, "layers 0 to 5"),
        ({"layers": []}, "layers 0 to 5"),
        ({"num_layers": 7}, "has only 6"),
        ({"hidden_size": 128}, "wider than the teacher's 64"),
        ({"num_layers": 2, "num_attention_heads": 4}, "narrower or random"),
        (
            {"hidden_size": 32, "num_attention_heads": 3, "num_key_value_heads": 2},
            "must be a multiple",
        ),
    ],
)
def test_what_the_teacher_cannot_give_is_one_sentence(
    teacher: PreTrainedModel, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(teacher, **section)


def test_unequal_vocabularies_are_refused(teacher: PreTrainedModel, tmp_path: Path) -> None:
    other = load_model(make_target(tmp_path / "other", vocab_size=300), torch.float32)
    with pytest.raises(ValueError, match=r"300 tokens and the teacher 366|same vocabulary"):
        check_same_vocabulary(teacher, other)
