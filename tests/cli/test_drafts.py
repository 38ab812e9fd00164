"""`draftsmith drafts`: in, out, and polite refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftsmith.distill.manifest import read_manifest, verify_files
from tests.cli.commands import draftsmith, one_sentence
from tests.server.drafts import export_draft


@pytest.fixture
def exported(tiny_target: Path, tmp_path: Path) -> Path:
    return export_draft(tiny_target, tiny_target, tmp_path / "exported")


def test_in_and_out(exported: Path, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    identifier = draftsmith(home, "drafts", "import", exported, "--name", "mine").stdout.strip()
    assert identifier.startswith("draft-")
    listed = draftsmith(home, "drafts", "list").stdout
    assert "mine" in listed
    assert identifier in listed
    shown = json.loads(draftsmith(home, "drafts", "show", "mine").stdout)
    assert (shown["id"], shown["kind"]) == (identifier, "draft")
    assert draftsmith(home, "drafts", "export", "mine", out).returncode == 0
    verify_files(out, read_manifest(out))
    assert "there already" in one_sentence(draftsmith(home, "drafts", "export", "mine", out))


def test_refusals(exported: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (exported / "config.json").write_text("{}")
    assert "changed after its export" in one_sentence(
        draftsmith(home, "drafts", "import", exported)
    )
    assert "No draft is registered" in one_sentence(draftsmith(home, "drafts", "show", "nobody"))
    nowhere = ["--url", "http://127.0.0.1:9"]
    for words in (["promote", "mine"], ["rollback"]):
        message = one_sentence(draftsmith(home, "drafts", *words, *nowhere))
        assert "No server answers at http://127.0.0.1:9" in message
