"""`now()`: seconds since 1970 by the database's clock, which all workers share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):
    """The moment at which the statement runs; on PostgreSQL not that of its transaction."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite(element: now, compiler: Any, **options: Any) -> str:
    # unixepoch('subsec') needs SQLite 3.42; this is exact to some 50 microseconds.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql(element: now, compiler: Any, **options: Any) -> str:
    return "extract(epoch FROM clock_timestamp())::double precision"
