"""How the trainer is started: its command line and environment, for jobs and for the shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from draftsmith.server.engine.command import preload_libraries

TRAINER = ("-m", "draftsmith.distill.train")
"""Of the interpreter: a run of one process."""
_SECRETS = ("DRAFTSMITH_API_KEY", "DRAFTSMITH_DATABASE_URL")
"""Of the server; a trainer needs none of them."""


def trainer_command(
    recipe: str, output: Path, *, launcher: Sequence[str] = TRAINER, resume: bool = False
) -> list[str]:
    """Command line of a run; overrides (`--set a.b=c`) may be appended.

    Args:
        launcher: arguments of the interpreter that start the trainer, on one process or several.
    """
    arguments = ["--recipe", recipe, "--output", str(output)]
    return [sys.executable, *launcher, *arguments, *(["--resume"] if resume else [])]


def trainer_environment() -> dict[str, str]:
    # DeepSpeed compiles its communication op with ninja, which lies beside this interpreter.
    tools = str(Path(sys.executable).parent)
    # glibc gives large buffers back to the kernel each time; tcmalloc halves a step's time.
    preload = [str(path) for path in preload_libraries()]
    inherited = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    return inherited | {
        "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")]),
        "LD_PRELOAD": os.pathsep.join([*preload, os.environ.get("LD_PRELOAD", "")]).strip(":"),
    }
