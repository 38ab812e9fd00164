"""Low-rank adapters inside a student (arXiv 2106.09685): W + alpha / rank B A.

The student stays the model that it was, with adapters inside its layers: training, sampling and
checkpoints see nothing new but that few weights are trained. B starts at zero, so that the first
step is taken by the model itself.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from transformers import PreTrainedModel

from draftsmith.distill.models import body
from draftsmith.distill.sections import LoraSection

_ADAPTER = "default"


def check_peft() -> None:
    """Raises ValueError where the package that makes adapters is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError(
            "student.lora needs the package peft: install it with `pip install 'draftsmith[lora]'`."
        )


def add_lora(student: PreTrainedModel, section: LoraSection, seed: int) -> None:
    """Put adapters into `student` and train nothing else.

    Raises:
        ValueError: a name in target_modules is no projection of the student's layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = (
        name for name, part in body(student).named_modules() if isinstance(part, torch.nn.Linear)
    )
    known = sorted({name.rpartition(".")[2] for name in linear})
    chosen = section.target_modules or known
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(
            f"student.lora.target_modules: the student has no projection '{unknown[0]}' in its "
            f"layers; there are {', '.join(known)}."
        )
    torch.manual_seed(seed)
    config = LoraConfig(
        r=section.rank, lora_alpha=section.alpha, target_modules=chosen, lora_dropout=0.0
    )
    inject_adapter_in_model(config, student, adapter_name=_ADAPTER)


def merged_state(student: PreTrainedModel) -> dict[str, Tensor]:
    """The student's weights under their own names, adapters added to what they adapt.

    Without adapters these are the weights themselves; nothing in `student` changes.
    """
    state: dict[str, Tensor] = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in student.state_dict().items()
        if ".lora_" not in name
    }
    for name, part in student.named_modules():
        if hasattr(part, "get_delta_weight"):
            delta = part.get_delta_weight(_ADAPTER).detach()
            state[f"{name}.weight"] = state[f"{name}.weight"] + delta
    return state
