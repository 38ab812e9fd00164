"""Pad responses into one batch, and mark which positions are trained.

Legend: B sequences, T positions, N trained tokens, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A prompt and a response to it, as token ids. `source` is `recorded` for answers of the
    teacher or the data, else `student`, or `replay` where the student wrote it earlier."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    source: str
    version: int | None = None
    """Steps that the student had behind it when it wrote this; None where it did not."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def has_labels(self) -> bool:
        return self.source == "recorded"


@dataclass(frozen=True)
class Batch:
    """tokens_BT with attention_BT over real tokens and predicts_BT over the positions whose
    *next* token belongs to a response: masks go by position, so a stop token that equals the
    padding token is still trained. recorded_B is true where the response gives hard labels."""

    tokens_BT: Tensor
    attention_BT: Tensor
    predicts_BT: Tensor
    recorded_B: Tensor

    @property
    def labels_N(self) -> Tensor:
        """The response tokens, in the order in which predicts_BT selects hidden states."""
        return self.tokens_BT[:, 1:][self.predicts_BT[:, :-1]]

    @property
    def recorded_N(self) -> Tensor:
        return self.recorded_B[:, None].expand_as(self.predicts_BT)[self.predicts_BT]

    @property
    def lengths(self) -> list[int]:
        """Number of response tokens of each sequence."""
        lengths: list[int] = self.predicts_BT.sum(-1).tolist()
        return lengths


def make_batch(examples: Sequence[Example], pad_token: int, device: torch.device) -> Batch:
    """Pad on the right, which changes nothing for causal attention."""
    length = max(example.length for example in examples)
    tokens_BT = torch.full((len(examples), length), pad_token)
    attention_BT = torch.zeros_like(tokens_BT)
    predicts_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.prompt + example.response)
        tokens_BT[row, : len(tokens)] = tokens
        attention_BT[row, : len(tokens)] = 1
        predicts_BT[row, len(example.prompt) - 1 : len(tokens) - 1] = True
    recorded_B = torch.tensor([example.has_labels for example in examples])
    tensors = (tokens_BT, attention_BT, predicts_BT, recorded_B)
    return Batch(*(tensor.to(device) for tensor in tensors))


def response_states(model_body: Callable[..., Any], batch: Batch) -> Tensor:
    """Hidden states [N, H] of the positions that predict response tokens."""
    output = model_body(
        input_ids=batch.tokens_BT, attention_mask=batch.attention_BT, use_cache=False
    )
    hidden_NH: Tensor = output.last_hidden_state[batch.predicts_BT]
    return hidden_NH
