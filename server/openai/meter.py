"""Counts what an answer costs a key that may use so many tokens a minute.

vLLM says it at the end of an answer. A client may leave a stream before its end, so vLLM is asked
to say it in every event of such a key's streams, and what the client did not ask for is taken out.
"""

from __future__ import annotations

from typing import Any

from draftsmith.server.admission import Slot

_RESPONSES_DELTA = ".delta"


class Meter:
    """Writes the cost of one answer into its slot. A `Reshape`, which must be the last."""

    def __init__(self, slot: Slot, body: dict[str, Any]) -> None:
        """`body`: what the engine is going to get; changed in place."""
        self._slot = slot
        self._choices = int(body.get("n") or 1)
        self._prompts: dict[int, int] = {}
        self._answers: dict[int, int] = {}
        """Tokens so far by number of the prompt, and of the choice: an event speaks of one."""
        # /v1/responses has no such options: its last event tells, and until then deltas do.
        self._in_every_event = bool(body.get("stream")) and "input" not in body
        if self._in_every_event:
            wish = body.get("stream_options") or {}
            self._wants_last = bool(wish.get("include_usage"))
            self._wants_all = self._wants_last and bool(wish.get("continuous_usage_stats"))
            always = {"include_usage": True, "continuous_usage_stats": True}
            body["stream_options"] = {**wish, **always}

    def __call__(self, said: dict[str, Any]) -> None:
        """An event that is only there because of us is emptied, and so left out."""
        inner = said.get("response")
        usage = (inner if isinstance(inner, dict) else said).get("usage")
        if isinstance(usage, dict):
            self._take(usage, said.get("choices") if self._in_every_event else None)
        elif str(said.get("type", "")).endswith(_RESPONSES_DELTA):
            self._slot.tokens += 1
        if not self._in_every_event or "usage" not in said:
            return
        if said.get("choices"):
            if not self._wants_all:
                del said["usage"]
        elif not self._wants_last:
            said.clear()

    def _take(self, usage: dict[str, Any], choices: list[dict[str, Any]] | None) -> None:
        """`choices`: those that an event in the middle speaks of; none at the end."""
        if not choices:
            self._slot.tokens = int(usage.get("total_tokens") or 0)
            return
        for choice in choices:
            index = int(choice.get("index") or 0)
            self._prompts[index // self._choices] = int(usage.get("prompt_tokens") or 0)
            self._answers[index] = int(usage.get("completion_tokens") or 0)
        self._slot.tokens = sum(self._prompts.values()) + sum(self._answers.values())
