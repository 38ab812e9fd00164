"""Nothing of an engine outlives its owner, however either of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from draftsmith.server.engine import process
from tests.server.processes import alive, descendants, wait_until

WATCHDOG = Path(process.__file__).with_name("watchdog.py")
# A child with a grandchild, like the API server with its engine core.
FAMILY = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
OWNER = """
import subprocess, sys, time
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""


def command(folder: Path, code: str, grace_s: float = 0.5) -> list[str]:
    arguments = [str(WATCHDOG), str(folder), str(grace_s), sys.executable, "-c", code]
    return [sys.executable, "-I", "-S", *arguments]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "private"
    path.mkdir()
    return path


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, start_new_session=True)


def family_of(pid: int, size: int) -> list[int]:
    wait_until(lambda: len(descendants(pid)) == size, 10, "the family is complete")
    return [pid, *descendants(pid)]


def all_gone(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def test_closing_the_pipe_stops_everything(folder: Path) -> None:
    watchdog = start(command(folder, FAMILY))
    pids = family_of(watchdog.pid, 2)
    assert int((folder / "pid").read_text()) == pids[1]
    assert watchdog.stdin is not None
    watchdog.stdin.close()
    watchdog.wait(10)
    assert all_gone(pids)
    assert not folder.exists()


def test_owner_killed(folder: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, *command(folder, FAMILY)])
    pids = family_of(owner.pid, 3)
    owner.kill()
    owner.wait()
    wait_until(lambda: all_gone(pids), 10, "no orphan")
    assert not folder.exists()


def test_child_killed_takes_its_children_along(folder: Path) -> None:
    watchdog = start(command(folder, FAMILY))
    pids = family_of(watchdog.pid, 2)
    os.kill(pids[1], signal.SIGKILL)
    assert watchdog.wait(10) == 128 + signal.SIGKILL
    assert all_gone(pids)


def test_watchdog_killed_takes_the_child_along(folder: Path) -> None:
    watchdog = start(command(folder, "import time; time.sleep(600)"))
    pids = family_of(watchdog.pid, 1)
    wait_until((folder / "pid").exists, 10, "the child runs")
    watchdog.kill()
    watchdog.wait()
    wait_until(lambda: all_gone(pids), 10, "the kernel kills the child")


def test_stubborn_child_is_killed_after_the_grace(folder: Path) -> None:
    watchdog = start(command(folder, STUBBORN))
    pids = family_of(watchdog.pid, 1)
    wait_until((folder / "pid").exists, 10, "the child runs")
    os.kill(watchdog.pid, signal.SIGTERM)
    assert watchdog.wait(10) >= 128
    assert all_gone(pids)


def test_exit_status_is_the_childs(folder: Path) -> None:
    assert start(command(folder, "raise SystemExit(7)")).wait(10) == 7
