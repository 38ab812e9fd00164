"""The registry: all or nothing, the same content once, names by compare-and-swap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from draftsmith.distill.manifest import MANIFEST_NAME, verify_files
from draftsmith.server.home import Home
from draftsmith.server.registry import Conflict, Registry
from tests.server.conftest import Models
from tests.server.drafts import export_draft

# Registers, and is killed at the n-th file-system call of the listed kinds.
DIE_AT = """
import os, signal, sys
from pathlib import Path
from draftsmith.server.home import Home
from draftsmith.server.registry import Registry

left = int(sys.argv[1])
def audit(event, arguments):
    global left
    if event in ("open", "os.rename", "shutil.copyfile", "os.mkdir", "sqlite3.connect"):
        if not any("home" in str(one) for one in arguments):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
Registry(Home(Path(sys.argv[2]))).register(Path(sys.argv[3]), "mine")
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def draft(models: Models, tmp_path: Path) -> Path:
    return export_draft(models.other, models.target, tmp_path / "draft")


def test_register_and_resolve(home: Home, draft: Path) -> None:
    registry = Registry(home)
    version = registry.register(draft, "team/small")
    assert version.id.startswith("draft-")
    assert len(version.id) == len("draft-") + 16
    verify_files(version.folder, version.manifest)
    assert registry.resolve("team/small") == registry.resolve(version.id) == version
    assert registry.versions() == [version]
    assert [one.name for one in registry.names()] == ["team/small"]

    etag = registry.names()[0].etag
    assert registry.register(draft, "team/small") == version  # again: nothing changes
    assert registry.register(draft, "other") == version
    assert registry.versions() == [version]
    assert registry.names()[1].etag == etag
    with pytest.raises(ValueError, match=r"'nope' \(known: other, team/small\)"):
        registry.resolve("nope")
    with pytest.raises(ValueError, match="No draft"):
        registry.resolve("draft-0000000000000000")
    with pytest.raises(ValueError, match="No draft"):
        registry.resolve("../versions")


def test_bad_folders_leave_nothing(home: Home, draft: Path) -> None:
    registry = Registry(home)

    def refused(because: str) -> None:
        with pytest.raises(ValueError, match=because):
            registry.register(draft, "mine")
        assert registry.versions() == []
        assert registry.names() == []

    (draft / "code.py").write_text("print()")
    refused("no place")
    (draft / "code.py").unlink()
    (draft / "link.json").symlink_to("/etc/hostname")
    refused("link")
    (draft / "link.json").unlink()
    (draft / "extra.json").write_text("{}")
    refused("not listed")
    (draft / "extra.json").unlink()
    with (draft / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x55")
    refused("sha256 differs")
    (draft / MANIFEST_NAME).unlink()
    refused("not exported by draftsmith")
    with pytest.raises(ValueError, match="cannot be a name"):
        registry.register(draft, "../up")


def test_names_are_compared_and_swapped(home: Home, draft: Path) -> None:
    registry = Registry(home)
    version = registry.register(draft).id
    first = registry.set_name("live", version, expected=None)
    with pytest.raises(Conflict):
        registry.set_name("live", version, expected=None)
    second = registry.set_name("live", version, expected=first.etag)
    assert second.etag != first.etag
    with pytest.raises(Conflict):
        registry.set_name("live", version, expected=first.etag)
    with pytest.raises(ValueError, match="not a registered version"):
        registry.set_name("live", "draft-0123456789abcdef", expected=second.etag)
    with pytest.raises(Conflict):
        registry.delete_name("live", expected=first.etag)
    registry.delete_name("live", expected=second.etag)
    with pytest.raises(Conflict):
        registry.delete_name("live")
    assert [one.id for one in registry.versions()] == [version]


def test_one_of_many_swaps_wins(home: Home, draft: Path) -> None:
    registry = Registry(home)
    version = registry.register(draft).id
    etag = registry.set_name("live", version, expected=None).etag

    def swap(_: int) -> bool:
        try:
            Registry(home).set_name("live", version, expected=etag)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(swap, range(24))) == 1


def test_many_registrations_at_once(home: Home, draft: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: Registry(home).register(draft, "mine"), range(8)))
    assert len({version.id for version in done}) == 1
    assert Registry(home).resolve("mine") == done[0]
    assert list((home.registry / "staging").iterdir()) == []


def test_killed_anywhere(home: Home, draft: Path) -> None:
    """SIGKILL at each step of a registration: afterwards all of it is there or none."""
    seen = set()
    for step in range(1, 200):
        place = home.root / str(step)
        done = subprocess.run(
            [sys.executable, "-c", DIE_AT, str(step), str(place), str(draft)], timeout=60
        )
        registry = Registry(Home(place))
        versions = registry.versions()
        for version in versions:
            verify_files(version.folder, version.manifest)
        for name in registry.names():
            registry.resolve(name.name)
        seen.add((len(versions), len(registry.names())))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        # And the next try goes through, whatever was left behind.
        assert registry.register(draft, "mine").id == registry.resolve("mine").id
    else:
        pytest.fail("the registration never came through")
    assert {(0, 0), (1, 1)} <= seen


def test_version_follows_from_the_content(home: Home, draft: Path) -> None:
    registry = Registry(home)
    first = registry.register(draft)
    content = json.loads((draft / MANIFEST_NAME).read_text())
    (draft / MANIFEST_NAME).write_text(json.dumps(content, indent=None))  # same, other spacing
    assert registry.register(draft).id == first.id
    content["evaluation"] = {"alpha": 0.5}
    (draft / MANIFEST_NAME).write_text(json.dumps(content))
    assert registry.register(draft).id != first.id
