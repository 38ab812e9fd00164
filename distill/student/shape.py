"""The shape of a student, known from the recipe and the teacher's config before any work."""

from __future__ import annotations

import copy

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from draftsmith.distill.sections import StudentSection
from draftsmith.distill.student.load import loaded_folder

_PRUNABLE = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose projections, norms and rotary embeddings are laid out as Llama's are."""


def student_config(teacher: PretrainedConfig, section: StudentSection) -> PretrainedConfig:
    """The config of the student that `section` describes.

    Raises:
        ValueError: layers or sizes that this teacher cannot give, or no model to load.
    """
    if section.init == "load":
        folder = loaded_folder(section)
        if not (folder / "config.json").is_file():
            raise ValueError(f"student.model: {folder} holds no model: config.json is missing.")
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config = copy.deepcopy(teacher)
    _set_layers(config, section)
    width = section.hidden_size or teacher.hidden_size
    if width > teacher.hidden_size:
        raise ValueError(
            f"student.hidden_size is {width}, wider than the teacher's {teacher.hidden_size}."
        )
    if section.init == "importance":
        _set_pruned_sizes(config, teacher, section, width)
    elif width != teacher.hidden_size or section.init == "random":
        _set_sizes(config, teacher, section, width)
    elif any((section.num_attention_heads, section.num_key_value_heads, section.intermediate_size)):
        raise ValueError(
            "Heads and intermediate_size can be set only for a narrower or random student, or one "
            "cut by importance: cut layers keep the teacher's."
        )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(  # or transformers would refuse to load what is exported
            f"student.hidden_size ({config.hidden_size}) must be a multiple of the "
            f"{config.num_attention_heads} attention heads."
        )
    return config


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this shape that takes no memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def head_size(config: PretrainedConfig) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def chosen_layers(section: StudentSection, total: int) -> list[int] | None:
    """Indices of the teacher's layers that `section.layers` names, from 0; None where it does not.

    Raises:
        ValueError: the teacher has no such layer.
    """
    if section.layers is None:
        return None
    kept = [index + total if index < 0 else index for index in section.layers]
    if not kept or any(not 0 <= index < total for index in kept):
        raise ValueError(
            f"student.layers must name some of the teacher's layers 0 to {total - 1}, "
            f"not {section.layers}."
        )
    return kept


def _set_layers(config: PretrainedConfig, section: StudentSection) -> None:
    total = config.num_hidden_layers
    chosen = chosen_layers(section, total)
    count = section.num_layers or total if chosen is None else len(chosen)
    makes_new_ones = section.init == "random" or (
        section.init == "cut" and section.hidden_size is not None
    )
    if count > total and not makes_new_ones:
        raise ValueError(f"student.num_layers is {count}, but the teacher has only {total}.")
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def _set_sizes(
    config: PretrainedConfig, teacher: PretrainedConfig, section: StudentSection, width: int
) -> None:
    head_dim = head_size(teacher)
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


def _set_pruned_sizes(
    config: PretrainedConfig, teacher: PretrainedConfig, section: StudentSection, width: int
) -> None:
    """Sizes are the teacher's unless they are given; heads go by whole key-value groups."""
    if teacher.model_type not in _PRUNABLE:
        raise ValueError(
            f"student.init = 'importance' knows models of type {', '.join(_PRUNABLE)}, and the "
            f"teacher is a {teacher.model_type}: cut layers instead."
        )
    per_group = teacher.num_attention_heads // teacher.num_key_value_heads
    heads = (
        section.num_attention_heads
        or (section.num_key_value_heads or teacher.num_key_value_heads) * per_group
    )
    groups = section.num_key_value_heads or heads // per_group
    if heads != groups * per_group:
        raise ValueError(
            f"student.num_attention_heads ({heads}) must be {per_group} times num_key_value_heads "
            f"({groups}), as in the teacher: heads are cut by whole groups."
        )
    channels = section.intermediate_size or teacher.intermediate_size
    for field, size, most in (
        ("num_key_value_heads", groups, teacher.num_key_value_heads),
        ("intermediate_size", channels, teacher.intermediate_size),
    ):
        if size > most:
            raise ValueError(f"student.{field} is {size}, but the teacher has only {most}.")
    config.head_dim = head_size(teacher)
    config.num_attention_heads, config.num_key_value_heads = heads, groups
    config.intermediate_size, config.hidden_size = channels, width
    # The norm divides by the mean square over fewer dimensions; see importance.py.
    config.rms_norm_eps = teacher.rms_norm_eps * teacher.hidden_size / width
