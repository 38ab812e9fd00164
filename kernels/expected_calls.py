"""Exact block efficiency of speculative decoding, for every lookahead, without drawing a sample.

Given text that the target wrote, a verification rule says with which chance a block that starts
at token t has its first i drafts accepted (`token_survival_TS`, `block_survival_TS`). A block
with i accepted drafts ends with a token of the target's own, and the next block starts at
t + i + 1; so the chance that a block starts at t follows a linear recursion, and its sum is the
expected number of target calls. Averages such as (1 - alpha^(K+1)) / (1 - alpha) (arXiv
2211.17192) assume equal, independent acceptance at all positions, which real text does not have.

Legend: T tokens of one response, G largest lookahead (row g is for lookahead g + 1),
S = G + 1 numbers of accepted tokens, from 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpectedCalls:
    """What speculative decoding of some text is expected to take.

    tokens: tokens of the text.
    calls_G: target calls, for lookaheads 1, 2, ... G.
    offered_GG: calls whose i-th draft lies inside the text; column i - 1.
    accepted_GG: calls whose first i drafts are accepted and lie inside the text.
    """

    tokens: int
    calls_G: Tensor
    offered_GG: Tensor
    accepted_GG: Tensor

    @property
    def block_efficiency(self) -> dict[int, float]:
        """tau, mean tokens a target call, of each lookahead; responses weigh by their tokens."""
        tau_G: list[float] = (self.tokens / self.calls_G).tolist()
        return dict(enumerate(tau_G, start=1))

    def acceptance_per_position(self, lookahead: int) -> list[float]:
        """Share of the calls whose first 1, 2, ... lookahead drafts are accepted, as vLLM counts
        it. Positions that lie past the end of every text are left out.

        Raises:
            ValueError: lookahead is not among those computed.
        """
        if not 1 <= lookahead <= len(self.calls_G):
            raise ValueError(
                f"lookahead must be from 1 to {len(self.calls_G)}, but is {lookahead}."
            )
        offered_G = self.offered_GG[lookahead - 1, :lookahead]
        accepted_G = self.accepted_GG[lookahead - 1, :lookahead]
        shares: list[float] = (accepted_G / offered_G)[offered_G > 0].tolist()
        return shares


def expected_calls(survivals: Iterable[Tensor]) -> ExpectedCalls:
    """Add up the expected target calls of some responses.

    Args:
        survivals: survival_TS of each response, all for the same largest lookahead.

    Raises:
        ValueError: there is no token, or survivals differ in lookahead.
    """
    parts = [_of_one_response(survival_TS) for survival_TS in survivals]
    tokens = sum(part.tokens for part in parts)
    if tokens == 0:
        raise ValueError("survivals must hold at least one token.")
    if len({len(part.calls_G) for part in parts}) > 1:
        raise ValueError("survivals must all be for the same lookahead.")
    return ExpectedCalls(
        tokens,
        torch.stack([part.calls_G for part in parts]).sum(0),
        torch.stack([part.offered_GG for part in parts]).sum(0),
        torch.stack([part.accepted_GG for part in parts]).sum(0),
    )


def _of_one_response(survival_TS: Tensor) -> ExpectedCalls:
    starts_GT = block_starts_GT(survival_TS)
    length, lookahead = survival_TS.shape[0], survival_TS.shape[1] - 1
    start_T1 = torch.arange(length)[:, None]
    inside_TG = (start_T1 + torch.arange(lookahead) < length).double()
    return ExpectedCalls(
        tokens=length,
        calls_G=starts_GT.sum(-1),
        offered_GG=starts_GT @ inside_TG,
        accepted_GG=starts_GT @ (inside_TG * survival_TS[:, 1:]),
    )


def block_starts_GT(survival_TS: Tensor) -> Tensor:
    """Chance that a block starts at each token, for lookaheads 1, 2, ... G.

    Args:
        survival_TS: chance that the first 0, 1, ... G drafts of a block are accepted.

    Raises:
        ValueError: survival_TS is not a falling sequence of chances that begins with 1.
    """
    if survival_TS.dim() != 2 or survival_TS.shape[1] < 2:
        raise ValueError("survival_TS must have a row a token and a column for 0, 1, ... drafts.")
    survival_TS = survival_TS.double().cpu()
    falls = (survival_TS[:, 1:] <= survival_TS[:, :-1]) & (survival_TS[:, 1:] >= 0)
    if not bool(falls.all()) or not bool((survival_TS[:, 0] == 1).all()):
        raise ValueError("survival_TS must fall from 1 along each row and stay above 0.")

    ends_TGS = _accepted_TGS(survival_TS)
    length, lookahead, accepted = ends_TGS.shape
    starts_GL = torch.zeros(lookahead, length + accepted, dtype=torch.float64)
    starts_GL[:, 0] = 1.0
    for t in range(length):
        starts_GL[:, t + 1 : t + 1 + accepted] += starts_GL[:, t, None] * ends_TGS[t]
    return starts_GL[:, :length]


def _accepted_TGS(survival_TS: Tensor) -> Tensor:
    """Chance that exactly 0, 1, ... G drafts are accepted, given the lookahead of row g."""
    exactly_TG = survival_TS[:, :-1] - survival_TS[:, 1:]
    lookahead = exactly_TG.shape[1]
    accepted_TGS = torch.zeros(len(survival_TS), lookahead, lookahead + 1, dtype=torch.float64)
    accepted_TGS[:, :, :-1] = exactly_TG[:, None, :].expand(-1, lookahead, -1).tril()
    accepted_TGS[:, range(lookahead), range(1, lookahead + 1)] = survival_TS[:, 1:]  # all of them
    return accepted_TGS
