"""TAID (arXiv 2501.16937): the target moves from the student to the teacher.

    p_t = softmax((1 - t) student logits + t teacher logits),   loss = KL(p_t || q)

The student's logits in p_t are held fixed. After step n of N, with loss J_n:

    r = (J_{n-1} - J_n) / (J_{n-1} + 1e-15)
    m <- b m + (1 - b) r
    t <- min(t_end, max(t_start + (t_end - t_start) n / N,  t + a sigmoid(m) (1 - t)))

J is the loss a token over all processes, and t moves once an optimiser step: the published code
takes each process's own micro-batch, so that t depends on how a batch is split, and logs the
cross-entropy with p_t, whose relative change is smaller than that of the divergence which the
paper writes. Nothing is known about the first loss's change: it is only remembered.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from draftsmith.distill.objectives.objective import Charge, Course, DivergenceSection, register

if TYPE_CHECKING:
    from draftsmith.distill.recipe import Recipe


@register
class TAIDSection(DivergenceSection):
    name: Literal["taid"] = "taid"
    t_start: float = Field(0.4, ge=0, le=1)
    """Share of the teacher in the first target; 0.2 where the teacher is far more able."""
    t_end: float = Field(1.0, gt=0, le=1)
    """Share of the teacher after the last step."""
    alpha: float = Field(5e-4, ge=0, le=1)
    """Largest part of the way that is left which t may go in a step; 0 makes t linear."""
    beta: float = Field(0.99, ge=0, lt=1)
    """How much of the momentum is kept from step to step."""

    @model_validator(mode="after")
    def _t_grows(self) -> Self:
        if self.t_start > self.t_end:
            raise ValueError("t_start must not be larger than t_end")
        return self

    def charge(self, step: int, steps: int) -> Charge:
        raise AssertionError("the course of TAID knows t")

    def start(self, recipe: Recipe) -> TAID:
        return TAID(self, recipe)

    def least_steps(self) -> int:
        """Steps from which on the adaptive part moves t faster than the linear one.

        The adaptive part goes a / 2 (1 - t) where the loss stands still, and is fastest at the
        start; the linear one goes (t_end - t_start) / N.
        """
        fastest = self.alpha * 0.5 * (1 - self.t_start)
        if fastest == 0 or self.t_end == self.t_start:
            return 0
        return math.ceil((self.t_end - self.t_start) / fastest)


class TAID(Course):
    section: TAIDSection

    def __init__(self, section: TAIDSection, recipe: Recipe) -> None:
        super().__init__(section, recipe)
        self.t, self.momentum = section.t_start, 0.0
        self.previous_loss: float | None = None

    def charge(self, step: int) -> Charge:
        return Charge(temperature=self.section.temperature, interpolation=self.t)

    def after_step(self, step: int, loss: float) -> None:
        section, moved = self.section, self.t
        if self.previous_loss is not None:
            change = (self.previous_loss - loss) / (self.previous_loss + 1e-15)
            self.momentum = section.beta * self.momentum + (1 - section.beta) * change
            moved += section.alpha * _sigmoid(self.momentum) * (1 - self.t)
        self.previous_loss = loss
        done = (step + 1) / self.steps
        linear = (1 - done) * section.t_start + done * section.t_end
        self.t = min(section.t_end, max(linear, moved))

    def metrics(self) -> dict[str, float]:
        return {"t": self.t}

    def warnings(self) -> list[str]:
        least = self.section.least_steps()
        if self.steps >= least:
            return []
        alpha = math.ceil(self.section.alpha * least / self.steps * 1e4) / 1e4
        larger = f", or objective.alpha above {alpha:g}" if alpha <= 1 else ""
        return [
            f"TAID's t will grow linearly: in {self.steps} steps its adaptive part is never the "
            f"faster one; take at least {least} steps{larger}."
        ]

    def state(self) -> dict[str, Any]:
        return {"t": self.t, "momentum": self.momentum, "previous_loss": self.previous_loss}

    def restore(self, state: dict[str, Any]) -> None:
        self.t, self.momentum = state["t"], state["momentum"]
        self.previous_loss = state["previous_loss"]


def _sigmoid(value: float) -> float:
    # A rising loss makes the value negative without limit: exp must not overflow.
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
