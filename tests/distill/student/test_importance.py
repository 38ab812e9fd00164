"""Cutting by importance: what is measured is a derivative, what is cut is a mask set to zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from draftsmith.distill.batch import Example
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.student import make_student, student_config
from draftsmith.distill.student.importance import (
    Masks,
    answer_loss,
    keep_parts,
    masked,
    measure_importance,
)
from tests.distill.runs import succeed

TOKENS = torch.arange(5, 29)[None]
STEP = 1e-2
"""Of differences: norms are computed in float32 whatever the model's dtype."""
SHAPE: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 72,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
}


def make_teacher(model_type: str = "llama", **more: Any) -> PreTrainedModel:
    """A tiny random model in float64, with every bias and norm away from where it starts."""
    settings = {
        "vocab_size": 120,
        "hidden_size": 96,
        "intermediate_size": 112,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "tie_word_embeddings": True,
    }
    config = AutoConfig.for_model(model_type, **settings | more)
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model.requires_grad_(False)


def examples(count: int) -> list[Example]:
    return [
        Example((1 + start, 2, 3), tuple(range(4 + start, 20 + 2 * start)), "recorded")
        for start in range(count)
    ]


def without(importance: Masks, section: StudentSection, model: PreTrainedModel) -> Masks:
    """Masks that are 0 where `section` cuts."""
    config = student_config(model.config, section)
    sizes = (
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.intermediate_size,
        config.hidden_size,
    )

    def largest(values: Tensor, count: int) -> Tensor:
        return torch.zeros_like(values).scatter(-1, values.topk(count).indices, 1.0)

    return Masks(*(largest(*pair) for pair in zip(importance.tensors(), sizes, strict=True)))


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
    ids=["llama", "llama-biases-untied", "mistral", "qwen2", "qwen3"],
)
def test_the_student_is_the_teacher_with_masks_at_zero(
    model_type: str, more: dict[str, Any]
) -> None:
    teacher = make_teacher(model_type, **more)
    section = StudentSection(init="importance", **SHAPE)
    importance = measure_importance(teacher, examples(2))
    student = keep_parts(teacher, section, importance).double().eval()
    assert student.config.num_attention_heads == 4, "two heads go with each key-value group"
    with masked(teacher, without(importance, section, teacher)):
        expected = teacher(TOKENS).logits
    torch.testing.assert_close(student(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - teacher(TOKENS).logits).abs().max() > 0.1, "the cut must be felt"


def test_what_writes_nothing_has_no_importance_and_is_not_missed() -> None:
    teacher = make_teacher()
    hidden, channels, rows = [3, 17, 40, 63], [0, 50, 111], slice(16 * 2, 16 * 4)
    with torch.no_grad():
        for layer in teacher.model.layers:
            layer.mlp.down_proj.weight[:, channels] = 0
            layer.self_attn.o_proj.weight[:, rows] = 0  # both heads of the second group
            for writer in (layer.mlp.down_proj, layer.self_attn.o_proj):
                writer.weight[hidden] = 0
        teacher.get_input_embeddings().weight[:, hidden] = 0
        for writer in (teacher.model.layers[2].mlp.down_proj,
                       teacher.model.layers[2].self_attn.o_proj):  # fmt: skip
            writer.weight.zero_()
    importance = measure_importance(teacher, examples(2))
    assert importance.layer_L.argmin() == 2
    assert importance.layer_L[2] == 0
    assert (importance.hidden_H == 0).nonzero().flatten().tolist() == hidden
    assert not importance.group_LG[:, 1].any()
    assert not importance.channel_LC[:, channels].any()
    section = StudentSection(
        init="importance",
        num_layers=4,
        hidden_size=92,
        num_key_value_heads=2,
        intermediate_size=109,
    )
    student = keep_parts(teacher, section, importance).double().eval()
    torch.testing.assert_close(student(TOKENS).logits, teacher(TOKENS).logits, rtol=1e-5, atol=1e-5)


def test_importance_is_the_derivative_of_the_loss() -> None:
    """Against central differences, and as a mean of absolute values over answers."""
    teacher = make_teacher()
    answers, places = examples(2), {0: (3,), 1: (2, 1), 2: (4, 70), 3: (33,)}
    importance = measure_importance(teacher, answers)
    for kind, place in places.items():
        slopes = []
        for answer in answers:
            losses = []
            for change in (STEP, -STEP):
                masks = Masks(*(mask.double() for mask in Masks.ones(teacher).tensors()))
                masks.tensors()[kind][place] += change
                with masked(teacher, masks):
                    losses.append(answer_loss(teacher, answer).item())
            slopes.append((losses[0] - losses[1]) / (2 * STEP))
        mean = sum(map(abs, slopes)) / len(slopes)
        assert importance.tensors()[kind][place].item() == pytest.approx(mean, rel=5e-3)


def test_named_layers_are_kept_whatever_their_importance() -> None:
    teacher = make_teacher()
    section = StudentSection(init="importance", layers=[0, -1])
    student = make_student(teacher, section, seed=0, calibration=examples(1))
    for layer, origin in zip(student.model.layers, (0, 4), strict=True):
        expected = teacher.model.layers[origin].state_dict()
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, expected[name].float())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"num_layers": 6}, "has only 5"),
        ({"hidden_size": 128}, "wider than the teacher's 96"),
        ({"hidden_size": 94}, r"hidden_size \(94\) must be a multiple of the 6 attention heads"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4, but the teacher has only 3"),
        ({"num_attention_heads": 3}, "must be 2 times num_key_value_heads"),
        ({"intermediate_size": 113}, "intermediate_size is 113"),
    ],
)
def test_what_cannot_be_cut_is_one_sentence(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student_config(make_teacher().config, StudentSection(init="importance", **section))


def test_an_unknown_architecture_is_refused() -> None:
    config = AutoConfig.for_model("gpt2", n_layer=2)
    with pytest.raises(ValueError, match="the teacher is a gpt2: cut layers instead"):
        student_config(config, StudentSection(init="importance", num_layers=1))


def test_a_run_cuts_and_trains(tiny_target: Path, tmp_path: Path) -> None:
    records = succeed(
        tiny_target,
        tmp_path / "run",
        student__init="importance",
        student__hidden_size=32,
        student__intermediate_size=64,
        student__calibration_prompts=4,
    )
    losses = [one["loss"] for one in records if one["kind"] == "train"]
    assert losses[-1] < losses[0]
