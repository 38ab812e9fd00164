"""Trainers on schedulers: started, watched, found again, ended. The schedulers are stand-ins that
run real processes (`schedulers.py`); no cluster was asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from draftsmith.server.home import Home
from draftsmith.server.jobs.folder import JobFolder
from draftsmith.server.jobs.launchers import cluster, open_launcher
from draftsmith.server.jobs.launchers.cluster import ClusterLauncher, name_of
from draftsmith.server.jobs.launchers.kubernetes import Kubernetes
from draftsmith.server.jobs.launchers.launcher import Handle, LaunchError, Unanswered
from draftsmith.server.jobs.settings import WorkerSettings
from draftsmith.server.jobs.trainer import TRAINER, trainer_command
from tests.server.jobs.conftest import Site, tiny
from tests.server.jobs.schedulers import install, ray
from tests.server.jobs.test_kills import wait_trainer
from tests.server.processes import alive, descendants, wait_until

KUBERNETES: dict[str, Any] = {
    "kubernetes_image": "registry/draftsmith:1",
    "kubernetes_volume_claim": "home",
}
# A trainer with a child: tells its process ids, and says on SIGTERM that it has saved its state.
TRAIN = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
def stop(number, frame):
    child.terminate()
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["slurm", "kubernetes", "ray"])
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerSettings]:
    monkeypatch.setattr(cluster, "_LOOK_EVERY_S", 0.1)
    programs = install(tmp_path / "cluster")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    with ray(tmp_path / "ray") as url:
        more: dict[str, Any] = KUBERNETES | {"ray_url": url, "grace_s": 15.0}
        yield WorkerSettings(launcher=request.param, **more)


@pytest.fixture
def launcher(settings: WorkerSettings) -> ClusterLauncher:
    made = open_launcher(settings)
    assert isinstance(made, ClusterLauncher)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    made = JobFolder.of(Home(tmp_path / "home"), "job-0123456789abcdef01234567")
    made.root.mkdir(parents=True)
    return made


def start(launcher: ClusterLauncher, folder: JobFolder, code: str) -> Handle:
    return launcher.start(folder, [sys.executable, "-c", code], dict(os.environ))


def wait(handle: Handle) -> int:
    end = time.monotonic() + 20
    while (status := handle.poll()) is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    return status


def family(folder: JobFolder) -> list[int]:
    def told() -> list[str]:
        return folder.log.read_text().split() if folder.log.is_file() else []

    wait_until(lambda: len(told()) >= 2, 20, "it runs")
    return [int(one) for one in told()[:2]]


def test_start_and_exit_status(launcher: ClusterLauncher, folder: JobFolder) -> None:
    assert launcher.adopt(folder) is None
    launcher.clear(folder)
    handle = start(launcher, folder, "print('hello'); raise SystemExit(3)")
    assert wait(handle) == 3
    assert handle.has_begun()
    assert folder.log.read_text() == "hello\n"
    assert launcher.adopt(folder) is None, "what is over is not adopted"
    assert wait(start(launcher, folder, "print('again')")) == 0, "its name is free"
    assert folder.log.read_text() == "hello\nagain\n", "attempts share a log"


def test_the_next_worker_finds_it_by_name(
    launcher: ClusterLauncher, settings: WorkerSettings, folder: JobFolder
) -> None:
    handle = start(launcher, folder, TRAIN)
    pids = family(folder)
    assert handle.leave() is None
    with pytest.raises(LaunchError):
        start(launcher, folder, "print('a second attempt')")
    after = open_launcher(settings)
    adopted = after.adopt(folder)
    assert adopted is not None
    assert adopted.poll() is None
    assert all(map(alive, pids)), "a worker that goes away disturbs nothing"
    assert adopted.stop() == 0
    assert folder.log.read_text().split()[2:] == ["saved"], "it was told once, and could save"
    assert not any(map(alive, pids))
    assert after.adopt(folder) is None


def test_an_attempt_that_does_not_listen_is_killed(
    settings: WorkerSettings, folder: JobFolder
) -> None:
    if settings.launcher == "ray":
        pytest.skip("Ray itself kills what does not end; its stand-in does not")
    launcher = open_launcher(settings.model_copy(update={"grace_s": 0.5}))
    assert isinstance(launcher, ClusterLauncher)
    deaf = TRAIN.replace("    child.terminate()\n", "    return\n")
    start(launcher, folder, deaf)
    pids = family(folder)
    launcher.clear(folder)
    wait_until(lambda: not any(map(alive, pids)), 5, "nothing is left")


def test_a_scheduler_that_does_not_answer_is_waited_for(
    folder: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its silence would be taken for the end of a trainer that runs on."""
    monkeypatch.setattr(cluster, "_AGAIN_S", 0.05)
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'cluster')}{os.pathsep}{os.environ['PATH']}")
    away = tmp_path / "cluster" / "state" / "AWAY"
    launcher = open_launcher(WorkerSettings(launcher="slurm", grace_s=15))
    assert isinstance(launcher, ClusterLauncher)
    handle = start(launcher, folder, TRAIN)
    pids = family(folder)
    away.write_text("0")
    with ThreadPoolExecutor() as pool:
        stopped = pool.submit(handle.stop)
        with pytest.raises(TimeoutError):
            stopped.result(timeout=1)
        assert all(map(alive, pids))
        away.unlink()
        assert stopped.result(timeout=20) == 0
    assert not any(map(alive, pids))


