"""Checkpoints that are complete or absent.

DeepSpeed writes model and optimiser state into a `.partial` folder; the marker with the hashes of
all files is written last, and only then is the folder renamed. A run killed at any moment finds
its newest complete checkpoint, and one that was damaged later is passed over with a warning. A
full disk costs the checkpoint that was being written, and no other.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from draftsmith.distill import distributed
from draftsmith.distill.folder import MARKER
from draftsmith.distill.manifest import FileEntry, flush_to_disk, list_files

_TAG = "state"
_FULL_BELOW_BYTES = 2**20


class _Marker(BaseModel):
    """What COMPLETE.json says of the files beside it."""

    step: int
    files: list[FileEntry]


def save_checkpoint(folder: Path, engine: Any, step: int, keep: int, state: dict[str, Any]) -> Path:
    """Write the state after `step` steps under `folder` and drop all but the newest `keep`.

    Args:
        state: what the run knows beside the engine's own state, the same on all processes: plain
            numbers, strings, lists and dicts.

    Raises:
        OSError: with errno ENOSPC where the disk is full.
    """
    final = folder / f"step-{step:08d}"
    partial = final.with_suffix(".partial")
    if distributed.is_main():
        for unfinished in folder.glob("*.partial"):
            shutil.rmtree(unfinished)
        partial.mkdir(parents=True)
    distributed.barrier()
    client_state = {"step": step, "run": state}
    try:
        engine.save_checkpoint(str(partial), tag=_TAG, client_state=client_state, save_latest=False)
        distributed.barrier()
        if distributed.is_main():
            _complete(partial, step)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except RuntimeError as error:
        # torch's writer raises this whatever the reason.
        full = shutil.disk_usage(folder).free < _FULL_BELOW_BYTES
        shutil.rmtree(partial, ignore_errors=True)
        if not full:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial)) from error
    if distributed.is_main():
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        flush_to_disk(folder)
        # Later ones are damaged, or this run would have gone on from them.
        for old in [path for path in _steps(folder) if path <= final][:-keep]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def load_checkpoint(folder: Path, engine: Any) -> tuple[int, dict[str, Any] | None]:
    """Restore the newest complete checkpoint into `engine`.

    Returns:
        (step, state) as they were saved; (0, None) where there is no checkpoint.
    """
    newest = None
    if distributed.is_main():
        newest = next((path for path in reversed(_steps(folder)) if _is_intact(path)), None)
    path = distributed.gather_objects(newest)[0]
    if path is None:
        return 0, None
    _, state = engine.load_checkpoint(str(path), tag=_TAG)
    return int(state["step"]), state["run"]


def _complete(partial: Path, step: int) -> None:
    for path in partial.rglob("*"):
        flush_to_disk(path)
    marker = partial / MARKER
    content = _Marker(step=step, files=list_files(partial)).model_dump_json(indent=2)
    marker.write_text(content, encoding="utf-8")
    flush_to_disk(marker)
    flush_to_disk(partial)


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / MARKER).is_file())


def _is_intact(path: Path) -> bool:
    found = [entry for entry in list_files(path) if entry.path != MARKER]
    try:
        if found == _Marker.model_validate_json((path / MARKER).read_bytes()).files:
            return True
    except ValidationError:
        pass  # the marker itself is damaged
    print(f"warning: checkpoint {path} is damaged and is passed over.", file=sys.stderr)
    return False
