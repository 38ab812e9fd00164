"""A deployment's names in the registry: `<deployment>/production` and `<deployment>/candidate`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from draftsmith.server.deployments.event import DraftRef
from draftsmith.server.registry import Conflict, Name, Registry

Role = Literal["production", "candidate"]
"""What is served, and what is being tried."""

_log = logging.getLogger("draftsmith.deployments")


class Aliases:
    """Changed by compare-and-swap, so that two servers or users cannot undo each other unseen."""

    def __init__(self, registry: Registry, deployment: str) -> None:
        self._registry = registry
        # A served name may be a hub id or anything else; the registry's names hold one slash.
        self._prefix = re.sub(r"[^A-Za-z0-9]+", "-", deployment).strip("-")[:100] or "deployment"

    def name(self, role: Role) -> str:
        return f"{self._prefix}/{role}"

    def get(self, role: Role) -> Name | None:
        return self._registry.name(self.name(role))

    def set_production(self, draft: DraftRef, seen: Name | None) -> None:
        """Point `production` to `draft`; a draft that is not registered leaves no such name.

        Raises:
            Conflict: the name is not any more what was `seen`.
        """
        registered = draft.version is not None and self._is_registered(draft.version)
        if registered and draft.version is not None:
            expected = None if seen is None else seen.etag
            self._registry.set_name(self.name("production"), draft.version, expected=expected)
        elif seen is not None:
            self._registry.delete_name(seen.name, expected=seen.etag)

    @contextmanager
    def candidate(self, version: str) -> Iterator[None]:
        """`candidate` points to `version` for the length of a `with`.

        Raises:
            Conflict: somebody else changed the name at the same moment.
        """
        before = self.get("candidate")  # left behind by a crash, perhaps
        expected = None if before is None else before.etag
        mine = self._registry.set_name(self.name("candidate"), version, expected=expected)
        try:
            yield
        finally:
            try:
                self._registry.delete_name(mine.name, expected=mine.etag)
            except Conflict:
                _log.warning("the name %s was changed by somebody else: it stays", mine.name)

    def _is_registered(self, version: str) -> bool:
        return any(one.id == version for one in self._registry.versions())
