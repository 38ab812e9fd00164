"""Whose files and jobs a request may see: its key's own, or everybody's."""

from __future__ import annotations

from fastapi import Request

from draftsmith.server.gateway import key_of


def owner_of(request: Request) -> str:
    """Who owns what this request makes: the name of its key, "" where no key is asked for."""
    key = key_of(request)
    return "" if key is None else key.name


def viewer_of(request: Request) -> str | None:
    """Whose things this request may see; None: everybody's (an `admin` key, or no keys at all)."""
    key = key_of(request)
    return None if key is None or key.may("admin") else key.name
