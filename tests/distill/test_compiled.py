"""The build of DeepSpeed's operation survives those who are killed in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

START = """
from draftsmith.distill.distributed import start_processes, stop_processes
start_processes()
stop_processes()
"""


def test_the_lock_of_a_killed_build_holds_nobody_up(tmp_path: Path) -> None:
    known = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    folder = tmp_path / "extensions"
    if known.is_dir():
        shutil.copytree(known, folder)  # what is built already need not be built again
    marks = [path.parent for path in folder.glob("**/deepspeed_shm_comm/build.ninja")]
    for mark in marks or [folder / "deepspeed_shm_comm"]:
        mark.mkdir(parents=True, exist_ok=True)
        (mark / "lock").touch()
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder)}
    tools = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([tools, environment.get("PATH", "")])
    subprocess.run([sys.executable, "-c", START], env=environment, timeout=300, check=True)
