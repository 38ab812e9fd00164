"""Loaded by vLLM inside each worker (`--worker-extension-cls`): exchange weights in place.

Legend: V vocabulary, D draft vocabulary, H width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from draftsmith.distill.manifest import read_draft_vocabulary
from draftsmith.server.engine.draft_reading import forget_reading
from draftsmith.server.engine.vocabulary import propose_all, propose_only
from draftsmith.server.engine.weights import ModelShape, Part, model_shape, weight_files


class WeightsExtension:
    """Becomes a base class of vLLM's worker; its methods can be called in all workers at once."""

    def exchange_weights(self, part: Part, folder: str) -> dict[str, Any]:
        """Load the safetensors in `folder` into the target or the draft.

        Returns:
            {"seconds": s}; or {"refused": why}, an answer rather than an exception because
            nothing was written. An exception means that the model is half one, half the other.
        """
        began = time.perf_counter()
        worker: Any = self
        model, config = _model_and_config(worker, part)
        if model is None:
            return {"refused": "This engine has no draft."}
        source = Path(folder)
        try:
            _check_shape(worker, part, Path(config.model), source)
            tokens = read_draft_vocabulary(source, config.get_vocab_size())
            _check_finite(source)
        except ValueError as error:
            return {"refused": str(error)}
        _exchange(worker, model, config, source, tokens)
        if part == "draft":
            forget_reading(worker.model_runner)
        return {"seconds": time.perf_counter() - began}


def _model_and_config(worker: Any, part: Part) -> tuple[Any, Any]:
    if part == "target":
        return worker.model_runner.get_model(), worker.vllm_config.model_config
    speculation = worker.vllm_config.speculative_config
    if speculation is None:
        return None, None
    return worker.get_draft_model(), speculation.draft_model_config


def _check_shape(worker: Any, part: Part, first: Path, source: Path) -> None:
    """Raises ValueError unless `source` is of the shape that the engine started with."""
    # Read once: the folder of the start may be gone when the engine has long moved on.
    shapes: dict[Part, ModelShape] = vars(worker).setdefault("draftsmith_shapes", {})
    if part not in shapes:
        shapes[part] = model_shape(first)
    difference = shapes[part].difference(model_shape(source))
    if difference is not None:
        raise ValueError(f"{source} does not fit into the running engine: {difference}.")


def _check_finite(source: Path) -> None:
    """NaN in a draft would reach the answers: at temperature > 0 it takes part in the sampling."""
    for name, tensor in _tensors(weight_files(source)):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{source} is damaged: {name} holds values that are not finite.")


def _exchange(
    worker: Any, model: Any, config: Any, source: Path, tokens: Sequence[int] | None
) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload.layerwise import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    with set_current_vllm_config(worker.vllm_config), torch.no_grad():
        propose_all(model)
        initialize_layerwise_reload(model)
        model.load_weights(_tensors(weight_files(source)))
        finalize_layerwise_reload(model, config)
        if getattr(model.config, "tie_word_embeddings", False):
            # A tied head has no tensor of its own in the files, so that vLLM does not see that
            # what it packed for the CPU is out of date: the old head would answer.
            model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
        if tokens is not None:
            propose_only(model, torch.tensor(tokens), config.get_vocab_size())


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (not a mapping)
                yield name, stream.get_tensor(name)
