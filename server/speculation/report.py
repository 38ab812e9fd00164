"""What an engine's scheduler knows about its speculation, as a file that others may read.

The engine core has no channel of its own to the gateway; a small file in the engine's private
folder, replaced whole about once a second, is one that cannot slow a step down.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from draftsmith.server.speculation.controller import LookaheadController
from draftsmith.server.speculation.goodput import goodput
from draftsmith.server.speculation.step_times import bucket_of

STEPS_NAME = "steps.json"


class StepReport(BaseModel):
    """Legend: B requests that decode, by the next power of two; K lookahead."""

    model_config = ConfigDict(frozen=True)

    max_lookahead: int
    """K that the engine can draft; 0 without a draft."""
    chosen: dict[int, int]
    """B -> the lookahead that stands for it."""
    seconds: dict[int, dict[int, float]]
    """B -> lookahead -> seconds of a step, as the filter of step times has them."""
    acceptance: list[float]
    """Chance that position 1..K of a proposal is accepted, given the positions before it."""

    @classmethod
    def of(cls, controller: LookaheadController) -> StepReport:
        return cls(
            max_lookahead=controller.max_lookahead,
            chosen=controller.chosen(),
            seconds=controller.times.table(),
            acceptance=controller.acceptance.conditional(),
        )

    def goodput(self, num_decoding: int) -> dict[int, float]:
        """Tokens a second of each of `num_decoding` requests, by lookahead, as far as known."""
        return goodput(self.seconds.get(bucket_of(num_decoding), {}), self.acceptance)

    def write(self, folder: Path) -> None:
        """Replace the report in `folder`, whole: nobody reads half of one."""
        partial = folder / f"{STEPS_NAME}.partial"
        partial.write_text(self.model_dump_json(), encoding="utf-8")
        partial.replace(folder / STEPS_NAME)


def read_step_report(folder: Path) -> StepReport | None:
    """The newest report in `folder`; None before the first.

    Raises:
        ValueError: what lies there is no report.
    """
    path = folder / STEPS_NAME
    try:
        return StepReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ValueError(f"{path} is not a report of an engine's steps.") from error
