"""Make a student: cut out of the teacher, or random with the teacher's architecture.

A student of the teacher's width keeps chosen layers as they are. A narrower one keeps the
teacher's embedding, projected on its leading right singular vectors, and starts with random
layers: on a CPU the vocabulary projection is most of a small draft's cost, so width decides
whether a draft pays.

Legend: V vocabulary, H teacher width, K student width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from draftsmith.distill.models import body
from draftsmith.distill.sections import StudentSection

_INITIAL_LOGIT_STD = 0.7
"""Of a narrow student, over the vocabulary, for a hidden state of unit scale."""


def make_student(teacher: PreTrainedModel, section: StudentSection, seed: int) -> PreTrainedModel:
    """Build the float32 student that the recipe describes.

    Raises:
        ValueError: layers or sizes that this teacher cannot give.
    """
    total = teacher.config.num_hidden_layers
    kept = _kept_layers(section, total)
    config = _student_config(teacher.config, section, len(kept) or section.num_layers or total)
    torch.manual_seed(seed)
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    if section.init == "cut" and kept:
        _copy_layers(teacher, student, kept)
    elif section.init == "cut":
        _project_embeddings(teacher, student)
    if section.freeze_embeddings:
        for module in (student.get_input_embeddings(), student.get_output_embeddings()):
            module.requires_grad_(False)
    return student


def check_same_vocabulary(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Refuse pairs whose token ids cannot be compared.

    Raises:
        ValueError: the vocabularies have different sizes.
    """
    ours, theirs = student.config.vocab_size, teacher.config.vocab_size
    if ours != theirs:
        raise ValueError(
            f"The student has {ours} tokens and the teacher {theirs}: "
            "both need the same vocabulary."
        )


def _kept_layers(section: StudentSection, total: int) -> list[int]:
    """Indices of teacher layers to copy; empty where all layers start at random."""
    if section.init == "random" or section.hidden_size is not None:
        return []
    if section.layers is None:
        count = section.num_layers or total
        if count > total:
            raise ValueError(f"student.num_layers is {count}, but the teacher has only {total}.")
        return [round(index) for index in torch.linspace(0, total - 1, count).tolist()]
    kept = [index + total if index < 0 else index for index in section.layers]
    wrong = [index for index in kept if not 0 <= index < total]
    if wrong or not kept:
        raise ValueError(
            f"student.layers must name some of the teacher's layers 0 to {total - 1}, "
            f"not {section.layers}."
        )
    return kept


def _student_config(
    teacher: PretrainedConfig, section: StudentSection, num_layers: int
) -> PretrainedConfig:
    config = copy.deepcopy(teacher)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    width = section.hidden_size or teacher.hidden_size
    if width > teacher.hidden_size:
        raise ValueError(
            f"student.hidden_size is {width}, wider than the teacher's {teacher.hidden_size}."
        )
    resized = width != teacher.hidden_size or section.init == "random"
    sizes = (section.num_attention_heads, section.num_key_value_heads, section.intermediate_size)
    if not resized and any(size is not None for size in sizes):
        raise ValueError(
            "Heads and intermediate_size can be set only for a narrower or random student: "
            "cut layers keep the teacher's."
        )
    if not resized:
        return config
    head_dim = getattr(teacher, "head_dim", None) or (
        teacher.hidden_size // teacher.num_attention_heads
    )
    heads = section.num_attention_heads or max(1, width // head_dim)
    groups = section.num_key_value_heads or min(teacher.num_key_value_heads, heads)
    if heads % groups:
        raise ValueError(
            f"student.num_attention_heads ({heads}) must be a multiple of "
            f"num_key_value_heads ({groups})."
        )
    scaled = round(teacher.intermediate_size * width / teacher.hidden_size)
    config.hidden_size, config.head_dim = width, head_dim
    config.num_attention_heads, config.num_key_value_heads = heads, groups
    config.intermediate_size = section.intermediate_size or scaled
    return config


def _copy_layers(teacher: PreTrainedModel, student: PreTrainedModel, kept: list[int]) -> None:
    source = teacher.state_dict()
    layers = dict(enumerate(kept))
    prefix = _layers_prefix(student)
    state = {}
    for name in student.state_dict():
        origin = name
        if name.startswith(prefix):
            index, rest = name.removeprefix(prefix).split(".", 1)
            origin = f"{prefix}{layers[int(index)]}.{rest}"
        state[name] = source[origin].float()
    student.load_state_dict(state)


def _layers_prefix(model: PreTrainedModel) -> str:
    names = {id(module): name for name, module in model.named_modules()}
    return f"{names[id(body(model).layers)]}."


@torch.no_grad()
def _project_embeddings(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    embedding_VH = teacher.get_input_embeddings().weight.float()
    basis_HK = _leading_right_singular_vectors(embedding_VH, student.config.hidden_size)
    projected_VK = embedding_VH @ basis_HK
    # The projection keeps the teacher's norms, and random layers on top of it would start with
    # logits so far apart that they take most of a short run to unlearn.
    scale = _INITIAL_LOGIT_STD / projected_VK.norm(dim=-1).mean()
    student.get_input_embeddings().weight.copy_(projected_VK * scale)
    if not student.config.tie_word_embeddings:
        head_VH = teacher.get_output_embeddings().weight.float()
        student.get_output_embeddings().weight.copy_(head_VH @ basis_HK * scale)


def _leading_right_singular_vectors(matrix_VH: Tensor, count: int) -> Tensor:
    """Of V x H, by the eigenvectors of the small H x H Gram matrix."""
    _, vectors_HH = torch.linalg.eigh(matrix_VH.T @ matrix_VH)
    return vectors_HH.flip(-1)[:, :count]
