"""Loaded by vLLM inside its API server (entry point `vllm.endpoint_plugins`): one route.

`POST /draftsmith/weights {"part", "folder", "version"}` gives the running engine other weights;
`GET` tells the version of each part. vLLM's own way to reach its workers over HTTP is a
development mode that opens a dozen more routes. The socket is private and the gateway passes
nothing on to paths that it does not know, so that only who started the engine can call this.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse

from draftsmith.server.engine.command import PLUGIN_NAME
from draftsmith.server.engine.weights import WEIGHTS_ROUTE, Part

router = APIRouter()


class WeightsRoute:
    """What vLLM asks of an endpoint plug-in (`vllm/plugins/endpoint_plugins/interface.py`)."""

    name = PLUGIN_NAME
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        state.draftsmith_engine = engine_client
        state.draftsmith_versions = {}


class LoadWeights(BaseModel):
    model_config = ConfigDict(extra="forbid")

    part: Part
    folder: str
    version: str


@router.post(WEIGHTS_ROUTE)
async def load_weights(request: Request, body: LoadWeights) -> JSONResponse:
    """409: the folder does not fit, and nothing was changed. 500: the engine must be restarted."""
    engine = request.app.state.draftsmith_engine
    if body.part == "target":
        # What was computed with the old weights must not be continued with the new ones.
        await engine.pause_generation(mode="wait", clear_cache=True)
        try:
            said = await _in_all_workers(engine, body)
        finally:
            await engine.resume_generation()
    else:
        # Requests go on: the draft decides nothing. Its cached states would mislead the new one.
        said = await _in_all_workers(engine, body)
        if "refused" not in said:
            await engine.reset_prefix_cache()
    if "refused" in said:
        return JSONResponse({"error": {"message": said["refused"]}}, 409)
    request.app.state.draftsmith_versions[body.part] = body.version
    return JSONResponse({"version": body.version, "seconds": said["seconds"]})


@router.get(WEIGHTS_ROUTE)
async def versions(request: Request) -> dict[str, str]:
    """Part -> version, of the parts that were exchanged since the engine started."""
    known: dict[str, str] = request.app.state.draftsmith_versions
    return known


async def _in_all_workers(engine: Any, body: LoadWeights) -> dict[str, Any]:
    """Every worker reads the same folder, hence all refuse it or none; the slowest one counts."""
    answers: list[dict[str, Any]] = await engine.collective_rpc(
        "exchange_weights", args=(body.part, body.folder)
    )
    refused = next((one for one in answers if "refused" in one), None)
    return refused or max(answers, key=lambda one: one["seconds"])
