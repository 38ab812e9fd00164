"""The routes of deployments; they need the scope `admin`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from draftsmith.server.deployments.deployment import Busy, Deployment
from draftsmith.server.deployments.exchange import NotReady
from draftsmith.server.errors import ApiError
from draftsmith.server.gateway import Gateway, gateway_of, key_of
from draftsmith.server.served import Served

router = APIRouter()


class Promotion(BaseModel):
    """Body of a promotion."""

    model_config = ConfigDict(strict=True, extra="forbid")

    draft: Annotated[str, Field(min_length=1, max_length=300)]
    """Name or id of a registered draft."""
    min_share: Annotated[float, Field(ge=0, le=10)] = 0.9
    """Of the accepted tokens a target call of the draft before, which it must reach to stay."""


class Rollback(BaseModel):
    """Body of a rollback: nothing."""

    model_config = ConfigDict(extra="forbid")


@router.get("/v1/deployments")
async def list_deployments(request: Request) -> dict[str, Any]:
    models = gateway_of(request).models.values()
    return {"object": "list", "data": [await _described(one) for one in models]}


@router.get("/v1/deployments/{name:path}/events")
async def list_events(
    request: Request, name: str, limit: Annotated[int, Query(ge=1, le=1000)] = 20
) -> dict[str, Any]:
    """Newest first."""
    deployment = _deployment(gateway_of(request), name)
    events = await asyncio.to_thread(deployment.events, limit)
    return {"object": "list", "data": [one.public() for one in events]}


@router.get("/v1/deployments/{name:path}")
async def retrieve_deployment(request: Request, name: str) -> dict[str, Any]:
    return await _described(_model(gateway_of(request), name))


@router.post("/v1/deployments/{name:path}/promote")
async def promote(request: Request, name: str, body: Promotion) -> dict[str, Any]:
    """Answers when it is decided; the event's `outcome` tells."""
    deployment = _deployment(gateway_of(request), name)
    try:
        event = await deployment.promote(body.draft, body.min_share, _who(request))
    except ValueError as error:
        raise _refusal(error, "draft") from error
    return event.public()


@router.post("/v1/deployments/{name:path}/rollback")
async def rollback(request: Request, name: str, body: Rollback) -> dict[str, Any]:
    deployment = _deployment(gateway_of(request), name)
    try:
        event = await deployment.rollback(_who(request))
    except ValueError as error:
        raise _refusal(error, None) from error
    return event.public()


def _deployment(gateway: Gateway, name: str) -> Deployment:
    model = _model(gateway, name)
    gateway.check_open()
    if model.deployment is None:
        message = "This model was started without a draft: start it with one, then promote others."
        if model.remote is not None:
            message = "This model's engine is another server's: its draft is changed there."
        raise ApiError(409, message, code="no_draft", headers={"x-should-retry": "false"})
    return model.deployment


def _model(gateway: Gateway, name: str) -> Served:
    if name not in gateway.models:
        message = f"There is no deployment '{name[:100]}'; see /v1/deployments."
        raise ApiError(404, message, code="deployment_not_found", param="name")
    return gateway.models[name]


def _refusal(error: ValueError, param: str | None) -> ApiError:
    if isinstance(error, Busy):
        return ApiError(409, str(error), code="deployment_busy", retry_after_s=10)
    if isinstance(error, NotReady):
        return ApiError(503, str(error), code="engine_restarting", retry_after_s=10)
    return ApiError(400, str(error), code="invalid_value", param=param)


def _who(request: Request) -> str | None:
    key = key_of(request)
    return None if key is None else key.name


async def _described(model: Served) -> dict[str, Any]:
    deployment, settings, remote = model.deployment, model.settings, model.remote
    described: dict[str, Any] = {
        "object": "deployment",
        "id": model.name,
        "created": model.created,
        "target": settings.target.name if settings else None,
        "url": remote.url if remote else None,
        "state": model.engine.state,
        "draft": None,
    }
    if deployment is None or settings is None:
        return described
    names = {role: await asyncio.to_thread(deployment.aliases.get, role)
             for role in ("production", "candidate")}  # fmt: skip
    last = await asyncio.to_thread(deployment.events, 1)
    return described | {
        "draft": deployment.draft.version,
        "num_speculative_tokens": settings.num_speculative_tokens,
        "lenience": settings.lenience,
        "previous_drafts": [one.version for one in reversed(deployment.drafts[:-1])],
        "aliases": {one.name: one.version for one in names.values() if one is not None},
        "last_event": last[0].public() if last else None,
    }
