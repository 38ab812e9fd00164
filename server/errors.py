"""Every error that leaves the server over HTTP, in OpenAI's shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MAX_MESSAGE = 500
_MAX_PARAM = 100


class ApiError(Exception):
    """An answer to the client: HTTP status, sentence, field, code, seconds to wait."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        final: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        """`final`: the client need not try again, though it does so by itself for this status."""
        super().__init__(message)
        self.status = status
        self.message = message[:_MAX_MESSAGE]
        self.code = code
        self.param = None if param is None else param[:_MAX_PARAM]
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)
        if final:
            self.headers["x-should-retry"] = "false"

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        return JSONResponse(self.body(), self.status, self.headers)

    def event(self) -> bytes:
        """The same as a server-sent event, for a stream that has already begun."""
        return b"data: " + json.dumps(self.body()).encode() + b"\n\n"


def install_error_handlers(app: FastAPI) -> None:
    """Replace FastAPI's and Starlette's own error bodies."""

    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _from_validation(error.errors()).response()

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _from_http(request, error).response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)


def internal_error() -> ApiError:
    return ApiError(
        500,
        "The server failed on this request; its log has the details under the request id.",
        code="internal_error",
    )


def _from_validation(errors: Sequence[Any]) -> ApiError:
    """The first complaint only, and never the value that it complains about."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.", code="invalid_json")
    if first["type"] == "wrong_field":
        param, reason = str(first["ctx"]["field"]), str(first["msg"])
    else:
        param = ".".join(str(part) for part in first["loc"][1:])
        reason = str(first["msg"]).removeprefix("Value error, ")
        reason = "is wrong: " + reason[:1].lower() + reason[1:]
    where = f"'{param[:_MAX_PARAM]}'" if param else "The body"
    return ApiError(400, f"{where} {reason}.", code="invalid_value", param=param or None)


def _from_http(request: Request, error: HTTPException) -> ApiError:
    headers = dict(error.headers or {})
    path = request.scope["path"][:200]
    if error.status_code == 404:
        return ApiError(404, f"There is no route {path}.", code="unknown_url", headers=headers)
    if error.status_code == 405:
        message = f"{path} does not take {request.method}."
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    if isinstance(error.__cause__, ApiError):  # raised while FastAPI read the body
        return error.__cause__
    if error.status_code == 400:  # FastAPI's only 400: the body could not be decoded
        return ApiError(400, "The body is not UTF-8 encoded JSON.", code="invalid_json")
    return ApiError(error.status_code, str(error.detail), headers=headers)
