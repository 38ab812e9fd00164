"""A running server as the command line sees it: URL, key, and its errors as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer

Url = Annotated[
    str, typer.Option("--url", envvar="DRAFTSMITH_URL", help="Where the server answers.")
]
DEFAULT_URL = "http://127.0.0.1:8000"
Key = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="DRAFTSMITH_API_KEY",
        help="Where the server asks for one. Better in the environment: command lines are public.",
    ),
]


class Server:
    """Requests below `/v1`; what the server refuses is a ValueError with its own sentence."""

    def __init__(self, url: str, key: str | None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=60.0)

    def get(self, path: str, **params: Any) -> httpx.Response:
        return self._send("GET", path, params=params)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._send("POST", path, **options)

    @contextmanager
    def stream(self, path: str, **params: Any) -> Iterator[Iterator[str]]:
        """The lines of an answer as they come."""
        try:
            with self._client.stream("GET", path, params=params, timeout=None) as answer:
                if answer.is_error:
                    answer.read()
                _check(answer)
                yield answer.iter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        _check(answer)
        return answer

    def _unreachable(self, error: httpx.TransportError) -> ValueError:
        return ValueError(
            f"{self.url} does not answer ({error}): start `draftsmith serve`, or name another "
            "server with --url or DRAFTSMITH_URL."
        )


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"The server answers {answer.status_code} {answer.reason_phrase}."
    raise ValueError(message)
