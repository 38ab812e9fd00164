"""The tables are what the migrations make, whoever gets there first."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from draftsmith.server.database.connect import open_database
from draftsmith.server.database.tables import metadata
from draftsmith.server.home import Home


def open_and_close(home: Path) -> None:
    open_database(Home(home)).close()


def test_migrations_make_the_tables(tmp_path: Path) -> None:
    database = open_database(Home(tmp_path))
    with database.reading() as connection:
        # alembic cannot read descending columns back; the test below looks at that index.
        options = {"include_object": lambda _, name, *rest: name != "jobs_queue"}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_a_claim_reads_no_more_than_the_job_it_takes(tmp_path: Path) -> None:
    """Whatever the queue's length: without this order in an index every claim sorts the queue."""
    plan = """EXPLAIN QUERY PLAN SELECT number FROM jobs WHERE status = 'queued' AND not_before <= 1
        ORDER BY priority DESC, number LIMIT 1"""
    listed = """EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE status IN ('queued')
        ORDER BY number DESC LIMIT 20"""
    with open_database(Home(tmp_path)).reading() as connection:
        for query, index in ((plan, "jobs_queue"), (listed, "jobs_status")):
            steps = [row[3] for row in connection.execute(text(query))]
            assert len(steps) == 1, "no step sorts"
            assert f"USING INDEX {index}" in steps[0]


def test_several_processes_may_start_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(open_and_close, [tmp_path] * 4))
    with open_database(Home(tmp_path)).reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 0


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    database = open_database(Home(tmp_path))
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(ValueError, match="newer version"):
        open_database(Home(tmp_path))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "not a URL"),
        ("mysql://a@b/c", "only postgresql"),
        ("postgresql://nobody@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_wrong_urls(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_database(Home(tmp_path), url)
