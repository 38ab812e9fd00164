"""What an engine's errors become for the client: our shape, no echo of the body, no inner names."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx

from draftsmith.server.engine.interface import Engine
from draftsmith.server.errors import ApiError, internal_error

_log = logging.getLogger("draftsmith.server")
_MOST_RETRY_S = 120
_OURS_TO_MEND = (401, 403, 404)
"""From a server elsewhere: our key or our name for the model is wrong, not the client's."""


def refusal(
    answer: httpx.Response, engine: Engine, request_id: str, *, elsewhere: bool
) -> ApiError:
    """What the client gets for `answer`, which was read and is not 200.

    Args:
        elsewhere: another server said it, not an engine of ours.
    """
    status = answer.status_code
    if elsewhere and status in (429, 503):
        code = "rate_limit_exceeded" if status == 429 else "overloaded"
        message = "The model's server has no room for this request now."
        return ApiError(status, message, code=code, retry_after_s=_retry_after(answer, engine))
    if status >= 500 or (elsewhere and status in _OURS_TO_MEND):
        # Not its message, which may quote the prompt.
        _log.error("%s: the engine answered %d.", request_id, status)
        return internal_error()
    return said_by_engine(status, answer.content)


def said_by_engine(status: int, content: bytes) -> ApiError:
    """The engine's complaint about a request, as far as it is a sentence."""
    if status >= 500:
        return internal_error()
    try:
        error = json.loads(content)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = "", None
    code = "invalid_value"
    if "maximum context length" in message or "max_model_len" in message:
        code = "context_length_exceeded"
    # A dump of a validation error quotes the body; a sentence does not.
    if not message or "'input'" in message or "\n" in message:
        message = "The engine does not accept this request."
    return ApiError(status, message, code=code, param=param)


def status_of(error: dict[str, Any]) -> int:
    """Of an error in the middle of a stream."""
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 500 else 500


def encoded(body: dict[str, Any]) -> bytes:
    """`body` as JSON. Raises ApiError 400 where JSON cannot hold it."""
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except ValueError as error:  # UnicodeEncodeError is one
        message = "The body holds half of a character (a lone surrogate), or NaN or Infinity."
        raise ApiError(400, message, code="invalid_value") from error


async def healthy(client: httpx.AsyncClient, engine: Engine) -> bool:
    try:
        return (await client.get(engine.health_path, timeout=5.0)).status_code == 200
    except httpx.TransportError:
        return False


def _retry_after(answer: httpx.Response, engine: Engine) -> int:
    said = answer.headers.get("retry-after", "")
    return max(1, min(_MOST_RETRY_S, int(said) if said.isdecimal() else engine.retry_after_s))
