"""Write a student as a Hugging Face folder with its manifest: complete or absent.

Here the words change: what was teacher and student becomes target and draft.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from draftsmith.distill.manifest import (
    Manifest,
    TargetIdentity,
    list_files,
    target_identity,
    write_draft_vocabulary,
    write_manifest,
)
from draftsmith.distill.models import load_tokenizer, torch_dtype
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.vocabulary import draft_tokens

_VERSIONED = ("draftsmith", "torch", "transformers", "deepspeed")


def export_draft(
    student: PreTrainedModel,
    teacher_folder: Path,
    recipe: Recipe,
    output: Path,
    evaluation: dict[str, Any],
    target: TargetIdentity | None = None,
) -> Manifest:
    """Write weights, config, the teacher's tokenizer and `manifest.json` into `output`.

    `target` is the teacher's identity; by default it is taken from the weights in its folder.

    An earlier export in `output` is replaced.
    """
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_model(student, partial, torch_dtype(recipe.export.dtype))
    load_tokenizer(teacher_folder).save_pretrained(partial)
    target = target or target_identity(teacher_folder)
    resolved = recipe.model_copy(
        update={"teacher": recipe.teacher.model_copy(update={"model": target.name})}
    )
    manifest = Manifest(
        kind="draft",
        target=target,
        recipe=resolved.model_dump(mode="json"),
        versions={name: importlib.metadata.version(name) for name in _VERSIONED},
        evaluation=evaluation,
        files=list_files(partial),
    )
    write_manifest(partial, manifest)
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    return manifest


def write_model(student: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Weights in `dtype`, config and, where the student has one, its draft vocabulary."""
    # A copy, so that a run can export and then go on training in float32.
    state = {name: tensor.detach().to(dtype) for name, tensor in student.state_dict().items()}
    student.generation_config = GenerationConfig.from_model_config(student.config)
    before = student.config.dtype
    student.config.dtype = dtype
    student.save_pretrained(folder, state_dict=state, safe_serialization=True)
    student.config.dtype = before
    token_D = draft_tokens(student)
    if token_D is not None:
        write_draft_vocabulary(folder, token_D.tolist())
