"""What an exit status of the trainer means for its job: done, again, or never again.

The statuses are those of the trainer's table of endings (2 to 6); whatever else happens to a
process (a signal, a crash of the interpreter) is nobody's fault, and is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_TAIL = 1 << 14


@dataclass(frozen=True)
class Failure:
    """`code` is for programs, `sentence` for people; `retry` says whether the same again may
    end better, `wait` how many times the usual back-off it needs."""

    code: str
    sentence: str
    retry: bool
    wait: float = 1.0


_BY_STATUS = {
    1: Failure("trainer_fault", "The trainer failed; its log has the details.", True),
    2: Failure("invalid_recipe", "The trainer refused the recipe or its data.", False),
    3: Failure("training_diverged", "The loss is no longer a number.", False),
    4: Failure("disk_full", "The disk is full.", True, wait=4.0),
    5: Failure("process_lost", "A process of the run was lost.", True),
    6: Failure("interrupted", "The run was interrupted.", True),
}
_KILLED = Failure("process_killed", "The trainer was ended by a signal.", True)
_UNFINISHED = Failure("interrupted", "The trainer stopped before the draft was done.", True)


def failure(status: int, log: Path) -> Failure:
    """Why a trainer that left no draft ended; quotes the sentence that it ended with."""
    sentence = last_error(log)
    if status == 0:
        return _UNFINISHED
    found = _BY_STATUS.get(status, _KILLED)
    if sentence is None or found is _KILLED:
        return found
    return Failure(found.code, sentence, found.retry, found.wait)


def last_error(log: Path) -> str | None:
    """The last line, where it is an error in a sentence."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL))
        lines = stream.read().decode("utf-8", "replace").strip().splitlines()
    if lines and lines[-1].startswith("error: "):
        return lines[-1].removeprefix("error: ")[:500]
    return None
