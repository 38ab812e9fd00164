"""Several teachers: a mixture of their distributions, weighted or chosen by prompt.

    p(v) = sum_m w_m p_m(v) / sum_m w_m      over the members m that teach the prompt

Members may differ in width, not in vocabulary. A member teaches the prompts whose id matches its
pattern; with patterns that do not overlap, each prompt has one teacher. The target answers the
prompts, and acceptance is measured against it alone.

Legend: N response tokens, M members, G a member's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from draftsmith.distill.answers import Answer, Answering, EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.models import head_weight
from draftsmith.distill.sampling import Sampling
from draftsmith.distill.sections.teacher import MemberSection
from draftsmith.distill.teacher.live import LiveTeacher
from draftsmith.kernels.signal import HiddenSignal, MixtureSignal

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class EnsembleTeacher:
    """weights: of the M members, for each prompt that may be trained on."""

    target: LiveTeacher
    members: Sequence[LiveTeacher]
    weights: Mapping[Tokens, tuple[float, ...]]

    @property
    def device(self) -> torch.device:
        return self.target.device

    def answers(
        self,
        path: Path,
        prompts: Sequence[EncodedPrompt],
        samplings: Sequence[Sampling],
        how: Answering,
        label: str,
    ) -> list[list[Answer]]:
        """The target's."""
        return self.target.answers(path, prompts, samplings, how, label)

    def keep_signals(self, examples: Sequence[Example], budget_bytes: float) -> bool:
        """Each member may use its part of the budget."""
        share = budget_bytes / len(self.members)
        kept = [
            member.keep_signals(self._taught(examples, index), share)
            for index, member in enumerate(self.members)
        ]
        return all(kept)

    def signal(
        self, examples: Sequence[Example], dtype: torch.dtype | None = None
    ) -> MixtureSignal:
        """See `protocol.Teacher`."""
        lengths = torch.tensor([len(example.response) for example in examples])
        weight_EM = torch.tensor([self.weights[example.prompt] for example in examples])
        weight_NM = weight_EM.repeat_interleave(lengths, dim=0).to(self.device)
        members = tuple(
            self._member_signal(index, examples, weight_NM[:, index] > 0, dtype)
            for index in range(len(self.members))
        )
        return MixtureSignal(members, weight_NM)

    def _member_signal(
        self,
        index: int,
        examples: Sequence[Example],
        taught_N: Tensor,
        dtype: torch.dtype | None,
    ) -> HiddenSignal:
        """Zeros stand for the tokens that the member does not teach: they are not read."""
        member, taught = self.members[index], self._taught(examples, index)
        if len(taught) == len(examples):
            return member.signal(examples, dtype)
        head_VG = head_weight(member.model)
        head_VG = head_VG.to(dtype or head_VG.dtype)
        hidden_NG = head_VG.new_zeros(len(taught_N), head_VG.shape[1])
        if taught:
            hidden_NG[taught_N] = member.signal(taught, dtype).hidden_NG
        return HiddenSignal(hidden_NG, head_VG)

    def _taught(self, examples: Sequence[Example], index: int) -> list[Example]:
        return [example for example in examples if self.weights[example.prompt][index] > 0]


def member_weights(
    prompts: Sequence[EncodedPrompt], members: Sequence[MemberSection]
) -> dict[Tokens, tuple[float, ...]]:
    """How much each member teaches of each prompt: 1 in sum.

    Raises:
        ValueError: no member teaches a prompt, or the same prompt has two ids that are taught
            differently.
    """
    weights: dict[Tokens, tuple[float, ...]] = {}
    for prompt in prompts:
        raw = [
            member.weight if fnmatchcase(prompt.id, member.prompts) else 0.0 for member in members
        ]
        if not any(raw):
            raise ValueError(
                f"teacher.members: no member teaches the prompt {prompt.id}: give one of them a "
                "pattern of prompts that matches it."
            )
        shares = tuple(weight / sum(raw) for weight in raw)
        if weights.setdefault(prompt.tokens, shares) != shares:
            raise ValueError(
                f"teacher.members: the prompt {prompt.id} stands in the data under another id "
                "too, and other members teach that one."
            )
    return weights
