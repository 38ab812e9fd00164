"""How often a draft will be right: a law of its size and of the tokens that it was trained on.

Pilots are trained for a little, and their held-out refusal rates are fitted by

    1 - alpha = term[start] * N^-size_exponent * D^-token_exponent

with exponents >= 0, by weighted least squares of logarithms. Scaling laws of the loss are sums of
such powers and a floor (arXiv 2001.08361, 2203.15556); pilots of a few lengths cannot tell a floor
from noise, and one that is fitted all the same takes the end of the pilots for the end of learning.
Drafts that start with copied layers need fewer tokens than those that start at random, so each kind
of start has a term of its own. A draft that may not propose a token is always refused where the
target says it: alpha is divided by the share of held-out tokens that it may propose, its coverage,
before it is fitted.

D counts text that is seen again for less and less, as `effective_tokens` says.

Limits: seeds are not varied; beyond what the pilots saw, the powers are believed to go on.

Legend: N weights in the draft's layers, D trained tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import lsq_linear

from draftsmith.distill.draws import draw_bits

_REPETITIONS = 15.4
"""R* of arXiv 2305.16264: repetitions of a text are worth at most so many of the first reading."""
_LEAST_REFUSED = 1e-3
"""A pilot that was refused less often is taken for one that was refused so often."""
_NO_EFFECT = 1e-3
_REFITS = 100


def effective_tokens(tokens: float, unique: float, fresh_share: float = 0.0) -> float:
    """What D trained tokens are worth where the same text comes back (arXiv 2305.16264).

    Args:
        tokens: D.
        unique: in the recorded text.
        fresh_share: of D that is written anew by the student, and never comes back.
    """
    recorded = (1 - fresh_share) * tokens
    if recorded <= unique:
        return tokens
    repetitions = recorded / unique - 1
    worth = _REPETITIONS * (1 - math.exp(-repetitions / _REPETITIONS))
    return fresh_share * tokens + unique * (1 + worth)


@dataclass(frozen=True)
class Observation:
    """What one run of a pilot ended with. start: how the draft was made, such as `cut`."""

    start: str
    layer_weights: int
    tokens: float
    """Effective ones."""
    alpha: float
    coverage: float = 1.0


class Interval(BaseModel):
    """A prediction with the range that holds 90 % of the refits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float


class AcceptanceLaw(BaseModel):
    """A fitted law. N and D are divided by `layer_weights_unit` and `tokens_unit`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    terms: dict[str, float]
    """By start: the refusal rate at one unit of both."""
    size_exponent: float
    token_exponent: float
    layer_weights_unit: float
    tokens_unit: float

    def alpha(self, start: str, layer_weights: int, tokens: float, coverage: float = 1.0) -> float:
        """Raises KeyError where no pilot started that way."""
        refused = (
            self.terms[start]
            * (layer_weights / self.layer_weights_unit) ** -self.size_exponent
            * (tokens / self.tokens_unit) ** -self.token_exponent
        )
        return coverage * (1.0 - min(1.0, refused))


class FittedLaw(BaseModel):
    """The law, its refits, and how well it describes the points that it was fitted to."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    law: AcceptanceLaw
    refits: list[AcceptanceLaw]
    points: int
    residual: float
    """Root mean square of alpha / coverage, in the units of alpha."""
    undecided: list[str]
    """Of `size` and `tokens`: what the points do not show an effect of."""

    def predict(
        self, start: str, layer_weights: int, tokens: float, coverage: float = 1.0
    ) -> Interval:
        """alpha of a draft of this size after so many tokens."""
        asked = start, layer_weights, tokens, coverage
        values = [refit.alpha(*asked) for refit in self.refits]
        low, high = np.quantile(values, [0.05, 0.95]).tolist()
        value = self.law.alpha(*asked)
        return Interval(value=value, low=min(low, value), high=max(high, value))


