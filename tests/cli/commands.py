"""Run the installed `draftsmith` command as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DRAFTSMITH = Path(sys.executable).with_name("draftsmith")


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"DRAFTSMITH_HOME": str(home), "COLUMNS": "120"}


def draftsmith(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DRAFTSMITH), *map(str, arguments)],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The error of a command that must have failed politely."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr, result.stderr[-2000:]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr[-2000:]
    return errors[0]
