"""What a training row is charged: the divergence, its parameter, and the terms around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from draftsmith.kernels.divergences import DEFINITIONS, DIVERGENCES


class RowTerms(NamedTuple):
    """Which terms a row kernel computes. It is compiled once for each combination; the numbers
    come separately, so that a schedule that changes one of them compiles nothing."""

    divergence: str
    interpolated: bool = False
    labelled: bool = False
    unit_temperature: bool = True
    student_capped: bool = False
    teacher_capped: bool = False


class Knobs(NamedTuple):
    """The numbers of an objective, as tensors without dimensions, in the rows' own precision."""

    parameter: Tensor
    temperature: Tensor
    interpolation: Tensor
    label_weight: Tensor
    student_cap: Tensor
    teacher_cap: Tensor


@dataclass(frozen=True)
class Objective:
    """Loss of one token: D(teacher, student) + label_weight * cross-entropy.

    divergence: a name of `divergences.DIVERGENCES`.
    beta: weight of the teacher in jsd's mixture, 0 < beta < 1. The formula tends to 0 at both
        ends, where it would silently stop training.
    alpha: share of a skewed divergence's own first argument in its mixture, 0 < alpha < 1.
    eta: how fast lk_hybrid turns from KL to total variation as the overlap grows, >= 0.
    temperature: divides both models' logits in the divergence; no factor temperature**2 is
        applied. The cross-entropy is taken at temperature 1.
    interpolation: TAID's t in [0, 1] (arXiv 2501.16937): the target is the softmax of
        (1 - t) student + t teacher logits, the student's held fixed. None is the teacher itself.
    label_weight: weight of the hard-label cross-entropy, >= 0.
    softcap: student logits become softcap * tanh(logits / softcap), before everything else.

    Raises:
        ValueError: names the field that is out of its range.
    """

    divergence: str = "forward_kl"
    beta: float = 0.5
    alpha: float = 0.1
    eta: float = 3.0
    temperature: float = 1.0
    interpolation: float | None = None
    label_weight: float = 0.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.divergence not in DEFINITIONS:
            known = ", ".join(DIVERGENCES)
            raise ValueError(f"Unknown divergence '{self.divergence}': choose one of {known}.")
        if not 0 < self.beta < 1:
            raise ValueError(
                f"beta must lie inside (0, 1), not {self.beta}: jsd vanishes at its ends; use "
                "forward_kl or reverse_kl there."
            )
        if not 0 < self.alpha < 1:
            raise ValueError(
                f"alpha must lie inside (0, 1), not {self.alpha}: without skew, use forward_kl or "
                "reverse_kl."
            )
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be finite and not negative, but is {self.eta}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, not {self.temperature}.")
        if self.interpolation is not None and not 0 <= self.interpolation <= 1:
            raise ValueError(f"interpolation must lie in [0, 1], not {self.interpolation}.")
        if not 0 <= self.label_weight < math.inf:
            raise ValueError(
                f"label_weight must be finite and not negative, but is {self.label_weight}."
            )
        check_softcap("softcap", self.softcap)

    def terms(self, teacher_softcap: float | None) -> RowTerms:
        return RowTerms(
            divergence=self.divergence,
            interpolated=self.interpolation is not None,
            labelled=self.label_weight != 0,
            unit_temperature=self.temperature == 1,
            student_capped=self.softcap is not None,
            teacher_capped=teacher_softcap is not None,
        )

    def knobs(
        self, teacher_softcap: float | None, dtype: torch.dtype, device: torch.device
    ) -> Knobs:
        parameter = DEFINITIONS[self.divergence].parameter
        numbers = [
            getattr(self, parameter) if parameter else 0.0,
            self.temperature,
            1.0 if self.interpolation is None else self.interpolation,
            self.label_weight,
            self.softcap or 1.0,
            teacher_softcap or 1.0,
        ]
        return Knobs(*torch.tensor(numbers, dtype=dtype, device=device).unbind())


def check_softcap(name: str, softcap: float | None) -> None:
    """Raises ValueError where a soft-cap is neither None nor a positive number."""
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"{name} must be positive and finite, or None, but is {softcap}.")
