"""One database for files and jobs: SQLite under the home folder, or PostgreSQL by URL.

SQLite is one file for the processes of one machine (write-ahead log, every commit on the disk);
it must not lie on a network file system. Several machines need PostgreSQL.
"""

from __future__ import annotations

import fcntl
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from draftsmith.server.home import Home

_MIGRATIONS = "draftsmith.server.database:migrations"
_BUSY_S = 30.0
_MIGRATION_LOCK = 0x64726166  # any number of ours


class Database:
    """A pool of connections. Safe to use from several threads and processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._read = engine.execution_options(draftsmith_begin="BEGIN")
        self._write = engine.execution_options(draftsmith_begin="BEGIN IMMEDIATE")

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._read.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction; SQLite's only writer from the start, so that it never has to give up."""
        with self._write.begin() as connection:
            yield connection

    def serialise(self, connection: Connection, name: str) -> None:
        """Hold back other transactions with this `name` until this one ends."""
        if not self.is_sqlite:  # there a writing transaction is alone already
            lock = text("SELECT pg_advisory_xact_lock(:lock)")
            connection.execute(lock, {"lock": zlib.crc32(name.encode())})

    def close(self) -> None:
        self._engine.dispose()


def open_database(home: Home, url: str | None = None) -> Database:
    """Connect, and bring the tables to this version's form.

    Args:
        url: `postgresql://user:password@host/name`; None: a file in `home`.

    Raises:
        ValueError: the database cannot be reached, is of another kind, or was written by a
            newer version of Draftsmith.
    """
    home.ensure()
    parsed = _parse(url) if url else URL.create("sqlite", database=str(home.database))
    if url is None:
        home.database.touch(mode=0o600)  # it holds answers; SQLite's other files take its mode
    engine = create_engine(parsed, pool_pre_ping=url is not None, **_options(parsed))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        _migrate(engine, home.database.with_suffix(".lock"))
    except OperationalError as error:
        engine.dispose()
        reason = str(error.orig).strip().splitlines()[0]
        raise ValueError(f"The database cannot be used: {reason}.") from error
    return Database(engine)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError(
            "DRAFTSMITH_DATABASE_URL is not a URL: give postgresql://user:password@host/name."
        ) from None
    if parsed.get_backend_name() != "postgresql":
        raise ValueError(
            f"DRAFTSMITH_DATABASE_URL names '{parsed.get_backend_name()}': only postgresql:// is "
            "taken; without the variable a SQLite file in DRAFTSMITH_HOME is used."
        )
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ValueError(
            "PostgreSQL needs the package psycopg: pip install 'draftsmith[postgres]'."
        ) from None
    return parsed.set(drivername="postgresql+psycopg")


def _options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _BUSY_S}}
    # Each statement sees what was committed before it; a claim must not see an old queue.
    return {"isolation_level": "READ COMMITTED", "connect_args": {"connect_timeout": 10}}


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # else sqlite3 begins transactions as it sees fit
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("draftsmith_begin", "BEGIN"))


def _migrate(engine: Engine, lock_file: Path) -> None:
    """Apply what is missing, while no other process does."""
    config = Config()
    config.set_main_option("script_location", _MIGRATIONS)
    script = ScriptDirectory.from_config(config)
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # the file holds back this machine only
                held = text("SELECT pg_advisory_xact_lock(:lock)")
                connection.execute(held, {"lock": _MIGRATION_LOCK})
            current = MigrationContext.configure(connection).get_current_revision()
            if current == script.get_current_head():
                return
            if current is not None and current not in {one.revision for one in _all(script)}:
                raise ValueError(
                    "The database was written by a newer version of draftsmith: upgrade this one."
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _all(script: ScriptDirectory) -> Iterator[Any]:
    yield from script.walk_revisions()
