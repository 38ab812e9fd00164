"""What every kind of teacher offers: a signal on given text, wherever it comes from.

Legend: N response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from draftsmith.distill.answers import Answer, Answering, EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.sampling import Sampling
from draftsmith.kernels.signal import Teacher as Signal


class Teacher(Protocol):
    @property
    def device(self) -> torch.device:
        """Where signals lie."""
        ...

    def answers(
        self,
        path: Path,
        prompts: Sequence[EncodedPrompt],
        samplings: Sequence[Sampling],
        how: Answering,
        label: str,
    ) -> list[list[Answer]]:
        """The teacher's answers to each prompt, one for each sampling.

        Args:
            path: file that keeps them, so that a resumed run trains on the same text.
            label: of the progress bar.
        """
        ...

    def signal(self, examples: Sequence[Example], dtype: torch.dtype | None = None) -> Signal:
        """What the teacher says about the N response tokens of all examples, in order.

        Args:
            dtype: of the vocabulary projection, where there is one; the teacher's own by default.
                Evaluation asks for float32, since rounded logits bias what is measured.
        """
        ...

    def keep_signals(self, examples: Sequence[Example], budget_bytes: float) -> bool:
        """Get the signals of text that comes back in every pass now, if they fit into memory."""
        ...
