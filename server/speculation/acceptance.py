"""What proposals have brought lately: acceptance by position, and tokens a target call from it.

Legend: K lookahead; position i of a proposal counts from 1.
"""

from __future__ import annotations

from collections.abc import Sequence

_PRIOR_TRIALS = 4.0
"""Weight of the guess that a position does as well as the one before it."""
_FIRST_GUESS = 0.7


class RecentAcceptance:
    """Chance that position i is accepted, given that the positions before it were.

    Kept by position, so that a short lookahead still leaves an opinion about a long one: a
    position that is not tried keeps its counts, one that is forgets by halves.
    """

    def __init__(self, max_lookahead: int, half_life: float = 128.0) -> None:
        """`half_life`: trials of a position after which an older one counts half."""
        self._keep = 0.5 ** (1 / half_life)
        self._tried = [0.0] * max_lookahead
        self._accepted = [0.0] * max_lookahead

    def observe(self, proposed: int, accepted: int) -> None:
        """One verified proposal: `accepted` of its `proposed` tokens, in order, were right."""
        assert 0 <= accepted <= proposed <= len(self._tried), "more accepted than proposed"
        # Tokens after the first wrong one were never looked at: they say nothing.
        for place in range(min(accepted + 1, proposed)):
            self._tried[place] = self._keep * self._tried[place] + 1
            self._accepted[place] = self._keep * self._accepted[place] + (place < accepted)

    def conditional(self) -> list[float]:
        """Chance of each position after the ones before it, for all positions."""
        found: list[float] = []
        for tried, accepted in zip(self._tried, self._accepted, strict=True):
            guess = found[-1] if found else _FIRST_GUESS
            found.append((accepted + _PRIOR_TRIALS * guess) / (tried + _PRIOR_TRIALS))
        return found

    def tokens_per_call(self) -> list[float]:
        """tau for every lookahead 0..K: 1 plus the chances that 1, 2, ... K tokens are right."""
        return block_efficiencies(self.conditional())

    def restore(self, conditional: Sequence[float], trials: float) -> None:
        """Begin with what was measured elsewhere, as if from `trials` trials a position."""
        for place, chance in enumerate(conditional[: len(self._tried)]):
            self._tried[place], self._accepted[place] = trials, trials * chance


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
