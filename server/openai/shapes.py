"""Where vLLM's answers leave the types of OpenAI's client, and how they are brought back.

The types of legacy completions forbid two nulls that OpenAI's own service sends: `finish_reason`
until a stream's last chunk, and the log-probability of an echo's first token. Most clients rely
on the first null to know that more comes, so it is replaced only on demand.
"""

from __future__ import annotations

from typing import Any

STRICT_HEADER = "x-strict-types"
"""A request with this header set to `true` gets completions that the types allow."""


def make_completion_strict(answer: dict[str, Any]) -> None:
    """Replace the nulls in a completion, or in one chunk of it.

    `length` says that a chunk's text was cut, which is so; the last chunk has the true reason. A
    first token, given rather than predicted, gets the log-probability 0.
    """
    for choice in answer.get("choices", []):
        if choice.get("finish_reason") is None:
            choice["finish_reason"] = "length"
        logprobs = choice.get("logprobs")
        if logprobs is None:
            continue
        if logprobs.get("token_logprobs"):
            logprobs["token_logprobs"] = [one or 0.0 for one in logprobs["token_logprobs"]]
        if logprobs.get("top_logprobs"):
            logprobs["top_logprobs"] = [one or {} for one in logprobs["top_logprobs"]]
