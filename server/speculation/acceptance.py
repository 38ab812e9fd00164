"""What proposals have brought lately: acceptance by position, and tokens a target call from it.

Legend: K lookahead, P position of a proposal; position i counts from 1.
"""

from __future__ import annotations

from collections.abc import Sequence

_PRIOR_TRIALS = 4.0
"""Weight of the guess that a position does as well as the one before it."""
_FIRST_GUESS = 0.7
_LEAST_TRIALS = 16.0
"""What remains of a position that is not tried any more."""


class RecentAcceptance:
    """Chance that position i is accepted, given that the positions before it were.

    Kept by position, so that a short lookahead still leaves an opinion about a long one. A trial
    makes older ones count less; so does a step without one, since the text may have changed.
    """

    def __init__(
        self, max_lookahead: int, half_life: float = 64.0, idle_half_life: float = 512.0
    ) -> None:
        """
        Args:
            half_life: trials of a position after which an older one counts half.
            idle_half_life: the same for steps that do not try the position.
        """
        self._keep = 0.5 ** (1 / half_life)
        self._keep_idle = 0.5 ** (1 / idle_half_life)
        self._tried = [0.0] * max_lookahead
        self._accepted = [0.0] * max_lookahead
        self._squares = [0.0] * max_lookahead
        """Sums of squared weights: what older trials that count less are worth together."""

    def observe(self, proposed: int, accepted: int) -> None:
        """One verified proposal: `accepted` of its `proposed` tokens, in order, were right."""
        assert 0 <= accepted <= proposed <= len(self._tried), "more accepted than proposed"
        # Tokens after the first wrong one were never looked at: they say nothing.
        for place in range(min(accepted + 1, proposed)):
            self._tried[place] = self._keep * self._tried[place] + 1
            self._accepted[place] = self._keep * self._accepted[place] + (place < accepted)
            self._squares[place] = self._keep**2 * self._squares[place] + 1

    def idle(self, lookahead: int) -> None:
        """A step that proposed `lookahead` tokens, and so tried no position after them."""
        for place in range(lookahead, len(self._tried)):
            if self._tried[place] > _LEAST_TRIALS:
                self._tried[place] *= self._keep_idle
                self._accepted[place] *= self._keep_idle
                self._squares[place] *= self._keep_idle

    def conditional(self) -> list[float]:
        """Chance of each position after the ones before it, for all positions."""
        found: list[float] = []
        for tried, accepted in zip(self._tried, self._accepted, strict=True):
            guess = found[-1] if found else _FIRST_GUESS
            found.append((accepted + _PRIOR_TRIALS * guess) / (tried + _PRIOR_TRIALS))
        return found

    def doubts(self, other: int) -> list[float]:
        """Variance of the logarithm of tau(K) / tau(other) for K = 0, 1, ..., to first order."""
        chances = self.conditional()
        slopes_KP = _slopes(chances)
        variances = [
            chance * (1 - chance) / (tried**2 / max(squares, 1e-9) + _PRIOR_TRIALS)
            for chance, tried, squares in zip(chances, self._tried, self._squares, strict=True)
        ]
        return [
            sum(
                (one - its) ** 2 * variance
                for one, its, variance in zip(slopes_P, slopes_KP[other], variances, strict=True)
            )
            for slopes_P in slopes_KP
        ]

    def tokens_per_call(self) -> list[float]:
        """tau for every lookahead 0..K: 1 plus the chances that 1, 2, ... K tokens are right."""
        return block_efficiencies(self.conditional())

    def restore(self, conditional: Sequence[float], trials: float) -> None:
        """Begin with what was measured elsewhere, as if from `trials` trials a position."""
        for place, chance in enumerate(conditional[: len(self._tried)]):
            self._tried[place], self._accepted[place] = trials, trials * chance
            self._squares[place] = trials


def block_efficiencies(conditional: Sequence[float]) -> list[float]:
    """tau for every lookahead 0..K from the chance of each position after those before it.

    tau(K) = 1 + sum over i <= K of the product of the first i chances: exact, because a call
    gives one token more than the proposals that it accepts (arXiv 2211.17192).
    """
    found, reach = [1.0], 1.0
    for chance in conditional:
        reach *= chance
        found.append(found[-1] + reach)
    return found


def _slopes(chances: Sequence[float]) -> list[list[float]]:
    """Derivative of log tau(K) by the chance at each position, for K = 0, 1, ..."""
    tokens, reach = block_efficiencies(chances), 1.0
    found = [[0.0] * len(chances) for _ in tokens]
    for place, chance in enumerate(chances):
        behind, gained = 1.0, 0.0  # what follows a certain acceptance here
        for lookahead in range(place + 1, len(tokens)):
            gained += reach * behind
            found[lookahead][place] = gained / tokens[lookahead]
            behind *= chances[lookahead] if lookahead < len(chances) else 0.0
        reach *= chance
    return found
