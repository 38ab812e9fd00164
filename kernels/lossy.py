"""Lossy verification: accept more drafts than the target's distribution allows, at a price.

A rule splits the law of the token that comes out of one drafted position in two parts:
accepted_CV, the mass of drafts that are let through, and resampled_CV, the mass that replaces
refused drafts. Their sum is what is really sampled; its distance from p is the price. Both forms
of acceptance from per-token scalars and the price of whole responses are in
`kernels.lossy_decoding`.

Legend: C tokens, V vocabulary. p = target, q = draft, both as the server samples from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Relaxation = Literal["linear", "square", "exponential"]

_RELAXED: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linear": lambda p_CV, factor: p_CV / factor,
    "square": lambda p_CV, factor: p_CV / factor**2,
    "exponential": lambda p_CV, factor: p_CV**factor,
}


class LossyRule(Protocol):
    def split_CV(self, p_CV: Tensor, q_CV: Tensor) -> tuple[Tensor, Tensor]:
        """(accepted_CV, resampled_CV): together the law of the token that comes out."""
        ...


@dataclass(frozen=True)
class Lenience:
    """Accept draft x with chance min(1, f(p(x)) / q(x)), f = p / e, p / e^2 or p^e.

    Leviathan et al. (arXiv 2211.17192, appendix) call e the lenience; DistillSpec (arXiv
    2310.08461) adds the other forms. Refused drafts are replaced from max(p - q, 0), as without
    lenience: no other choice comes nearer to p. Factor 1 is exact, smaller is more lenient.

    Raises:
        ValueError: factor lies outside (0, 1], or form is unknown.
    """

    factor: float
    form: Relaxation = "linear"

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must lie in (0, 1], but is {self.factor}; 1 is exact.")
        if self.form not in _RELAXED:
            known = ", ".join(_RELAXED)
            raise ValueError(f"form must be one of {known}, but is '{self.form}'.")

    def split_CV(self, p_CV: Tensor, q_CV: Tensor) -> tuple[Tensor, Tensor]:
        accepted_CV = torch.minimum(q_CV, _RELAXED[self.form](p_CV, self.factor))
        refused_C1 = (q_CV - accepted_CV).sum(-1, keepdim=True)
        residual_CV = (p_CV - q_CV).clamp_(min=0.0)
        residual_C1 = residual_CV.sum(-1, keepdim=True)
        # p = q leaves no residual, and refuses nothing.
        scale_C1 = torch.where(residual_C1 > 0, refused_C1 / residual_C1, 0.0)
        return accepted_CV, residual_CV.mul_(scale_C1)


@dataclass(frozen=True)
class TypicalAcceptance:
    """Accept draft x where p(x) > min(threshold, scale exp(-H(p))), whatever q(x) is.

    Medusa's rule (arXiv 2401.10774), H in nats. Refused drafts are replaced from p itself, as
    there.

    Raises:
        ValueError: threshold or scale is not positive.
    """

    threshold: float = 0.09
    scale: float = 0.3

    def __post_init__(self) -> None:
        for name in ("threshold", "scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, but is {getattr(self, name)}.")

    def split_CV(self, p_CV: Tensor, q_CV: Tensor) -> tuple[Tensor, Tensor]:
        entropy_C1 = torch.special.entr(p_CV).sum(-1, keepdim=True)
        limit_C1 = entropy_C1.neg_().exp_().mul_(self.scale).clamp_(max=self.threshold)
        accepted_CV = q_CV.masked_fill(p_CV <= limit_C1, 0.0)
        refused_C1 = 1.0 - accepted_CV.sum(-1, keepdim=True)
        return accepted_CV, p_CV * refused_C1.clamp_(min=0.0)


@dataclass(frozen=True)
class LossyStats:
    """What a lossy rule does at each of N tokens.

    accept_N: chance that a drafted token is accepted.
    tvd_N: total variation between the law of the token that comes out and p.
    accepted_ratio_N, resampled_ratio_N: mass of the text's token by each way out, divided by its
        p. Their sum is 1 under an exact rule. Where p = 0, they are 0 and 1.
    """

    accept_N: Tensor
    tvd_N: Tensor
    accepted_ratio_N: Tensor
    resampled_ratio_N: Tensor


def lossy_stats(rule: LossyRule, p_CV: Tensor, q_CV: Tensor, token_C: Tensor) -> LossyStats:
    """What the rule does at positions with these distributions and text."""
    accepted_CV, resampled_CV = rule.split_CV(p_CV, q_CV)
    index_C1 = token_C[:, None]
    p_C, accepted_C, resampled_C = (
        mass_CV.gather(-1, index_C1).squeeze(-1) for mass_CV in (p_CV, accepted_CV, resampled_CV)
    )
    accept_C = accepted_CV.sum(-1)
    output_CV = resampled_CV.add_(accepted_CV)
    return LossyStats(
        accept_N=accept_C,
        tvd_N=output_CV.sub_(p_CV).abs_().sum(-1).mul_(0.5),
        accepted_ratio_N=torch.where(p_C > 0, accepted_C / p_C, 0.0),
        resampled_ratio_N=torch.where(p_C > 0, resampled_C / p_C, 1.0),
    )