def test_schedulers_that_are_not_there(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name, reason in (("slurm", "no command squeue"), ("kubernetes", "no command kubectl")):
        with pytest.raises(LaunchError, match=reason):
            open_launcher(WorkerSettings(launcher=name, **KUBERNETES)).adopt(folder)
    gone = WorkerSettings(launcher="ray", ray_url="http://127.0.0.1:1")
    with pytest.raises(Unanswered, match="does not answer"):
        open_launcher(gone).start(folder, ["true"], {})
    for name, reason in (("kubernetes", "KUBERNETES_IMAGE is missing"), ("ray", "RAY_URL")):
        with pytest.raises(ValueError, match=reason):
            open_launcher(WorkerSettings(launcher=name))


def test_several_machines(folder: JobFolder) -> None:
    """Each starts the launcher of processes with its own number, and they meet at the first."""
    command = trainer_command("recipe.json", Path("run"))
    assert command[1:3] == list(TRAINER)
    for name, rank, head in (
        ("slurm", "$SLURM_NODEID", "scontrol show hostnames"),
        ("kubernetes", "$JOB_COMPLETION_INDEX", f"{name_of(folder)}-trainer-0-0.{name_of(folder)}"),
    ):
        settings = WorkerSettings(launcher=name, nodes=2, processes=4, **KUBERNETES)
        launcher = open_launcher(settings)
        assert isinstance(launcher, ClusterLauncher)
        script = launcher._script(folder, command, 2)
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert f'--nnodes 2 --node-rank "{rank}"' in script
        assert head in script
        assert "--nproc 4" in script
        assert ("srun --nodes=2 --ntasks-per-node=1" in script) == (name == "slurm")
        assert (f'[ "{rank}" = 0 ] && echo' in script) == (name == "kubernetes")


def test_what_kubernetes_is_given(tmp_path: Path) -> None:
    """The fields that the published schemas require, Kueue's label, and no secret."""
    settings = WorkerSettings(
        launcher="kubernetes", kubernetes_queue="gpus", gpus=2, nodes=1, grace_s=59.5, **KUBERNETES
    )
    secrets = {"DRAFTSMITH_API_KEY": "x", "AWS_SECRET": "y", "HF_HOME": "/h", "PATH": "/p"}
    script = tmp_path / "attempt.sh"
    job = Kubernetes(settings).manifest("draftsmith-job-1", script, secrets, 1)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert (job["spec"]["suspend"], job["spec"]["backoffLimit"]) == (True, 0)
    pod = job["spec"]["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 60)
    container = pod["containers"][0]
    assert container["env"] == [{"name": "HF_HOME", "value": "/h"}]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    assert container["command"] == ["bash", str(script)]
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in pod["volumes"]}

    several = Kubernetes(settings.model_copy(update={"nodes": 3}))
    jobs = several.manifest("draftsmith-job-1", script, secrets, 3)
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert (jobs["spec"]["suspend"], jobs["spec"]["failurePolicy"]) == (True, {"maxRestarts": 0})
    (group,) = jobs["spec"]["replicatedJobs"]
    inner = group["template"]["spec"]
    assert (inner["parallelism"], inner["completions"], inner["completionMode"]) == (
        3,
        3,
        "Indexed",
    )


@pytest.mark.slow
def test_a_job_on_slurm_outlives_its_worker(site: Site, tmp_path: Path) -> None:
    """Real training through the stand-in: the worker is killed, the trainer is not."""
    programs = install(tmp_path / "cluster")
    job_id = site.submit(tiny(steps=400, save_every=100, eval_every=400))
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{programs}{os.pathsep}{path}"
    try:
        worker = site.work(launcher="slurm", lease_s="2")
        wait_until(lambda: site.api.get(f"/{job_id}").json()["step"] > 2, 90, "it trains")
        trainer = wait_trainer(site, job_id)
        assert trainer.pid not in descendants(worker.pid)
        worker.kill()
        site.work(launcher="slurm", lease_s="2")
        wait_until(lambda: site.api.get(f"/{job_id}").json()["attempts"] == 2, 30, "taken over")
        assert alive(trainer.pid)
        done = site.wait(job_id)
    finally:
        os.environ["PATH"] = path
    assert (done["status"], done["attempts"]) == ("succeeded", 2)
    steps = [
        one["step"]
        for one in site.api.get(f"/{job_id}/metrics?kind=train&limit=9999").json()["data"]
    ]
    assert steps == list(range(1, 401)), "no step was repeated: it is the same trainer"
