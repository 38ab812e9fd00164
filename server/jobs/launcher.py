"""Where trainers run: one small interface, so that a scheduler can stand in for this machine."""

from __future__ import annotations

from typing import Protocol

from draftsmith.server.jobs.folder import JobFolder


class LaunchError(Exception):
    """The trainer could not be started, or an earlier one not ended; another time it may."""


class Handle(Protocol):
    """One trainer that was started."""

    def poll(self) -> int | None:
        """Its exit status, 128 + n when signal n ended it; None while it runs."""

    def stop(self) -> int:
        """SIGTERM, and after a grace SIGKILL, to all its processes; returns when none is left."""


class Launcher(Protocol):
    def clear(self, folder: JobFolder) -> None:
        """End what is left of an earlier attempt; returns when nothing of it lives.

        Raises:
            LaunchError: it cannot be ended.
        """

    def start(self, folder: JobFolder, command: list[str], environment: dict[str, str]) -> Handle:
        """Run `command` in the job's folder, appending to its log.

        Raises:
            LaunchError: it cannot be started.
        """
