"""The HTTP client of a remote teacher meets servers in trouble."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from draftsmith.distill.sections.teacher import RemoteSection
from draftsmith.distill.teacher.client import TeacherClient


@contextmanager
def serving(statuses: list[int]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers with these statuses in turn (0 hangs up); yields URL and requests."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status = statuses[min(len(seen), len(statuses) - 1)]
            seen.append(dict(self.headers))
            if status == 0:
                self.connection.close()
                return
            body = {"ok": True} if status == 200 else {"error": {"message": "busy\nor so"}}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_trouble_that_passes_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret")
    with serving([429, 503, 0, 200]) as (url, seen):
        client = TeacherClient(RemoteSection(url=url, api_key_env="TEACHER_KEY", attempts=4))
        assert client.post("/v1/completions", {}) == {"ok": True}
        assert len(seen) == 4
        assert {headers["authorization"] for headers in seen} == {"Bearer secret"}


def test_trouble_that_stays_is_told_in_one_sentence() -> None:
    with serving([500]) as (url, seen):
        client = TeacherClient(RemoteSection(url=url, attempts=2))
        with pytest.raises(ValueError, match="did not answer in 2 attempts: busy") as error:
            client.post("/v1/completions", {})
        assert len(seen) == 2
        assert "\n" not in str(error.value)


def test_a_refusal_is_not_repeated() -> None:
    with serving([404]) as (url, seen):
        with pytest.raises(ValueError, match=r"says: busy"):
            TeacherClient(RemoteSection(url=url)).post("/v1/completions", {})
        assert len(seen) == 1
