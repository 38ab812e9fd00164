"""Takes out of the home what nothing refers to any more: drafts, and what ended jobs left behind.

Under a lock that excludes new versions and new names the references are read, and what none of
them names is moved aside by one `rename` each. Only then, without the lock, is it deleted: a
crash leaves either a whole version or junk in the trash, which the next call deletes.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import or_, select

from draftsmith.server.database.connect import Database
from draftsmith.server.database.tables import jobs
from draftsmith.server.deployments.journal import Journal
from draftsmith.server.home import Home
from draftsmith.server.jobs.folder import JobFolder
from draftsmith.server.jobs.job import TERMINAL, Status
from draftsmith.server.registry import Registry, Version

_YOUNG_S = 3600.0
"""A version that came so lately may be on its way to its first reference."""
_STALE_S = 24 * 3600.0
"""A half-made copy that is older was left behind by a crash."""


@dataclass(frozen=True)
class Garbage:
    versions: list[Version]
    folders: list[Path]
    """Models and checkpoints of jobs that are over; their metrics and logs stay."""

    @property
    def bytes(self) -> int:
        folders = [*(one.folder for one in self.versions), *self.folders]
        return sum(
            path.stat().st_size for one in folders for path in one.rglob("*") if path.is_file()
        )


class Collector:
    def __init__(
        self,
        home: Home,
        database: Database,
        *,
        keep: int,
        job_age_s: float,
        young_s: float = _YOUNG_S,
    ) -> None:
        """
        Args:
            keep: of the versions that nothing refers to, so many newest stay.
            job_age_s: what a job left stays so long after its end.
        """
        self._home, self._database, self._registry = home, database, Registry(home)
        self._keep, self._job_age_s, self._young_s = keep, job_age_s, young_s

    def find(self) -> Garbage:
        """What would go now; nothing is changed."""
        return Garbage(self._versions(), list(self._left_by_jobs()))

    def collect(self) -> Garbage:
        """Take the garbage out; returns what it was."""
        trash = self._home.registry / "trash"
        with self._registry.held(alone=True):
            versions = self._versions()
            for version in versions:
                self._registry.take_out(version.id, trash)
        shutil.rmtree(trash, ignore_errors=True)
        self._clear_staging()
        folders = list(self._left_by_jobs())
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        return Garbage(versions, folders)

    def _versions(self) -> list[Version]:
        used = {*self._by_names(), *self._by_deployments(), *self._by_jobs()}
        commands = _commands()
        free = [
            one
            for one in self._registry.versions()
            if one.id not in used
            and time.time() - one.folder.stat().st_mtime > self._young_s
            and not any(one.id in command for command in commands)
        ]
        return free[: max(0, len(free) - self._keep)]

    def _by_names(self) -> Iterator[str]:
        yield from (one.version for one in self._registry.names())

    def _by_deployments(self) -> Iterator[str]:
        """What is served, what a rollback would go back to, and what is being tried."""
        if not self._home.deployments.is_file():
            return
        journal = Journal(self._home.deployments)
        for drafts in [*journal.stacks().values(), journal.tried()]:
            yield from (Path(one.folder).name for one in drafts)

    def _by_jobs(self) -> Iterator[str]:
        """Drafts of jobs that are not over or not named yet, and what those jobs read."""
        unnamed = (jobs.c.status == Status.SUCCEEDED) & jobs.c.named.is_(False)
        going_on = or_(jobs.c.status.not_in(TERMINAL), unnamed)
        with self._database.reading() as connection:
            query = select(jobs.c.draft, jobs.c.folders).where(going_on)
            rows = connection.execute(query).all()
        for draft, folders in rows:
            yield from (Path(folder).name for folder in folders.values())
            if draft is not None:
                yield draft

    def _left_by_jobs(self) -> Iterator[Path]:
        old = time.time() - self._job_age_s
        with self._database.reading() as connection:
            query = select(jobs.c.id).where(jobs.c.status.in_(TERMINAL), jobs.c.finished_at < old)
            ids = connection.execute(query).scalars().all()
        for identifier in ids:
            run = JobFolder.of(self._home, identifier).run
            yield from (one for one in (run.checkpoints, run.initial, run.draft) if one.is_dir())

    def _clear_staging(self) -> None:
        for path in (self._home.registry / "staging").glob("*"):
            with contextlib.suppress(FileNotFoundError):  # it was registered at this moment
                if time.time() - path.stat().st_mtime > _STALE_S:
                    shutil.rmtree(path, ignore_errors=True)


def _commands() -> list[str]:
    """Command lines of this machine: a live engine, or an evaluation, names its draft there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found