def fit_law(observations: Sequence[Observation], refits: int = _REFITS) -> FittedLaw:
    """Fit the law to pilots.

    Raises:
        ValueError: no two pilots of one start differ in size, or there are fewer points than the
            law has terms.
    """
    starts = sorted({one.start for one in observations})
    shapes = {(one.start, one.layer_weights) for one in observations}
    if len(shapes) == len(starts):  # or the effects of start and size could not be told apart
        raise ValueError(
            "A law of acceptance needs pilots of two sizes that start alike: raise --pilots, or "
            "name candidates with other numbers of layers."
        )
    terms = len(starts) + 2
    if len(observations) <= terms:
        raise ValueError(
            f"The pilots gave {len(observations)} measurements, and a law of acceptance with "
            f"{terms} terms needs more: train more pilots, or for more steps."
        )
    problem = _Problem.of(observations, starts)
    law, fitted = problem.fit(problem.log_refused)
    residuals = (problem.log_refused - fitted) * problem.refused
    # Residuals of a fit are smaller than the noise that it was fitted to.
    wider = residuals * np.sqrt(len(residuals) / (len(residuals) - terms))
    draws = np.random.default_rng(draw_bits("acceptance law"))
    resampled = [
        problem.fit(fitted + draws.choice(wider, len(wider)) / problem.refused)[0]
        for _ in range(refits)
    ]
    return FittedLaw(
        law=law,
        refits=resampled,
        points=len(observations),
        residual=float(np.sqrt(np.mean(residuals**2))),
        undecided=_undecided(resampled),
    )


@dataclass(frozen=True)
class _Problem:
    """Logarithms of the points, sizes and tokens by their geometric means.

    refused: weighs the points, as what is measured is as uncertain for all in alpha, and so less
    in the logarithm of a higher refusal rate.
    """

    starts: list[str]
    columns: np.ndarray
    refused: np.ndarray
    log_refused: np.ndarray
    size_unit: float
    tokens_unit: float

    @classmethod
    def of(cls, observations: Sequence[Observation], starts: list[str]) -> _Problem:
        log_size = np.log([one.layer_weights for one in observations])
        log_tokens = np.log([one.tokens for one in observations])
        size_unit, tokens_unit = float(log_size.mean()), float(log_tokens.mean())
        is_start = np.array([[one.start == start for start in starts] for one in observations])
        refused = np.array([1 - one.alpha / one.coverage for one in observations])
        refused = np.maximum(refused, _LEAST_REFUSED)
        return cls(
            starts=starts,
            columns=np.column_stack([is_start, size_unit - log_size, tokens_unit - log_tokens]),
            refused=refused,
            log_refused=np.log(refused),
            size_unit=math.exp(size_unit),
            tokens_unit=math.exp(tokens_unit),
        )

    def fit(self, log_refused: np.ndarray) -> tuple[AcceptanceLaw, np.ndarray]:
        """The law of these refusal rates, and what it says at the points."""
        least = [-np.inf] * len(self.starts) + [0.0, 0.0]
        weighted = self.columns * self.refused[:, None]
        found = lsq_linear(weighted, log_refused * self.refused, (least, np.inf), tol=1e-12).x
        *terms, size_exponent, token_exponent = found.tolist()
        law = AcceptanceLaw(
            terms={start: math.exp(one) for start, one in zip(self.starts, terms, strict=True)},
            size_exponent=size_exponent,
            token_exponent=token_exponent,
            layer_weights_unit=self.size_unit,
            tokens_unit=self.tokens_unit,
        )
        return law, self.columns @ found


def _undecided(refits: Sequence[AcceptanceLaw]) -> list[str]:
    """Exponents that may as well be 0."""
    exponents = {
        "size": [one.size_exponent for one in refits],
        "tokens": [one.token_exponent for one in refits],
    }
    return [name for name, its in exponents.items() if np.quantile(its, 0.05) < _NO_EFFECT]
