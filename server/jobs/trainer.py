"""How the trainer is started: its command line and environment, for jobs and for the shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from draftsmith.server.engine.command import preload_libraries

_MODULE = ["-m", "draftsmith.distill.train"]
_SECRETS = ("DRAFTSMITH_API_KEY", "DRAFTSMITH_DATABASE_URL")
"""Of the server; a trainer needs none of them."""


def trainer_command(
    recipe: str, output: Path, *, nproc: int = 1, resume: bool = False
) -> list[str]:
    """Command line of a run; overrides (`--set a.b=c`) may be appended."""
    launcher = [sys.executable]
    if nproc > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
        launcher += torchrun
    arguments = ["--recipe", recipe, "--output", str(output)]
    return [*launcher, *_MODULE, *arguments, *(["--resume"] if resume else [])]


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
