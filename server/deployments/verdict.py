"""What the canary prompts say about a new draft beside the one of before."""

from __future__ import annotations

import operator

from draftsmith.server.deployments.event import CanaryFigures, Event


def compared(event: Event, after: CanaryFigures, answers: list[str], others: list[str]) -> Event:
    """The event with the new draft's figures, and the share of answers that stayed the same."""
    same = sum(map(operator.eq, answers, others)) / len(answers)
    return event.model_copy(update={"after": after, "same_answers": same})


def objection(event: Event, min_share: float) -> str | None:
    """What speaks against the draft after its trial; None: nothing."""
    assert event.before is not None
    assert event.after is not None
    before, after = event.before.per_draft, event.after.per_draft
    if after >= min_share * before:
        return None
    return (
        f"Of a proposal {after:.2f} tokens were accepted, with the draft of before {before:.2f}; "
        f"at least {min_share:.0%} of that was asked for."
    )
