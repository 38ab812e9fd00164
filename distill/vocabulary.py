"""A student that proposes only some tokens: fewer rows to multiply, in training and in serving.

Reading the vocabulary projection is most of a small draft's step, and a service uses few of its
tokens often. The student keeps the rows of the most frequent ones; q is exactly zero for all
others, which costs acceptance and never correctness (FR-Spec, arXiv 2502.14856).

Legend: B sequences, T positions, N tokens, V vocabulary, D draft vocabulary, H width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from draftsmith.distill.models import head_weight
from draftsmith.kernels.signal import HiddenSignal, Teacher

_Signal = TypeVar("_Signal", HiddenSignal, Teacher)


def frequent_tokens(
    texts: Iterable[Sequence[int]], stop_tokens: Sequence[int], size: int, vocab_size: int
) -> list[int]:
    """Choose a draft vocabulary: the stop tokens and the most frequent tokens of `texts`.

    Where the texts have fewer, the lowest ids fill up: byte-pair vocabularies are numbered in
    the order of their merges, which is about that of frequency.

    Returns:
        `size` ascending token ids.

    Raises:
        ValueError: the vocabulary has no more than `size` tokens.
    """
    if size >= vocab_size:
        raise ValueError(
            f"student.vocabulary is {size}, but the teacher has {vocab_size} tokens: "
            "give fewer, or leave it out to keep them all."
        )
    counts = Counter(token for text in texts for token in text)
    # By id where counts are equal: the choice must not depend on the order of the texts.
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    kept = dict.fromkeys([*stop_tokens, *ranked][:size])
    for token in range(vocab_size):
        if len(kept) == size:
            break
        kept.setdefault(token)
    return sorted(kept)


class DraftHead(torch.nn.Linear):
    """A vocabulary projection that gives -inf to every token but those in `token_D`.

    It holds all V rows, so that the saved model is an ordinary one that any server can load.
    """

    token_D: Tensor

    def __init__(self, weight_VH: torch.nn.Parameter, token_D: Tensor) -> None:
        vocab_size, width = weight_VH.shape
        super().__init__(width, vocab_size, bias=False, device="meta")
        self.weight = weight_VH
        self.register_buffer("token_D", token_D.to(weight_VH.device), persistent=False)
        # Frozen weights never change, so that their rows are picked once and for all.
        self.held_DH = None if weight_VH.requires_grad else weight_VH.index_select(0, self.token_D)

    def rows_DH(self) -> Tensor:
        if self.held_DH is not None:
            return self.held_DH
        return self.weight.index_select(0, self.token_D)

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        return pad_logits(torch.nn.functional.linear(hidden_BTH, self.rows_DH()), self)


def pad_logits(logits_D: Tensor, head: DraftHead) -> Tensor:
    """Logits [..., D] -> [..., V] with -inf where the draft has no row."""
    logits_V = logits_D.new_full((*logits_D.shape[:-1], head.out_features), -torch.inf)
    return logits_V.index_copy_(-1, head.token_D, logits_D)


def restrict_head(student: PreTrainedModel, token_D: Sequence[int] | Tensor) -> None:
    """Let `student` propose the tokens `token_D` only. Its weights stay as they are, and tied."""
    weight_VH = head_weight(student)
    assert isinstance(weight_VH, torch.nn.Parameter)
    student.set_output_embeddings(DraftHead(weight_VH, torch.as_tensor(token_D)))


@contextmanager
def hold_rows(student: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Pick the rows once instead of at every token, while the weights do not change."""
    head = student.get_output_embeddings()
    if not isinstance(head, DraftHead):
        yield
        return
    before = head.held_DH
    head.held_DH = head.rows_DH().detach().to(dtype)
    try:
        yield
    finally:
        head.held_DH = before


def draft_tokens(student: PreTrainedModel) -> Tensor | None:
    """The token ids [D] that `student` may propose; None means all."""
    head = student.get_output_embeddings()
    return head.token_D if isinstance(head, DraftHead) else None


def head_rows(student: PreTrainedModel) -> Tensor:
    """Rows of the vocabulary projection that the student uses: [D, H], or all [V, H]."""
    head = student.get_output_embeddings()
    return head.rows_DH() if isinstance(head, DraftHead) else head_weight(student)


def restrict_signal(signal: _Signal, token_D: Tensor | None) -> _Signal:
    """The teacher's distribution given that the token is one of `token_D`; None changes nothing."""
    return signal if token_D is None else signal.restrict(token_D)


@dataclass(frozen=True)
class DraftSignal:
    """What a student says about N tokens over the whole vocabulary; see `kernels.signal`."""

    hidden_NH: Tensor
    head: DraftHead

    @property
    def vocab_size(self) -> int:
        return self.head.out_features

    def __len__(self) -> int:
        return self.hidden_NH.shape[0]

    def logits_NV(self, rows: slice) -> Tensor:
        logits_ND = self.hidden_NH[rows].float() @ self.head.rows_DH().float().T
        return pad_logits(logits_ND, self.head)

    def select(self, keep_N: Tensor) -> DraftSignal:
        return DraftSignal(self.hidden_NH[keep_N], self.head)
