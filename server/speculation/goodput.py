"""Tokens a second that each lookahead gives: what a step brings by what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from draftsmith.server.speculation.acceptance import block_efficiencies
from draftsmith.server.speculation.step_times import fill_in


def goodput(seconds: Mapping[int, float], acceptance: Sequence[float]) -> dict[int, float]:
    """tau(K) / t(K) by lookahead, for each request, as far as step times are known.

    Args:
        seconds: of a step at one load, by lookahead, as measured.
        acceptance: chance of each position of a proposal after the ones before it.
    """
    known = fill_in(dict(seconds), range(len(acceptance) + 1))
    tokens = block_efficiencies(acceptance)
    return {lookahead: tokens[lookahead] / one for lookahead, one in known.items()}
