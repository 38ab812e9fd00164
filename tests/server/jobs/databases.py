"""Both kinds of database, and jobs that need no training."""

from __future__ import annotations

from typing import Any

from draftsmith.server.database.connect import Database
from draftsmith.server.jobs.job import Job, NewEvent, Status
from draftsmith.server.jobs.lease import Ending
from draftsmith.server.jobs.store import JobStore, NewJob

DONE = Ending(Status.SUCCEEDED, "succeeded", NewEvent("Done."), 0, draft="draft-" + "0" * 16)
RELEASED = Ending(Status.QUEUED, "released", NewEvent("Released."), 0)


def new_job(**fields: Any) -> NewJob:
    values: dict[str, Any] = {
        "owner": "",
        "name": "a",
        "model": "m",
        "request": {},
        "recipe": {"data": {"train": "draftsmith:stdlib/train", "heldout": "x"}},
        "folders": {},
        "labels": {},
        "total_steps": 1,
        "max_runtime_s": 60,
        "body_sha256": "0" * 64,
    }
    return NewJob(**(values | fields))


def make(database: Database, **fields: Any) -> Job:
    return JobStore(database).create(new_job(**fields), most=10_000)
