"""What a worker does with jobs that go well, badly, or are called back. Real training."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from draftsmith.server.jobs.outcome import failure
from tests.server.jobs.conftest import Site, tiny
from tests.server.jobs.test_kills import trainers
from tests.server.processes import wait_until

LONG = tiny(steps=2000, save_every=1, eval_every=1000)


def test_pause_resume_release_and_cancel(site: Site) -> None:
    """One job: paused and resumed, given back by a worker that stops, cancelled at the next."""
    job_id = site.submit(LONG)
    worker = site.work()
    site.wait(job_id, "running")
    wait_until(lambda: site.api.get(f"/{job_id}").json()["step"] >= 2, 60, "it trains")
    assert site.api.post(f"/{job_id}/pause", json={}).json()["status"] == "pausing"
    paused = site.wait(job_id, "paused")
    assert not trainers(site, job_id)
    checkpoints = site.api.get(f"/{job_id}/checkpoints").json()["data"]
    assert checkpoints[0]["step"] >= 1
    assert site.api.post(f"/{job_id}/resume", json={}).json()["status"] == "queued"
    wait_until(
        lambda: site.api.get(f"/{job_id}").json()["step"] > paused["step"] + 1, 60, "it goes on"
    )
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0
    assert site.wait(job_id, "queued", timeout_s=5)["error"] is None
    assert not trainers(site, job_id)

    site.work()
    wait_until(lambda: bool(trainers(site, job_id)), 60, "the next worker has it")
    assert site.api.post(f"/{job_id}/cancel", json={}).json()["status"] == "cancelling"
    over = site.wait(job_id)
    assert over["status"] == "cancelled"
    assert not trainers(site, job_id)
    outcomes = [one["outcome"] for one in site.api.get(f"/{job_id}").json()["attempt_list"]]
    assert outcomes == ["paused", "released", "cancelled"]
    losses = [one["step"] for one in site.api.get(f"/{job_id}/metrics?kind=train").json()["data"]]
    assert losses == list(range(1, len(losses) + 1)), "each step once, over all attempts"


def test_bad_data_is_not_tried_again_and_a_dead_trainer_is(site: Site, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": "many words " * 300}) + "\n")
    file = site.client().files.create(file=prompts, purpose="fine-tune")
    recipe = tiny()
    recipe["data"] = {"max_prompt_tokens": 4}
    bad = site.submit(recipe, training_file=file.id)
    site.work()
    failed = site.wait(bad)
    assert (failed["status"], failed["attempts"]) == ("failed", 1)
    assert failed["error"]["code"] == "invalid_recipe"
    assert "tokens, 4 are allowed" in failed["error"]["message"]
    assert str(tmp_path) not in failed["error"]["message"]

    dying = site.submit(LONG)

    def killed_until_it_fails() -> bool:
        running = trainers(site, dying)
        assert len(running) <= 1, "one attempt at a time"
        for trainer in running:
            trainer.kill()
        return bool(site.api.get(f"/{dying}").json()["status"] == "failed")

    wait_until(killed_until_it_fails, 240, "the worker gives up")
    failed = site.wait(dying)
    assert (failed["status"], failed["attempts"]) == ("failed", 4)
    assert failed["error"]["code"] == "process_killed"


@pytest.mark.parametrize(
    ("status", "log", "code", "retry"),
    [
        (0, "Stopped.", "interrupted", True),
        (1, "Traceback\nKeyError: 1", "trainer_fault", True),
        (2, "error: the data are wrong.", "invalid_recipe", False),
        (3, "error: The loss is nan.", "training_diverged", False),
        (4, "error: The disk is full.", "disk_full", True),
        (5, "error: Process 1 was lost.", "process_lost", True),
        (6, "error: Stopped at once.", "interrupted", True),
        (137, "error: an older line", "process_killed", True),
        (143, "", "process_killed", True),
    ],
)
def test_exit_statuses(tmp_path: Path, status: int, log: str, code: str, retry: bool) -> None:
    path = tmp_path / "trainer.log"
    path.write_text(f"starting\n{log}\n")
    found = failure(status, path)
    assert (found.code, found.retry) == (code, retry)
    if log.startswith("error: ") and status < 100:
        assert found.sentence == log.removeprefix("error: ")
