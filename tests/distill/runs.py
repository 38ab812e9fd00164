"""Start real training runs on the tiny target, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from draftsmith.distill.metrics import read_metrics

TINY = {
    "teacher.dtype": "float32",
    "export.dtype": "float32",
    "data.limit": 12,
    "data.heldout_limit": 4,
    "rollout.max_new_tokens": 12,
    "train.steps": 4,
    "train.batch_size": 8,
    "train.micro_batch_size": 4,
}


def command(
    target: Path, output: Path, nproc: int = 1, *, recipe: str | Path = "tiny", **settings: Any
) -> list[str]:
    """Command line of a tiny run; settings are recipe fields with `__` for the dot."""
    fields = TINY | {name.replace("__", "."): value for name, value in settings.items()}
    fields["teacher.model"] = str(target)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    arguments = [sys.executable, *(launcher if nproc > 1 else [])]
    arguments += [
        "-m",
        "draftsmith.distill.train",
        "--recipe",
        str(recipe),
        "--output",
        str(output),
    ]
    for name, value in fields.items():
        arguments += ["--set", f"{name}={json.dumps(value)}"]
    return arguments


def run(
    target: Path, output: Path, nproc: int = 1, *, resume: bool = False, **settings: Any
) -> subprocess.CompletedProcess[str]:
    arguments = command(target, output, nproc, **settings) + (["--resume"] if resume else [])
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)


def succeed(
    target: Path, output: Path, nproc: int = 1, *, resume: bool = False, **settings: Any
) -> list[dict[str, Any]]:
    """Run to the end and return the metrics without the fields that measure time."""
    result = run(target, output, nproc, resume=resume, **settings)
    assert result.returncode == 0, result.stderr[-3000:]
    return timeless(output)


def timeless(output: Path) -> list[dict[str, Any]]:
    records = read_metrics(output / "metrics.jsonl")
    return [{key: one[key] for key in one if key != "seconds"} for one in records]


def kill_in_the_middle(
    target: Path,
    output: Path,
    after: int,
    resume: bool,
    settings: dict[str, Any],
    watched: Path | None = None,
) -> None:
    """Kill a run once the run in `watched`, itself or one of its stages, has taken a step."""
    watched = watched or output
    arguments = command(target, output, **settings) + (["--resume"] if resume else [])
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while _last_step(watched) < after:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert _last_step(watched) < settings["train__steps"], "killed after the end"


def _last_step(output: Path) -> int:
    return max((one["step"] for one in read_metrics(output / "metrics.jsonl")), default=0)
