"""A draft that goes to a hub, by Hugging Face's own client, and to MLflow."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from draftsmith.distill.manifest import read_manifest, verify_files
from draftsmith.server.home import Home
from draftsmith.server.registry import Registry, Version
from tests.cli.commands import draftsmith, one_sentence
from tests.server.drafts import export_draft


@dataclass
class Hub:
    """The routes that an upload takes, as the hub's API has them; files come in the commit."""

    token: str = "hf_test"
    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, authorization: str | None, body: bytes) -> tuple[int, Any]:
        if authorization != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories[name] = asked
            return 200, {"url": f"{self.url}/{name}", "name": name, "id": name}
        if path.endswith("/preupload/main"):
            wanted = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": one["path"], **mode} for one in wanted]}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            return 200, {
                "commitUrl": f"{self.url}/org/mine/commit/1", "commitOid": "1", "success": True,
            }  # fmt: skip
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        return 404, {"error": f"no {path}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(404, {"error": "none"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            path, _, _ = self.path.partition("?")
            self._send(*made.answer(path, self.headers["authorization"], body))

        def _send(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        monkeypatch.setenv("HF_TOKEN", made.token)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def version(tiny_target: Path, tmp_path: Path) -> Version:
    exported = export_draft(tiny_target, tiny_target, tmp_path / "exported")
    return Registry(Home(tmp_path / "home").ensure()).register(exported, "mine")


def test_a_hub_has_the_whole_draft(hub: Hub, version: Version, tmp_path: Path) -> None:
    done = draftsmith(tmp_path / "home", "drafts", "export", "mine", "--hub", "org/mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/org/mine/commit/1"
    assert hub.repositories["org/mine"]["visibility"] == "private"
    copy = tmp_path / "copy"
    for name, content in hub.files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    verify_files(copy, read_manifest(copy))
    again = draftsmith(tmp_path / "elsewhere", "drafts", "import", copy)
    assert again.stdout.strip() == version.id


def test_refusals(
    hub: Hub, version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> str:
        return one_sentence(draftsmith(tmp_path / "home", "drafts", "export", "mine", *words))

    assert "Give one place" in refused()
    assert "Give one place" in refused(str(tmp_path / "out"), "--hub", "org/mine")
    assert "org/a/b" in refused("--hub", "org/a/b")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "401" in refused("--hub", "org/mine")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "No hub answers at http://127.0.0.1:9" in refused("--hub", "org/mine")
    assert not hub.files
    (version.folder / "config.json").chmod(0o644)
    (version.folder / "config.json").write_text("{}")
    assert "changed after its export" in refused("--hub", "org/mine")


def test_mlflow_has_a_version_of_the_model(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for number in ("1", "2"):
        done = draftsmith(tmp_path / "home", "drafts", "export", "mine", "--mlflow", "drafts")
        assert done.stdout.splitlines()[-1:] == [f"models:/drafts/{number}"], done.stderr
    made = mlflow.MlflowClient().get_model_version("drafts", "2")
    assert made.tags["draftsmith_id"] == version.id
    copy = Path(mlflow.artifacts.download_artifacts(made.source, dst_path=str(tmp_path / "copy")))
    verify_files(copy, read_manifest(copy))
