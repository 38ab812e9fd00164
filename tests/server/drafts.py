"""Exported drafts for the tests: a model's folder with a true manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

from draftsmith.distill.manifest import Manifest, list_files, target_identity, write_manifest


def export_draft(model: Path, target: Path, folder: Path) -> Path:
    """Copy `model` to `folder` as a draft that was distilled for `target`."""
    shutil.copytree(model, folder)
    manifest = Manifest(
        kind="draft",
        target=target_identity(target),
        recipe={},
        versions={},
        files=list_files(folder),
        created_at="2026-01-01T00:00:00+00:00",
    )
    write_manifest(folder, manifest)
    return folder
