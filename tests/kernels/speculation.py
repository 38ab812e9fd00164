"""Real speculative decoding on tiny models: every outcome with its probability, or drawn.

The algorithms are written out as their papers state them, with full distributions, residuals
and acceptance tests; nothing here comes from the code under test. A model is a function from a
prefix to a distribution, so that contexts matter.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Prefix = tuple[int, ...]
Row = NDArray[np.float64]
Model = Callable[[Prefix], Row]
Outcomes = Iterator[tuple[Prefix, float]]
BlockRule = Callable[["Pair", Prefix, int], Outcomes]


@dataclass(frozen=True)
class Pair:
    vocab: int
    p: Model
    q: Model


def random_pair(vocab: int, seed: int, likeness: float = 0.5) -> Pair:
    """Two models that depend on the whole prefix; `likeness` mixes p into q."""

    @cache
    def p(prefix: Prefix) -> Row:
        return np.random.default_rng([seed, 0, *prefix]).dirichlet([0.6] * vocab)

    @cache
    def q(prefix: Prefix) -> Row:
        other = np.random.default_rng([seed, 1, *prefix]).dirichlet([0.6] * vocab)
        return likeness * p(prefix) + (1 - likeness) * other

    return Pair(vocab, p, q)


def texts(vocab: int, length: int) -> list[Prefix]:
    return list(itertools.product(range(vocab), repeat=length))


def probability(model: Model, text: Prefix) -> float:
    return float(np.prod([model(text[:t])[token] for t, token in enumerate(text)]))


def log_probabilities(pair: Pair, text: Prefix) -> tuple[Tensor, Tensor]:
    """log p and log q of each token of a text."""
    rows = [
        [np.log(model(text[:t])[token]) for t, token in enumerate(text)]
        for model in (pair.p, pair.q)
    ]
    log_p_T, log_q_T = torch.tensor(rows, dtype=torch.float64)
    return log_p_T, log_q_T


def token_rule(pair: Pair, prefix: Prefix, lookahead: int) -> Outcomes:
    """Leviathan et al. (arXiv 2211.17192), Algorithm 1."""

    def split(p: Row, q: Row) -> tuple[Row, Row]:
        residual = np.maximum(p - q, 0)
        refused = 1 - np.minimum(p, q).sum()
        return np.minimum(p, q), refused * residual / residual.sum() if refused > 1e-14 else 0 * p

    yield from position_by_position(pair, prefix, lookahead, split)


def position_by_position(
    pair: Pair, prefix: Prefix, lookahead: int, split: Callable[[Row, Row], tuple[Row, Row]]
) -> Outcomes:
    """All outcomes of a rule that decides on each draft alone: what the block appends, and with
    which probability. `split` gives the mass of accepted drafts and that of replacements."""
    alive: dict[Prefix, float] = {(): 1.0}
    for _ in range(lookahead):
        following: dict[Prefix, float] = {}
        for drafted, chance in alive.items():
            context = prefix + drafted
            accepted, replaced = split(pair.p(context), pair.q(context))
            for token in range(pair.vocab):
                following[(*drafted, token)] = chance * float(accepted[token])
                yield (*drafted, token), chance * float(replaced[token])
        alive = following
    for drafted, chance in alive.items():
        for token, bonus in enumerate(pair.p(prefix + drafted)):
            yield (*drafted, token), chance * float(bonus)


def block_rule(pair: Pair, prefix: Prefix, lookahead: int) -> Outcomes:
    """Sun et al. (arXiv 2403.10444), Algorithm 2: drafts are drawn, each place is tested by
    itself, and the last place that passes is the length accepted."""
    for drafts in texts(pair.vocab, lookahead):
        chance, weights, passes = 1.0, [1.0], []
        for i, token in enumerate(drafts):
            p, q = pair.p(prefix + drafts[:i]), pair.q(prefix + drafts[:i])
            chance *= float(q[token])
            weights.append(min(1.0, weights[-1] * float(p[token] / q[token])))
        for i in range(1, lookahead):
            p, q = pair.p(prefix + drafts[:i]), pair.q(prefix + drafts[:i])
            mass = float(np.maximum(weights[i] * p - q, 0).sum())
            passes.append(mass / (mass + 1 - weights[i]) if mass + 1 - weights[i] > 0 else 1.0)
        passes.append(weights[lookahead])
        for accepted in range(lookahead, -1, -1):
            here = chance * (passes[accepted - 1] if accepted else 1.0)
            chance -= here
            context = prefix + drafts[:accepted]
            own = pair.p(context)
            if accepted < lookahead:
                own = np.maximum(weights[accepted] * own - pair.q(context), 0)
                own = own / own.sum() if own.sum() > 0 else pair.p(context)
            for token, share in enumerate(own):
                yield (*drafts[:accepted], token), here * float(share)


def decode(
    pair: Pair, length: int, lookahead: int, rule: BlockRule
) -> dict[Prefix, tuple[float, float]]:
    """Every text of this length with its probability and its expected target calls."""

    @cache
    def rest(prefix: Prefix) -> dict[Prefix, tuple[float, float]]:
        found: dict[Prefix, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for added, chance in rule(pair, prefix, lookahead):
            if chance <= 0:
                continue
            reached = (prefix + added)[:length]
            tails = {reached: (1.0, 0.0)} if len(reached) == length else rest(reached)
            for text, (share, calls) in tails.items():
                found[text][0] += chance * share
                found[text][1] += chance * share * (1 + calls)
        return {text: (share, total / share) for text, (share, total) in found.items()}

    return rest(())


def drawn_calls(
    pair: Pair, length: int, lookahead: int, by_block: bool, rng: np.random.Generator
) -> int:
    """Target calls of one decoding in which every draft, test and token is drawn."""
    text: Prefix = ()
    calls = 0
    while len(text) < length:
        calls += 1
        drafts: Prefix = ()
        for _ in range(lookahead):
            drafts += (int(rng.choice(pair.vocab, p=pair.q(text + drafts))),)
        accepted, weight, own = 0, 1.0, pair.p(text)
        alive, carried = True, 1.0
        for i, token in enumerate(drafts):
            ratio = pair.p(text + drafts[:i])[token] / pair.q(text + drafts[:i])[token]
            carried = min(1.0, carried * ratio)
            if by_block:
                after = text + drafts[: i + 1]
                mass = np.maximum(carried * pair.p(after) - pair.q(after), 0).sum()
                passes = carried if i + 1 == lookahead else mass / (mass + 1 - carried)
                alive = rng.random() < passes
            else:
                alive = alive and rng.random() < ratio
            if alive:
                accepted, weight = i + 1, carried if by_block else 1.0
        context = text + drafts[:accepted]
        own = pair.p(context)
        if accepted < lookahead:
            own = np.maximum(weight * own - pair.q(context), 0)
        text = (*context, int(rng.choice(pair.vocab, p=own / own.sum())))
    return calls


def markov_pair(vocab: int, seed: int, likeness: float = 0.5) -> Pair:
    """A pair that looks at the last token only, so that long texts are cheap."""
    whole = random_pair(vocab, seed, likeness)
    return Pair(vocab, lambda prefix: whole.p(prefix[-1:]), lambda prefix: whole.q(prefix[-1:]))
