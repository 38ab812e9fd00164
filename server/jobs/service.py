"""What both kinds of job routes do: find, create, change, and say what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams

from draftsmith.server.errors import ApiError
from draftsmith.server.files.store import FileMissing
from draftsmith.server.gateway import gateway_of
from draftsmith.server.home import Home
from draftsmith.server.jobs.compose import Composer, Plan
from draftsmith.server.jobs.folder import JobFolder
from draftsmith.server.jobs.job import Job
from draftsmith.server.jobs.preview import preview
from draftsmith.server.jobs.request import JobRequest
from draftsmith.server.jobs.source import Snapshot, snapshot
from draftsmith.server.jobs.store import (
    JobMissing,
    JobStore,
    KeyReused,
    NewJob,
    NotNow,
    QueueFull,
)
from draftsmith.server.ownership import owner_of, viewer_of
from draftsmith.server.registry import Registry
from draftsmith.server.served import settings_of

_RETRY_AFTER_S = 60
_MAX_KEY = 255


@dataclass
class JobService:
    """The jobs as one request may see them."""

    request: Request

    @property
    def store(self) -> JobStore:
        return gateway_of(self.request).jobs

    @property
    def viewer(self) -> str | None:
        return viewer_of(self.request)

    def preview(self, body: JobRequest) -> dict[str, Any]:
        """What the job would be and cost; nothing is kept."""
        with self._snapshot(body) as taken:
            return preview(self._plan(body, taken), gateway_of(self.request).jobs)

    def _snapshot(self, body: JobRequest) -> AbstractContextManager[Snapshot | None]:
        return snapshot(body, gateway_of(self.request), owner_of(self.request), self.viewer)

    def _plan(self, body: JobRequest, taken: Snapshot | None) -> Plan:
        """Raises ApiError where the request cannot become a job."""
        gateway = gateway_of(self.request)
        if body.promote is not None and self.viewer is not None:
            message = "This key may not change what is served: that needs the scope 'admin'."
            raise ApiError(403, message, code="insufficient_scope", param="promote")
        composer = Composer(gateway.settings, settings_of(gateway.models), gateway.files)
        plan = composer.plan(body, self.viewer, taken)
        self._check_name(plan.name)
        return plan

    def _check_name(self, name: str) -> None:
        """A name that others use, or that production does, is not for everybody to move."""
        if self.viewer is None or self.store.has_named(self.viewer, name):
            return
        if Registry(Home(gateway_of(self.request).settings.home)).name(name) is not None:
            message = f"The name '{name}' belongs to somebody else's draft: choose another suffix."
            raise ApiError(409, message, code="name_taken", param="suffix", final=True)

    def create(self, body: JobRequest) -> Job:
        """Accept a job; it is on the disk when this returns."""
        gateway_of(self.request).check_open()
        key = self.request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= _MAX_KEY:
            raise ApiError(
                400, f"'Idempotency-Key' has more than {_MAX_KEY} characters.",
                code="invalid_value", param="Idempotency-Key",
            )  # fmt: skip
        with self._snapshot(body) as taken, errors():
            new = self._new_job(body, self._plan(body, taken), taken, key)
            most = gateway_of(self.request).settings.max_unfinished_jobs
            return self.store.create(new, most=most)

    def _new_job(
        self, body: JobRequest, plan: Plan, taken: Snapshot | None, key: str | None
    ) -> NewJob:
        settings, headers = gateway_of(self.request).settings, self.request.headers
        runtime = min(body.max_runtime_s or settings.max_job_runtime_s, settings.max_job_runtime_s)
        request = body.model_dump(mode="json", exclude_none=True)
        return NewJob(
            owner=owner_of(self.request),
            name=plan.name,
            model=plan.model,
            request=request | ({} if taken is None else {"snapshot": taken.view()}),
            recipe=plan.recipe.model_dump(mode="json"),
            folders=plan.folders,
            labels=body.metadata or {},
            total_steps=plan.recipe.train.steps,
            max_runtime_s=runtime,
            body_sha256=body.sha256(),
            files=plan.files,
            priority=body.priority,
            idempotency_key=key,
            promote=plan.promote,
            is_retry=headers.get("x-stainless-retry-count", "0") not in ("", "0"),
        )

    def get(self, job_id: str) -> Job:
        with errors():
            return self.store.get(job_id, self.viewer)

    def folder(self, job: Job) -> JobFolder:
        return JobFolder.of(Home(gateway_of(self.request).settings.home), job.id)


def add_changes(router: APIRouter, view: Callable[[Job], dict[str, Any]]) -> None:
    """The routes that cancel, pause and resume a job, and answer with it as `view` shows it."""

    def route_of(change: Callable[[JobStore, str, str | None], Job]) -> Callable[..., Any]:
        def route(request: Request, job_id: str) -> dict[str, Any]:
            service = JobService(request)
            with errors():
                return view(change(service.store, job_id, service.viewer))

        return route

    for change in (JobStore.cancel, JobStore.pause, JobStore.resume):
        path = f"/{{job_id}}/{change.__name__}"
        router.add_api_route(path, route_of(change), methods=["POST"], name=change.__name__)


@contextmanager
def errors() -> Iterator[None]:
    """The store's complaints as answers. A 409 is final: the stock client repeats others."""
    try:
        yield
    except JobMissing as error:
        raise ApiError(404, str(error), code="job_not_found", param="job_id") from error
    except FileMissing as error:
        raise ApiError(400, str(error), code="invalid_value", param="training_file") from error
    except KeyReused as error:
        message = f"{error} It came with another body: choose a new key."
        raise ApiError(409, message, code="idempotency_key_reused", final=True) from error
    except NotNow as error:
        raise ApiError(409, str(error), code="invalid_job_state", final=True) from error
    except QueueFull as error:
        message = f"{error} Wait for one to end, or cancel one."
        raise ApiError(429, message, code="queue_full", retry_after_s=_RETRY_AFTER_S) from error


def labels_in(query: QueryParams) -> dict[str, str]:
    """The filter `metadata[key]=value`, as the stock client writes it."""
    named = {key[len("metadata[") : -1]: key for key in query if key.startswith("metadata[")}
    return {name[:64]: query[key] for name, key in named.items() if key.endswith("]")}
