"""Cut a student out of the teacher by layers, narrow it by projection, or take its shape only.

A student of the teacher's width keeps chosen layers as they are. A narrower one keeps the
teacher's embedding, projected on its leading right singular vectors, and starts with random
layers: on a CPU the vocabulary projection is most of a small draft's cost, so width decides
whether a draft pays.

Legend: V vocabulary, H teacher width, K student width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from draftsmith.distill.models import body
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.student.shape import chosen_layers, student_config

_INITIAL_LOGIT_STD = 0.7
"""Of a narrow student, over the vocabulary, for a hidden state of unit scale."""


def cut_student(teacher: PreTrainedModel, section: StudentSection) -> PreTrainedModel:
    """A student whose layers are the teacher's, or random where its width is not."""
    config = student_config(teacher.config, section)
    student: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    if section.init == "cut" and section.hidden_size is None:
        total = teacher.config.num_hidden_layers
        evenly = torch.linspace(0, total - 1, config.num_hidden_layers).tolist()
        _copy_layers(teacher, student, chosen_layers(section, total) or [round(i) for i in evenly])
    elif section.init == "cut":
        _project_embeddings(teacher, student)
    return student


def layers_prefix(model: PreTrainedModel) -> str:
    """What the names of weights in layers begin with, such as `model.layers.`."""
    names = {id(module): name for name, module in model.named_modules()}
    return f"{names[id(body(model).layers)]}."


def _copy_layers(teacher: PreTrainedModel, student: PreTrainedModel, kept: list[int]) -> None:
    source = teacher.state_dict()
    layers = dict(enumerate(kept))
    prefix = layers_prefix(student)
    state = {}
    for name in student.state_dict():
        origin = name
        if name.startswith(prefix):
            index, rest = name.removeprefix(prefix).split(".", 1)
            origin = f"{prefix}{layers[int(index)]}.{rest}"
        state[name] = source[origin].float()
    student.load_state_dict(state)


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
