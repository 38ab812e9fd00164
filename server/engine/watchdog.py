"""Runs one command and makes sure that nothing of it outlives the process that asked for it.

Started as a script by `process.py`, never imported: `watchdog.py FOLDER GRACE_S COMMAND...`.
Its standard input is a pipe whose other end the gateway holds. When that end closes, for
whatever reason (kill -9 included), the command's whole process group is stopped: SIGTERM, and
after GRACE_S seconds SIGKILL. It does the same on SIGTERM, and when the command ends by itself
it kills what the command left behind. FOLDER gets a file `pid` and is removed at the end.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LIFELINE = 0  # standard input


def main(folder: Path, grace_s: float, command: list[str]) -> int:
    """Run `command`; return its exit status, 128 + n when signal n ended it."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # grandchildren become ours to reap
    wake, wake_end = os.pipe()
    os.set_blocking(wake_end, False)
    signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)

    watchdog = os.getpid()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=lambda: _die_with(watchdog),  # this process has one thread: safe
    )
    # Written to the side and moved, so that a reader never sees half a number.
    (folder / "pid.new").write_text(str(child.pid))
    (folder / "pid.new").rename(folder / "pid")

    watched = [LIFELINE, wake]
    deadline: float | None = None
    while child.poll() is None:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(watched, [], [], timeout)
        stop = False
        if LIFELINE in ready and not os.read(LIFELINE, 1):
            watched.remove(LIFELINE)
            stop = True
        if wake in ready:
            received = os.read(wake, 64)
            stop = stop or signal.SIGTERM in received or signal.SIGINT in received
        if stop and deadline is None:
            deadline = time.monotonic() + grace_s
            _signal(child.pid, signal.SIGTERM, group=False)
        if deadline is not None and time.monotonic() >= deadline:
            _signal(child.pid, signal.SIGKILL, group=True)
    _signal(child.pid, signal.SIGKILL, group=True)
    _reap()
    shutil.rmtree(folder, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _die_with(parent: int) -> None:
    """The kernel kills this process when the watchdog itself is killed (Linux)."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _signal(pid: int, number: int, *, group: bool) -> None:
    # All gone already, perhaps; macOS says EPERM for a group of zombies.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(pid, number)


def _reap() -> None:
    """Collect the orphans that fell to us, for a bounded time."""
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.02)
        except ChildProcessError:
            return


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
