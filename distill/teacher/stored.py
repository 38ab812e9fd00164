"""The stored teacher: its answers and its signal on them, read from a folder.

Nothing of the model is loaded but the head that turns hidden states into logits.

Legend: N response tokens, G teacher width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from draftsmith.distill.answers import Answer, Answering, EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.sampling import Sampling
from draftsmith.distill.teacher.store import Part, SignalStore
from draftsmith.kernels.signal import HiddenSignal, SparseSignal


class StoredTeacher:
    """Args: part is that of the prompts in the recording."""

    def __init__(self, store: SignalStore, part: Part, device: torch.device) -> None:
        self.store, self.device = store, device
        self._texts = {
            (text.prompt, text.response): text for text in store.texts if text.part == part
        }
        self._answers = {
            (one.id, one.prompt): one.answers for one in store.answers if one.part == part
        }
        self._head_VG: Tensor | None = None
        if store.manifest.format == "hidden":
            self._head_VG = store.head_VG.to(device)

    def answers(
        self,
        path: Path,
        prompts: Sequence[EncodedPrompt],
        samplings: Sequence[Sampling],
        how: Answering,
        label: str,
    ) -> list[list[Answer]]:
        """The recorded answers; nothing is written to `path`, for they lie in the store.

        Raises:
            ValueError: a prompt was not recorded, or with fewer answers.
        """
        return [
            self._answers_of(index, prompt, len(samplings)) for index, prompt in enumerate(prompts)
        ]

    def keep_signals(self, examples: Sequence[Example], budget_bytes: float) -> bool:
        """They are kept on disk."""
        return True

    def signal(
        self, examples: Sequence[Example], dtype: torch.dtype | None = None
    ) -> HiddenSignal | SparseSignal:
        """See `protocol.Teacher`.

        Raises:
            ValueError: a text was not recorded.
        """
        rows = [self._rows(example) for example in examples]
        tensors = {name: torch.cat([one[name] for one in rows]) for name in rows[0]}
        on_device = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        if self._head_VG is not None:
            dtype = dtype or self._head_VG.dtype
            return HiddenSignal(on_device["hidden"].to(dtype), self._head_VG.to(dtype))
        return SparseSignal(
            on_device["ids"].long(),
            on_device["log_p"],
            self.store.manifest.teacher.vocab_size,
            on_device.get("log_tail"),
        )

    def _rows(self, example: Example) -> dict[str, Tensor]:
        text = self._texts.get((example.prompt, example.response))
        if text is None:
            raise ValueError(
                f"teacher.stored: {self.store.folder} has no signal on a text that is trained on: "
                "record it with this recipe's [data] and [rollout]."
            )
        return self.store.rows(text)

    def _answers_of(self, index: int, prompt: EncodedPrompt, count: int) -> list[Answer]:
        if prompt.answer is not None:
            return [Answer(index, 0, prompt.answer)]
        recorded = self._answers.get((prompt.id, prompt.tokens), ())
        if len(recorded) < count:
            raise ValueError(
                f"teacher.stored: {self.store.folder} has {len(recorded)} answers to the prompt "
                f"{prompt.id}, and this recipe needs {count}: record it with this recipe's [data] "
                "and [rollout]."
            )
        return [Answer(index, sample, tokens) for sample, tokens in enumerate(recorded[:count])]
