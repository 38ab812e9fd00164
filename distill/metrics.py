"""`metrics.jsonl`: the truth of a run, one JSON object a line, appended as it happens.

What else a recipe logs to gets the same records.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from draftsmith.distill.loggers import Logger, scalars


class Metrics:
    """Appends records; after a resume, records of steps that are done again are dropped first.

    evaluates_again: the evaluation of the step that is resumed from is done again, too.
    `enabled` is false in all processes of a run but the first.
    """

    def __init__(
        self, path: Path, resume_from: int, *, evaluates_again: bool = False, enabled: bool = True
    ) -> None:
        self.path, self._enabled = path, enabled
        self.loggers: list[Logger] = []
        if not enabled:
            return
        kept = [record for record in read_metrics(path) if record["step"] <= resume_from]
        if evaluates_again:
            again = ("evaluation", resume_from)
            kept = [record for record in kept if (record["kind"], record["step"]) != again]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        partial.replace(path)

    def write(self, kind: str, step: int, **values: Any) -> None:
        if self._enabled:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
        for logger in self.loggers:
            logger.write(step, dict(scalars(values, kind)))

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
