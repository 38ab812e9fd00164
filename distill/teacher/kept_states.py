"""A file of hidden states that outlives a run, for runs on the same text with the same teacher.

Legend: N response tokens, G teacher width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from draftsmith.distill.batch import Example

_SAMPLED = 64
"""Weights of each parameter that tell one model from another."""


def states_digest(model: PreTrainedModel, examples: Sequence[Example]) -> str:
    """What the states depend on: the teacher's weights and type, and the texts in their order."""
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        some = weights.detach().flatten()[:_SAMPLED].to("cpu", torch.float64).tolist()
        digest.update(json.dumps([name, list(weights.shape), str(weights.dtype), some]).encode())
    for example in examples:
        digest.update(json.dumps([example.prompt, example.response]).encode())
    return digest.hexdigest()


def write_states(path: Path, digest: str, states: Sequence[Tensor]) -> None:
    """All or nothing. `states` has the rows (n, G) of each example.

    Raises:
        OSError: the folder cannot be made, or the disk is full.
    """
    partial = path.with_suffix(".partial")
    hidden_NG = torch.cat(list(states)).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file({"states": hidden_NG}, partial, metadata={"digest": digest})
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"teacher.states: {path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_states(path: Path, digest: str, examples: Sequence[Example]) -> list[Tensor] | None:
    """Rows (n, G) of each example; None where the file is of another teacher or other texts.

    Raises:
        ValueError: `path` is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("digest") != digest:
                return None
            hidden_NG = file.get_tensor("states")
    except SafetensorError as error:
        raise ValueError(f"teacher.states: {path} holds no states: {error}.") from error
    return list(hidden_NG.split([len(example.response) for example in examples]))
