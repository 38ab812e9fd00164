"""DeepSpeed's compiled operation for communication between processes on a CPU.

torch marks a build by an empty file, and waits for ever for one that a killed process has left.
Here the kernel holds the lock, and frees it when its owner dies, however it does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def build_communication() -> None:
    """Compile the operation unless it is there; DeepSpeed keeps it for when it asks for it."""
    from deepspeed.comm.torch import build_shm_op

    with _alone():
        build_shm_op()


@contextmanager
def _alone() -> Iterator[None]:
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    root.mkdir(parents=True, exist_ok=True)
    with (root / "draftsmith.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in root.glob("**/deepspeed_shm_comm/lock"):
            stale.unlink(missing_ok=True)
        yield
