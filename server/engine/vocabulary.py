"""Drafts with fewer output rows: project onto the tokens that the draft may propose, and no others.

Reading the vocabulary projection from memory is most of a small draft's step. A draft folder may
therefore list the tokens that are worth proposing (`draft_vocabulary.json`); only their rows are
multiplied, and every other token gets the logit -inf. That is exact: q is zero there, so the
target's distribution is kept, and a token that the draft cannot propose costs acceptance only.

Legend: S requests, V vocabulary, D draft vocabulary, H width.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from draftsmith.distill.manifest import read_draft_vocabulary

_log = logging.getLogger("vllm.draftsmith")
_WHOLE_HEADS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Model with fewer rows -> the head that it was loaded with. Kept, for a tied one costs nothing."""


def serve_draft_vocabularies() -> None:
    """Let vLLM's draft models project onto their own vocabulary, where their folder names one."""
    from vllm.v1.spec_decode.draft_model import DraftModelProposer

    load = DraftModelProposer._get_model
    if getattr(load, "_draftsmith", False):
        return

    def load_and_trim(self: Any) -> Any:
        model = load(self)
        config = self.speculative_config.draft_model_config
        token_D = read_draft_vocabulary(Path(config.model), config.get_vocab_size())
        if token_D is not None:
            propose_only(model, torch.tensor(token_D), config.get_vocab_size())
            _log.info("draftsmith: the draft proposes %d tokens", len(token_D))
        return model

    load_and_trim._draftsmith = True  # type: ignore[attr-defined]
    DraftModelProposer._get_model = load_and_trim


def propose_only(model: Any, token_D: torch.Tensor, vocab_size: int) -> None:
    """Replace the head of a loaded model by its rows `token_D`, and pad what it computes."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    propose_all(model)
    whole_VH = model.lm_head.weight
    head = ParallelLMHead(len(token_D), whole_VH.shape[1], params_dtype=whole_VH.dtype)
    head.to(whole_VH.device)
    head.weight.data[: len(token_D)] = whole_VH.data[token_D]
    head.quant_method.process_weights_after_loading(head)
    _WHOLE_HEADS[model] = model.lm_head
    model.lm_head = head
    project = model.compute_logits
    token_D = token_D.to(whole_VH.device)

    def padded(hidden_SH: torch.Tensor) -> torch.Tensor:
        logits_SD = project(hidden_SH)[:, : len(token_D)]
        logits_SV = logits_SD.new_full((len(logits_SD), vocab_size), -torch.inf)
        return logits_SV.index_copy_(1, token_D, logits_SD)

    model.compute_logits = padded


def propose_all(model: Any) -> None:
    """Undo `propose_only`: other weights, perhaps with other rows, are loaded into the whole."""
    if model in _WHOLE_HEADS:
        model.lm_head = _WHOLE_HEADS.pop(model)
        del model.compute_logits  # the attribute that hides the class's method
