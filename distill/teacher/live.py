"""The live teacher: frozen, in process, giving the signal that objectives train on.

Hidden states of recorded answers are computed once, where they fit into memory: they come back in
every pass over the prompts, and a teacher's forward pass costs more than all of a small student's
training step. Batches are fixed for that, so that a resumed run sees the same bits.

Legend: N response tokens, G teacher width.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.answers import Answer, Answering, EncodedPrompt, record_answers
from draftsmith.distill.batch import Example, make_batch, response_states
from draftsmith.distill.models import body, head_weight
from draftsmith.distill.progress import track
from draftsmith.distill.sampling import Generate, Sampling, generate
from draftsmith.distill.teacher.kept_states import read_states, states_digest, write_states
from draftsmith.kernels.signal import HiddenSignal

_SEQUENCES_AT_A_TIME = 8


class LiveTeacher:
    """Args: pad_token is any token id; padded positions are never looked at.

    writes: what writes answers in the model's stead, such as an engine that serves it.
    states: file that keeps the hidden states for other runs; see `kept_states`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pad_token: int,
        writes: Generate | None = None,
        states: Path | None = None,
    ) -> None:
        self._writes: Generate = writes or partial(generate, model)
        self.model = model.eval().requires_grad_(False)
        self._pad_token = pad_token
        self._states = states
        self._kept: dict[Example, Tensor] = {}

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def answers(
        self,
        path: Path,
        prompts: Sequence[EncodedPrompt],
        samplings: Sequence[Sampling],
        how: Answering,
        label: str,
    ) -> list[list[Answer]]:
        """See `protocol.Teacher`."""
        return record_answers(path, self._writes, prompts, samplings, how, label)

    def keep_signals(self, examples: Sequence[Example], budget_bytes: float) -> bool:
        """Compute or read the hidden states of `examples` now, if they fit into the budget."""
        head_VG = head_weight(self.model)
        tokens = sum(len(example.response) for example in examples)
        if tokens * head_VG.shape[1] * head_VG.element_size() > budget_bytes:
            return False
        batches = signal_batches(examples)
        ordered = [example for part in batches for example in part]
        digest = states_digest(self.model, ordered) if self._states else ""
        if self._states and self._states.is_file():
            known = read_states(self._states, digest, ordered)
            if known is not None:
                self._kept |= zip(ordered, (one.to(self.device) for one in known), strict=True)
                return True
        with track("teacher states", len(ordered)) as bar:
            for part in batches:
                self._kept |= zip(part, self._forward(part), strict=True)
                bar.advance(len(part))
        if self._states and distributed.is_main():
            write_states(self._states, digest, [self._kept[example] for example in ordered])
        return True

    def signal(self, examples: Sequence[Example], dtype: torch.dtype | None = None) -> HiddenSignal:
        """Hidden states with the head that gives their logits; see `protocol.Teacher`."""
        fresh = [example for example in examples if example not in self._kept]
        states = ChainMap(dict(zip(fresh, self._forward(fresh), strict=True)), self._kept)
        hidden_NG = torch.cat([states[example] for example in examples])
        head_VG = head_weight(self.model)
        dtype = dtype or head_VG.dtype
        return HiddenSignal(hidden_NG.to(dtype), head_VG.to(dtype))

    @torch.no_grad()
    def _forward(self, examples: Sequence[Example]) -> list[Tensor]:
        if not examples:
            return []
        batch = make_batch(examples, self._pad_token, self.model.device)
        hidden_NG = response_states(body(self.model), batch)
        lengths = [len(example.response) for example in examples]
        # Cloned: a view would keep the states of the whole padded batch alive.
        return [part.clone() for part in hidden_NG.split(lengths)]


def signal_batches(examples: Sequence[Example]) -> list[list[Example]]:
    """Batches in which signals of recorded text are computed.

    They depend on the texts alone, so that whoever computes them again gets the same bits.
    """
    ordered = sorted(
        dict.fromkeys(examples), key=lambda one: (one.length, one.prompt, one.response)
    )
    starts = range(0, len(ordered), _SEQUENCES_AT_A_TIME)
    return [ordered[start : start + _SEQUENCES_AT_A_TIME] for start in starts]
