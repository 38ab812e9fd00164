"""`/v1/files`, as OpenAI's client uses it: JSONL, checked at upload.

Sets of prompts (`fine-tune`), requests of batches (`batch`) and, made here, their answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from draftsmith.server.batches.store import batch_uses_file
from draftsmith.server.errors import ApiError
from draftsmith.server.files.store import CHECKS, FileInUse, FileMissing, FileStore, StoredFile
from draftsmith.server.gateway import gateway_of, key_of
from draftsmith.server.jobs.store import uses_file
from draftsmith.server.keys import Scope
from draftsmith.server.listing import page_view
from draftsmith.server.ownership import owner_of, viewer_of

_SCOPES: dict[str, Scope] = {"fine-tune": "train", "batch": "infer"}
_MAX_FIELDS = 8
router = APIRouter(prefix="/v1/files")


@router.post("")
async def upload(request: Request) -> dict[str, Any]:
    """Multipart with `file` and `purpose`; the gate counts the bytes while they come."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(415, "Send the file as multipart/form-data.", code="unsupported_media")
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
            if unknown := [name for name in form if name not in ("file", "purpose")]:
                raise _wrong(unknown[0], "is not a field that this server knows")
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise _wrong("file", "must be a file part of the form")
            if not isinstance(purpose, str) or purpose not in CHECKS:
                raise _wrong("purpose", "must be 'fine-tune' or 'batch'")
            _check_scope(request, _SCOPES[purpose], purpose)
            store, name, owner = _store(request), file.filename or "", owner_of(request)
            try:
                kept = await run_in_threadpool(store.add, file.file, name, purpose, owner)
            except ValueError as error:
                raise ApiError(
                    400, f"The file is refused: {error}.", code="invalid_file", param="file"
                ) from error
    except HTTPException as error:
        raise ApiError(400, "The multipart body is malformed.", code="invalid_multipart") from error
    return view(kept)


@router.get("")
def list_files(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10000)] = 1000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    try:
        found, more = _store(request).page(
            viewer_of(request),
            after=after,
            limit=limit,
            purpose=purpose,
            oldest_first=order == "asc",
        )
    except FileMissing as error:
        raise _missing(error) from error
    return page_view([view(one) for one in found], more)


@router.get("/{file_id}")
def retrieve(request: Request, file_id: str) -> dict[str, Any]:
    return view(_get(request, file_id))


@router.get("/{file_id}/content")
def content(request: Request, file_id: str) -> Response:
    path = _store(request).path(_get(request, file_id))
    # Never shown by a browser, whatever it holds.
    headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


@router.delete("/{file_id}")
def delete(request: Request, file_id: str) -> dict[str, Any]:
    try:
        _store(request).delete(file_id, viewer_of(request), _in_use)
    except FileMissing as error:
        raise _missing(error) from error
    except FileInUse as error:
        raise ApiError(409, str(error), code="file_in_use", final=True) from error
    return {"id": file_id, "object": "file", "deleted": True}


def view(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "sha256": file.sha256,
        "lines": file.lines,
    }


def _in_use(connection: Connection, file_id: str) -> bool:
    return uses_file(connection, file_id) or batch_uses_file(connection, file_id)


def _check_scope(request: Request, scope: Scope, purpose: str) -> None:
    key = key_of(request)
    if key is not None and not key.may(scope):
        message = f"This key may not upload for '{purpose}': that needs the scope '{scope}'."
        raise ApiError(403, message, code="insufficient_scope", param="purpose")


def _get(request: Request, file_id: str) -> StoredFile:
    try:
        return _store(request).get(file_id, viewer_of(request))
    except FileMissing as error:
        raise _missing(error) from error


def _store(request: Request) -> FileStore:
    return gateway_of(request).files


def _missing(error: FileMissing) -> ApiError:
    return ApiError(404, str(error), code="file_not_found", param="file_id")


def _wrong(field: str, reason: str) -> ApiError:
    return ApiError(400, f"'{field}' {reason}.", code="invalid_value", param=field)
