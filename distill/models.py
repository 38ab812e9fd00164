"""Load models and tokenizers, and see a causal language model as a body and a head.

Legend: B sequences, T positions, H width, V vocabulary.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from draftsmith.distill.processor import multiplies_bfloat16

# Fields of a config that change logits after the head; the chunked head does not know them.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def quiet_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # DeepSpeed calls functions of torch that have been renamed, in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    for name in ("deepspeed", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a recipe; `auto` is bfloat16 where this machine multiplies it natively."""
    if name == "auto":
        if torch.cuda.is_available():
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = multiplies_bfloat16()
        return torch.bfloat16 if native else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def served_dtype(exported: str) -> torch.dtype:
    """What a model that is exported in this dtype of a recipe is computed in when served here.

    `draftsmith serve` widens to float32 where bfloat16 is not multiplied natively.
    """
    return torch_dtype("auto") if exported == "bfloat16" else torch_dtype(exported)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal language model from a Hugging Face folder, without running code from it.

    Raises:
        ValueError: the folder holds no loadable model, or one whose logits are transformed after
            the head (soft-capped or scaled).
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a Hugging Face model folder: config.json is missing.")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    except (OSError, KeyError) as error:
        raise ValueError(f"{folder} cannot be loaded as a model: {_first_line(error)}") from error
    for field in _LOGIT_TRANSFORMS:
        if getattr(model.config, field, None) not in (None, 1, 1.0):
            raise ValueError(f"{folder} sets {field} in its config, which is not supported yet.")
    return model.eval()


def load_shape(folder: Path) -> PreTrainedModel:
    """A model without weights, on the meta device, for its configuration.

    Raises:
        ValueError: the folder holds no configuration of a known model.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{folder} describes no known model: {_first_line(error)}") from error
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises:
        ValueError: there is none that can be loaded.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, KeyError) as error:
        raise ValueError(f"{folder} has no usable tokenizer: {_first_line(error)}") from error
    return tokenizer


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a response, as the model's generation config and the tokenizer name them."""
    named: list[Any] = [model.generation_config.eos_token_id, tokenizer.eos_token_id]
    flat = [token for item in named for token in (item if isinstance(item, list) else [item])]
    return sorted({token for token in flat if token is not None})


def body(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its head: tokens_BT -> hidden states [B, T, H]."""
    decoder: torch.nn.Module = model.get_decoder()
    return decoder


def head_weight(model: PreTrainedModel) -> Tensor:
    """Weight [V, H] of the vocabulary projection."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ValueError("Models whose vocabulary projection has a bias are not supported yet.")
    weight: Tensor = head.weight
    return weight


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
