"""What happened to a deployment's draft: a change, how it was tried, what became of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DraftRef(_Frozen):
    """A draft that is or was served."""

    version: str | None
    """Its id in the registry's form; None for a folder without a manifest."""
    folder: str


class CanaryFigures(_Frozen):
    """What one draft did with the canary prompts, by vLLM's own counters of those requests."""

    prompts: int
    tokens: int
    drafts: int
    """Target calls that verified a proposal."""
    proposed: int
    accepted: int
    block_efficiency: float
    """tau = 1 + accepted / drafts: mean tokens a target call (arXiv 2211.17192)."""
    tokens_per_second: float
    """Of all canary requests together; other traffic slows it down."""

    @property
    def per_draft(self) -> float:
        """Mean number of accepted tokens a proposal."""
        return self.accepted / self.drafts


class Event(_Frozen):
    """One attempt to serve another draft. `id` is 0 until it is stored."""

    id: int = 0
    deployment: str
    action: Literal["promote", "rollback"]
    outcome: Literal["running", "done", "rolled_back", "failed", "interrupted"] = "running"
    """`rolled_back`: the canary set was against it; `interrupted`: the server ended meanwhile."""
    way: Literal["exchange", "beside", "restart"]
    """Weights exchanged in the live engine; a second engine beside it that takes over; or the
    engine stopped, and another one started."""
    why: str = ""
    """Of the way."""
    previous: DraftRef
    draft: DraftRef
    before: CanaryFigures | None = None
    after: CanaryFigures | None = None
    same_answers: float | None = None
    """Share of canary answers that are the same before and after; rounding may change a few."""
    swap_ms: float | None = None
    """Milliseconds for which no token came, at most: the exchange, the change of engines, or the
    restart."""
    reason: str = ""
    by: str | None = None
    """Name of the API key."""
    began_at: int
    ended_at: int | None = None

    def public(self) -> dict[str, Any]:
        """Without the folders, which are the server's own affair."""
        shown = self.model_dump(mode="json")
        for role in ("previous", "draft"):
            shown[role] = shown[role]["version"]
        return {"object": "deployment.event"} | shown
