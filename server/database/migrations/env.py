"""Alembic's entry: applies migrations on the connection that `connect.py` hands over."""

from __future__ import annotations

from alembic import context

from draftsmith.server.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
