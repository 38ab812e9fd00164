"""`draftsmith teacher record` by the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.commands import draftsmith


def test_recording_says_how_large_it_gets_and_writes_it(tiny_target: Path, tmp_path: Path) -> None:
    done = draftsmith(
        tmp_path / "home", "teacher", "record", "tiny", "--output", tmp_path / "signals",
        "--format", "top_k", "--top-k", "16", "--set", f"teacher.model={tiny_target}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # 16 prompts and 4 held-out ones, 16 tokens each at most.
    assert f"at most {20 * 16 * (17 * 8 + 4):,} bytes" in done.stdout
    manifest = json.loads((tmp_path / "signals" / "manifest.json").read_text())
    assert (manifest["format"], manifest["top_k"]) == ("top_k", 16)
    assert manifest["teacher"]["name"] == tiny_target.name
