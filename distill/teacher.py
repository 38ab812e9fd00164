"""The live teacher: frozen, in process, giving the signal that objectives train on."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from draftsmith.distill.batch import Batch, response_states
from draftsmith.distill.models import body, head_weight
from draftsmith.kernels.signal import HiddenSignal


class Teacher:
    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def signal(self, batch: Batch, dtype: torch.dtype | None = None) -> HiddenSignal:
        """Hidden states of the response positions with the head that turns them into logits.

        Args:
            dtype: of the vocabulary projection; the model's own by default. Evaluation asks for
                float32, since rounded logits bias what is measured.
        """
        hidden_NH, head_VH = response_states(body(self.model), batch), head_weight(self.model)
        dtype = dtype or head_VH.dtype
        return HiddenSignal(hidden_NH.to(dtype), head_VH.to(dtype))
