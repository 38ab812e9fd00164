"""The user's own measure of answers: what a lossy draft is paid with, on the task that counts."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from draftsmith.server.engine.load import LoadResult
from draftsmith.server.named_function import load_function

Scorer = Callable[[str, str], float]
"""(prompt, answer), both as text -> a number, the more the better."""


def load_scorer(name: str) -> Scorer:
    """The function `module:function`.

    Raises:
        ValueError: it cannot be imported or called.
    """
    sys.path.insert(0, str(Path.cwd()))  # a file beside the prompts is a module too
    return load_function(name, f"--score {name}")


def mean_scores(
    scorer: Scorer,
    target: Path,
    prompts: Sequence[Sequence[int]],
    results: Mapping[str, LoadResult],
) -> dict[str, float]:
    """Mean over the answers of each contender, which are read up to their first end mark.

    Args:
        prompts: token ids, in the order of the answers.

    Raises:
        ValueError: the scorer's result is no number.
    """
    from draftsmith.distill.models import load_tokenizer

    tokenizer = load_tokenizer(target)

    def text(tokens: Sequence[int]) -> str:
        ends = [at for at, one in enumerate(tokens) if one == tokenizer.eos_token_id]
        whole = tokens[: ends[0]] if ends else tokens
        return str(tokenizer.decode(whole, skip_special_tokens=True))

    asked = [str(tokenizer.decode(one)) for one in prompts]
    means = {}
    for name, result in results.items():
        scores = [
            scorer(prompt, text(answer))
            for prompt, answer in zip(asked, result.answers, strict=True)
        ]
        if not all(isinstance(one, int | float) for one in scores):
            raise ValueError("--score: the function must return a number for every answer.")
        means[name] = statistics.fmean(scores)
    return means
