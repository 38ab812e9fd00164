"""A real PostgreSQL server of the test's own, as a user that is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server.processes import wait_until


def find_program(name: str) -> Path | None:
    """Debian keeps the server's programs out of PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    places = [*(folder / name for folder in folders), shutil.which(name)]
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database. Skips the test where PostgreSQL is not installed."""
    initdb, server = find_program("initdb"), find_program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="draftsmith-pg-", dir="/tmp"))
    try:
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        uid, gid = (None, None) if user is None else (user.pw_uid, user.pw_gid)
        data = folder / "data"
        subprocess.run(
            [initdb, "-D", data, "-U", "draftsmith", "--auth=trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, cwd=folder, user=uid, group=gid,
        )  # fmt: skip
        # Only a socket in the folder: no port that could be taken.
        options = ["-k", str(folder), "-h", "", "-c", "fsync=off"]
        process = subprocess.Popen(
            [str(server), "-D", str(data), *options],
            cwd=folder,
            stderr=subprocess.DEVNULL,
            user=uid,
            group=gid,
        )
        try:
            wait_until((folder / ".s.PGSQL.5432").exists, 30, "PostgreSQL listens")
            wait_until(lambda: "ready" in _status(data), 30, "PostgreSQL is ready")
            yield f"postgresql://draftsmith@/postgres?host={folder}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _status(data: Path) -> str:
    lines = (data / "postmaster.pid").read_text().splitlines()
    return lines[7] if len(lines) > 7 else ""


def _unprivileged() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {one.pw_name: one for one in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]
