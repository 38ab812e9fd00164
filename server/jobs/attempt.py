"""One attempt at a job, from its claim to its end."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from draftsmith.distill.manifest import read_manifest, verify_files
from draftsmith.server.deployments.requests import PromotionRequests
from draftsmith.server.files.store import FileMissing, FileStore
from draftsmith.server.home import Home
from draftsmith.server.jobs.cost import disk_bytes
from draftsmith.server.jobs.folder import JobFolder
from draftsmith.server.jobs.heart import Heart
from draftsmith.server.jobs.job import NewEvent, Status
from draftsmith.server.jobs.launchers.launcher import Handle, Launcher, LaunchError
from draftsmith.server.jobs.lease import Claim, Ending, Fenced, Leases
from draftsmith.server.jobs.outcome import Failure, failure
from draftsmith.server.jobs.progress import Progress
from draftsmith.server.jobs.promotion import Promotion
from draftsmith.server.jobs.runner import Runner, wanted_ending
from draftsmith.server.jobs.settings import WorkerSettings
from draftsmith.server.jobs.sharing import Sharing
from draftsmith.server.jobs.trainer import trainer_command
from draftsmith.server.registry import Registry

_log = logging.getLogger("draftsmith.jobs")
_RUN = Path("run")
_ENDS = {
    Status.SUCCEEDED: (Status.RUNNING, Status.PAUSING),
    Status.FAILED: (Status.RUNNING, Status.PAUSING),
    Status.QUEUED: (Status.RUNNING,),
    Status.PAUSED: (Status.PAUSING,),
    Status.CANCELLED: (Status.CANCELLING,),
}
"""By the state that follows: the states in which an attempt may end so."""


class Attempt:
    def __init__(
        self,
        claim: Claim,
        leases: Leases,
        launcher: Launcher,
        files: FileStore,
        home: Home,
        settings: WorkerSettings,
        sharing: Sharing,
        requests: PromotionRequests,
        stopping: threading.Event,
    ) -> None:
        """`stopping`: set when the worker has to give its job back."""
        self._claim, self._leases, self._launcher = claim, leases, launcher
        self._runner = Runner(JobFolder.of(home, claim.job.id), launcher, sharing, stopping)
        self._promotion = Promotion(
            claim, leases, requests, home, timeout_s=settings.promotion_timeout_s
        )
        self._files, self._home, self._settings = files, home, settings
        self._job = claim.job
        self._folder = JobFolder.of(home, claim.job.id)

    def run(self) -> None:
        """Bring the job as far as it goes; whatever happens, its row says so in the end."""
        try:
            with Heart(self._leases, self._claim) as heart:
                self._end(self._work_or_fail(heart))
        except Fenced:
            _log.warning("job %s: another worker has it; nothing was written.", self._job.id)

    def _end(self, ending: Ending) -> None:
        while not self._leases.end(self._claim, ending, _ENDS[ending.status]):
            # Its user was quicker; what he wants is in the row.
            wanted = wanted_ending(self._leases.heartbeat(self._claim).status)
            assert wanted is not None, "only cancelling and pausing change a job that is held"
            ending = wanted

    def _work_or_fail(self, heart: Heart) -> Ending:
        """A fault of ours must not end the worker, which would take the same job again."""
        try:
            return self._work(heart)
        except (Fenced, SQLAlchemyError):
            raise
        except Exception:  # noqa: BLE001, whatever it is
            _log.exception("job %s: the worker failed on it", self._job.id)
            sentence = "The worker failed on this job; its log has the details."
            return self._failed(Failure("internal_error", sentence, True))

    def _work(self, heart: Heart) -> Ending:
        folder = self._folder
        folder.root.mkdir(parents=True, exist_ok=True)
        try:
            handle = self._launcher.adopt(folder)
            if handle is None:
                self._launcher.clear(folder)
                ending = self._before_training(heart)
                if ending is not None:
                    return ending
                self._write_inputs()
            command = trainer_command("recipe.json", _RUN, resume=True)
            status = self._train(command, heart, handle)
            return status if isinstance(status, Ending) else self._trained(status, heart)
        except FileMissing as error:
            return self._failed(Failure("file_not_found", str(error), False))
        except (LaunchError, OSError) as error:
            return self._failed(Failure("launch_failed", str(error), True))

    def _before_training(self, heart: Heart) -> Ending | None:
        """How the attempt ends without any training; None where it has to train."""
        wanted = wanted_ending(heart.check())
        if wanted is not None:
            return wanted
        if self._finished():
            return self._publish(None, heart)
        if self._job.attempts > self._settings.max_attempts:
            return self._failed(Failure("too_many_attempts", "It was tried too often.", False))
        short = self._missing_bytes()
        return self._full(short) if short > 0 else None

    def _train(self, command: list[str], heart: Heart, adopted: Handle | None) -> Ending | int:
        """Run the trainer until it ends, by itself or by us."""
        job, settings = self._job, self._settings
        evaluated = self._leases.last_evaluation(self._claim)
        progress = Progress(self._folder, job.step, evaluated)
        began: float | None = None

        def look() -> Ending | None:
            nonlocal began
            if began is None:
                began = time.monotonic()
                progress.begin()
            self._tell(progress)
            if time.monotonic() - began > job.max_runtime_s - job.run_seconds:
                sentence = f"It trained for more than {job.max_runtime_s} seconds."
                return self._failed(Failure("max_runtime", sentence, False))
            if progress.idle_s > settings.stall_timeout_s:
                sentence = f"Nothing happened for {settings.stall_timeout_s:.0f} seconds."
                return self._failed(Failure("stalled", sentence, True))
            return None

        status = self._runner.run(command, heart, look, adopted)
        if isinstance(status, int):
            self._tell(progress)
        return status

    def _compare(self, command: list[str], heart: Heart) -> Ending | int:
        """Run the comparison of a gate; its exit status where another try would change nothing."""
        began = time.monotonic()

        def look() -> Ending | None:
            if time.monotonic() - began < self._settings.stall_timeout_s:
                return None
            return self._failed(Failure("stalled", "The gate's comparison took too long.", True))

        status = self._runner.run(command, heart, look)
        if isinstance(status, Ending) or status == 0:
            return status
        why = failure(status, self._folder.log)
        return self._failed(why, status) if why.retry else status

    def _trained(self, status: int, heart: Heart) -> Ending:
        if self._finished():
            return self._publish(status, heart)
        return self._failed(failure(status, self._folder.log), status)

    def _tell(self, progress: Progress) -> None:
        news = progress.look()
        values: dict[str, Any] = {}
        if news.step > self._job.step:
            # Who gets on may fail again later: the count of failures begins anew.
            tokens = self._job.trained_tokens + news.tokens
            values = {"step": news.step, "trained_tokens": tokens, "failures": 0}
        phase = self._phase(news.step)
        if phase != self._job.phase:
            values["phase"] = phase
        for one in news.events:
            event = NewEvent(_words(one), type="metrics", data=one)
            self._job = self._leases.tell(self._claim, event, **values)
        if values and not news.events:
            self._job = self._leases.tell(self._claim, None, **values)

    def _phase(self, step: int) -> str:
        if step >= self._job.total_steps:
            return "evaluating"
        return "training" if self._folder.run.metrics.is_file() else "preparing"

    def _finished(self) -> bool:
        """Whether the run has left a whole draft: its folder appears by one rename."""
        return self._folder.run.draft.is_dir()

    def _publish(self, exit_status: int | None, heart: Heart) -> Ending:
        self._job = self._leases.tell(self._claim, None, phase="publishing")
        draft = self._folder.run.draft
        try:
            verify_files(draft, read_manifest(draft))
        except ValueError:
            shutil.rmtree(draft)  # damaged; the run makes it again from its last checkpoint
            return self._failed(Failure("draft_damaged", "The draft's files changed.", True))
        try:
            version = Registry(self._home).register(draft)
        except ValueError as error:
            _log.warning("job %s cannot be published: %s", self._job.id, error)
            return self._failed(Failure("publish_failed", "The draft was not registered.", True))
        if self._job.promote is not None:
            self._job = self._leases.tell(self._claim, None, draft=version.id)
            settled = self._promotion.settle(
                self._job,
                run=lambda command: self._compare(command, heart),
                wish=lambda: self._runner.wish(heart),
            )
            if isinstance(settled, Ending):
                return settled
        event = NewEvent(f"The draft is registered as {version.id}.", data={"draft": version.id})
        return Ending(Status.SUCCEEDED, "succeeded", event, exit_status, draft=version.id)

    def _failed(self, why: Failure, exit_status: int | None = None) -> Ending:
        """The job fails for good, or is queued again after a while that grows."""
        failures = self._job.failures + 1
        error = {"code": why.code, "message": why.sentence, "param": None}
        if why.retry and failures <= self._settings.max_retries:
            wait_s = why.wait * self._settings.backoff_s * 2.0 ** (failures - 1)
            text = f"Attempt failed: {why.sentence} Trying again in {wait_s:.0f} s."
            event = NewEvent(text, level="warn", data=error)
            return Ending(Status.QUEUED, why.code, event, exit_status, wait_s=wait_s, failed=True)
        event = NewEvent(f"The job failed: {why.sentence}", level="error", data=error)
        return Ending(Status.FAILED, why.code, event, exit_status, error=error, failed=True)

    def _missing_bytes(self) -> float:
        return disk_bytes(self._job) - shutil.disk_usage(self._folder.root).free

    def _full(self, short: float) -> Ending:
        """Waits for space without counting as a failure: nothing was tried."""
        text = f"The disk lacks {short / 2**30:.1f} GiB for this job; it waits."
        wait_s = self._settings.backoff_s * 4
        return Ending(Status.QUEUED, "disk_full", NewEvent(text, level="warn"), wait_s=wait_s)

    def _write_inputs(self) -> None:
        """The recipe with folders for names, and the data beside it.

        Data keep their ids as names, relative to the job's folder, so that no path of this
        machine gets into the draft's manifest.
        """
        recipe = json.loads(json.dumps(self._job.recipe))
        for place, folder in self._job.folders.items():
            section, field = place.split(".")
            recipe[section][field] = folder
        for split in ("train", "heldout"):
            source = recipe["data"][split]
            if source.startswith("file-"):
                path = self._files.path(self._files.get(source, None))
                link = self._folder.root / f"{source}.jsonl"
                if not link.exists():
                    shutil.copyfile(path, link)
                recipe["data"][split] = link.name
        partial = self._folder.recipe.with_suffix(".partial")
        partial.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        partial.rename(self._folder.recipe)


def _words(record: dict[str, Any]) -> str:
    if record["kind"] == "train":
        return f"Step {record['step']}: loss {record['loss']:.4f}"
    return f"Step {record['step']}: acceptance {record['alpha_overlap']:.4f} on held-out prompts"
