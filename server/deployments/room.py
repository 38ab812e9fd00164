"""Whether a second engine fits beside the first one: which way a draft of another shape takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import psutil

from draftsmith.server.engine.command import EngineConfig, engine_command, uses_cpu_wheel

ReplaceEngine = Literal["auto", "beside", "restart"]

_PROCESSES_BYTES = 5 << 28
"""Of vLLM's two processes before any weight is loaded: 1.1 GiB with vLLM 0.32, and some."""
_WEIGHTS_MARGIN = 1.25
"""A CPU engine keeps packed copies of some matrices, a tied vocabulary projection above all."""
_GIB = 1 << 30
_CGROUPS = Path("/sys/fs/cgroup")


def choose_way(
    wish: ReplaceEngine, config: EngineConfig, available: int
) -> tuple[Literal["beside", "restart"], str]:
    """How the engine of `config` comes in the place of the one that runs, and why, in a sentence.

    Args:
        available: bytes of memory that a new process may take.

    Raises:
        ValueError: `wish` is "beside", and there is no room.
    """
    if wish == "restart":
        return "restart", "The setting replace_engine is 'restart'."
    if not uses_cpu_wheel():
        if wish == "beside":
            return "beside", "The setting replace_engine is 'beside'."
        return "restart", "On a GPU a second engine needs the setting replace_engine = 'beside'."
    needed = engine_bytes(config)
    figures = (
        f"a second engine needs about {needed / _GIB:.1f} GiB, "
        f"and {available / _GIB:.1f} GiB are available"
    )
    if needed <= available:
        return "beside", f"There is room: {figures}."
    if wish == "beside":
        raise ValueError(
            f"There is no room: {figures}. Free some memory, lower kv_cache_bytes, or set "
            "replace_engine to 'auto'."
        )
    return "restart", f"There is no room: {figures}."


def engine_bytes(config: EngineConfig) -> int:
    """What an engine on a CPU takes, about: weights, KV cache, and the processes themselves."""
    models = [config.target] if config.draft is None else [config.target, config.draft]
    weights = sum(_weights_bytes(folder, config.dtype_on(cpu=True)) for folder in models)
    command = engine_command(config, Path("socket"))
    cache = int(command[command.index("--kv-cache-memory-bytes") + 1])
    return round(_WEIGHTS_MARGIN * weights) + cache + _PROCESSES_BYTES


def _weights_bytes(folder: Path, dtype: str) -> int:
    files = list(folder.glob("*.safetensors")) or [*folder.glob("*.bin"), *folder.glob("*.gguf")]
    stored = sum(path.stat().st_size for path in files)
    # Stored in half precision at worst, and widened: nothing else grows while it is loaded.
    return 2 * stored if dtype == "float32" and not _is_float32(folder) else stored


def _is_float32(folder: Path) -> bool:
    """Whether the weights are stored so, by the folder's config.json."""
    config = json.loads((folder / "config.json").read_bytes())
    return (config.get("dtype") or config.get("torch_dtype")) == "float32"


def available_bytes() -> int:
    """Memory that a new process may take: of the machine, and of the container around us."""
    return min([psutil.virtual_memory().available, *_left_in_cgroups(_CGROUPS, Path("/proc/self"))])


def _left_in_cgroups(root: Path, process: Path) -> list[int]:
    """What the limits of each control group (version 2) above the process leave.

    psutil sees the machine only; whoever takes more than its container may is killed.
    """
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        return []  # no Linux
    found = []
    for line in lines:
        if not line.startswith("0::"):
            continue
        folder = root / line.removeprefix("0::").strip("/")
        for group in [folder, *folder.parents]:
            if group.is_relative_to(root) and (left := _left_in(group)) is not None:
                found.append(left)
    return found


def _left_in(group: Path) -> int | None:
    """None where the group has no limit of its own."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    # Cached files are counted as used, and given back when somebody needs the memory.
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
