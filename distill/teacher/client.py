"""The part of a vLLM server's HTTP API that a teacher needs, with retries."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx

from draftsmith.distill.sections.teacher import RemoteSection

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SOCKET_SCHEME = "unix://"


class TeacherClient:
    """Safe to use from several threads."""

    def __init__(self, section: RemoteSection) -> None:
        """Raises ValueError where the environment lacks the key that the section names."""
        self.section = section
        transport, base_url = None, section.url.removesuffix("/")
        if section.url.startswith(_SOCKET_SCHEME):
            transport = httpx.HTTPTransport(uds=section.url.removeprefix(_SOCKET_SCHEME))
            base_url = "http://teacher"
        self._client = httpx.Client(
            transport=transport,
            base_url=base_url,
            timeout=section.timeout_s,
            headers=_authorization(section.api_key_env),
            limits=httpx.Limits(max_connections=section.concurrency),
        )

    def get(self, path: str) -> dict[str, Any]:
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._request("POST", path, body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """The answer's JSON.

        Raises:
            ValueError: the server refused the request, or did not answer it after all attempts.
        """
        reason = ""
        for attempt in range(self.section.attempts):
            if attempt:
                time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1)))
            try:
                response = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                continue
            if response.status_code == 429 or response.status_code >= 500:
                reason = _message(response)
                continue
            if response.is_error:
                raise ValueError(f"teacher.remote: {self.section.url} says: {_message(response)}")
            answer: dict[str, Any] = response.json()
            return answer
        raise ValueError(
            f"teacher.remote: {self.section.url} did not answer in {self.section.attempts} "
            f"attempts: {reason.rstrip('.')}."
        )


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"teacher.remote.api_key_env: the variable {variable} is not set.")
    return {"authorization": f"Bearer {key}"}


def _message(response: httpx.Response) -> str:
    """The server's own words in OpenAI's shape of an error, or the status."""
    try:
        error = response.json().get("error", {})
        return str(error["message"]).splitlines()[0]
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"HTTP status {response.status_code}"
