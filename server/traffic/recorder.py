"""Follows one answer, whole or in events, and keeps it when it ended well."""

from __future__ import annotations

import time
from typing import Any

from draftsmith.server.traffic.log import TrafficLog
from draftsmith.server.traffic.record import Record


class Recorder:
    """Called with an answer, or with each of its events; changes nothing in them.

    Kept are answers of one choice, in words: tool calls are not text to distil.
    """

    def __init__(self, log: TrafficLog, body: dict[str, Any], key: str | None) -> None:
        """`body`: of the request, as it goes to the engine, and the client's `metadata`."""
        self._log = log
        self._body = body
        self._key = key
        self._created_at = time.time()
        self._pieces: list[str] = []
        one_choice = body.get("n") in (None, 1) and isinstance(body.get("prompt", ""), str)
        # With an echo the text begins with the prompt, which is no answer to it.
        self._usable = one_choice and not body.get("echo")

    def __call__(self, said: dict[str, Any]) -> None:
        for choice in said.get("choices", []):
            self._take(choice)

    def _take(self, choice: dict[str, Any]) -> None:
        part = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
        if part.get("tool_calls"):
            self._usable = False
        self._pieces.append(part.get("content") or "")
        if choice.get("finish_reason") in ("stop", "length") and self._usable:
            self._usable = False  # once
            self._keep("".join(self._pieces), choice["finish_reason"])

    def _keep(self, response: str, finish_reason: str) -> None:
        if not response:
            return
        self._log.append(
            Record(
                created_at=self._created_at,
                model=self._body["model"],
                key=self._key,
                metadata=self._body.get("metadata") or {},
                prompt=self._body.get("prompt"),
                messages=self._body.get("messages"),
                response=response,
                finish_reason=finish_reason,
                temperature=self._body.get("temperature"),
            )
        )
