"""What benchmarks say about the machine and its memory."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(models or [platform.machine()])[0]}, {torch.get_num_threads()} threads"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def resident_bytes(field: str) -> int:
    """`VmRSS`, the memory that this process has in use, or `VmHWM`, the most that it ever had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = [one for one in lines if one.startswith(f"{field}:")]
    return 1024 * int(line.split()[1])
