"""However a run ends, it says so in one sentence and loses no checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from draftsmith.distill.exits import Exit
from draftsmith.distill.folder import MARKER
from draftsmith.distill.manifest import sha256_file
from tests.distill.runs import command, errors, last_step, run, running, succeed, timeless

# A signal in the middle of four steps whose rollouts were sampled together.
FORTY_STEPS: dict[str, Any] = {
    "train__steps": 40,
    "train__save_every": 20,
    "train__eval_every": 50,
    "rollout__steps_ahead": 4,
}


def checkpoints(output: Path) -> list[int]:
    """The steps of the complete checkpoints, every file of which is as it was written."""
    folders = sorted((output / "checkpoints").glob("step-*"))
    assert all(folder.suffix == "" for folder in folders), "something half written lies there"
    for folder in folders:
        for file in json.loads((folder / MARKER).read_text())["files"]:
            assert sha256_file(folder / file["path"]) == file["sha256"]
    return [int(folder.name.removeprefix("step-")) for folder in folders]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_the_step_that_runs(
    tiny_target: Path, tmp_path: Path, forty_steps: Path, number: signal.Signals
) -> None:
    output = tmp_path / "run"
    with running(command(tiny_target, output, **FORTY_STEPS), output, 9) as process:
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == Exit.DONE
    assert not errors(stderr)
    assert stderr.count("--resume") == 1
    stopped = last_step(output)
    assert checkpoints(output) == [stopped]
    assert stopped < 39
    assert not (output / "draft").exists()
    assert succeed(tiny_target, output, resume=True, **FORTY_STEPS) == timeless(forty_steps)
    weights = "draft/model.safetensors"
    assert (output / weights).read_bytes() == (forty_steps / weights).read_bytes()


@pytest.fixture(scope="module")
def forty_steps(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "forty"
    succeed(tiny_target, output, **FORTY_STEPS)
    return output


def test_a_signal_before_the_first_step_ends_at_once(tiny_target: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(tiny_target, output), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (output / "recipe.json").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == Exit.DONE
    assert "--resume goes on" in stderr
    assert "Traceback" not in stderr


def test_two_processes_survive_the_loss_of_one_and_a_signal(
    tiny_target: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    settings: dict[str, Any] = {"train__steps": 2000, "train__save_every": 5}
    arguments = command(tiny_target, output, 2, **settings)
    with running(arguments, output, 12) as launcher:
        psutil.Process(launcher.pid).children()[1].kill()
        killed = time.monotonic()
        _, stderr = launcher.communicate(timeout=120)
        assert time.monotonic() - killed < 30
    assert launcher.returncode == Exit.LOST_PROCESS
    (error,) = errors(stderr)
    assert "ended by SIGKILL" in error
    assert "Traceback" not in stderr
    newest = checkpoints(output)[-1]
    assert newest >= 10

    with running([*arguments, "--resume"], output, last_step(output) + 1) as launcher:
        launcher.terminate()
        _, stderr = launcher.communicate(timeout=120)
    assert launcher.returncode == Exit.DONE
    assert not errors(stderr)
    assert stderr.count("--resume") == 1, "one process speaks for both"
    assert checkpoints(output)[-1] == last_step(output) > newest


def test_what_is_not_a_number_ends_the_run_and_is_never_saved(
    tiny_target: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    settings: dict[str, Any] = {"train__learning_rate": 1e30, "train__save_every": 1}
    result = run(tiny_target, output, **settings)
    assert result.returncode == Exit.DIVERGED
    (error,) = errors(result.stderr)
    assert "At step 2 the loss is" in error
    assert "Traceback" not in result.stderr
    assert checkpoints(output) == [1]
    state = torch.load(
        output / "checkpoints/step-00000001/state/mp_rank_00_model_states.pt", weights_only=False
    )
    assert all(torch.isfinite(weight).all() for weight in state["module"].values())
    assert "NaN" not in (output / "metrics.jsonl").read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[list[str], Path, Path]]:
    """What runs a command where a disk of 12 MiB is mounted; the disk, from inside and outside."""
    inside = tmp_path / "disk"
    inside.mkdir()
    mount = f"mount -t tmpfs -o size=12m tmpfs {inside}"
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, mount]).returncode:
        pytest.skip("this machine does not let tests mount a file system")
    holder = subprocess.Popen(
        [*unshare, f"{mount} && echo mounted && exec sleep 300"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "mounted\n"
    enter = ["nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials"]
    yield [*enter, f"--wd={Path.cwd()}"], inside, Path(f"/proc/{holder.pid}/root{inside}")
    holder.kill()
    holder.wait()


def test_a_disk_that_fills_up_costs_no_checkpoint(
    tiny_target: Path, small_disk: tuple[list[str], Path, Path]
) -> None:
    enter, inside, outside = small_disk
    settings: dict[str, Any] = {"train__steps": 600, "train__save_every": 20}
    arguments = [*enter, *command(tiny_target, inside / "run", **settings)]
    ballast, output = outside / "ballast", outside / "run"
    with running(arguments, output, 21) as process:
        newest = max(output.glob("checkpoints/step-*[0-9]"))
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        _fill(ballast, leaving=size // 2)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == Exit.DISK_FULL, stderr[-2000:]
    (error,) = errors(stderr)
    assert "No space left" in error
    assert "Traceback" not in stderr
    saved = checkpoints(output)
    assert saved

    ballast.unlink()
    with running([*arguments, "--resume"], output, last_step(output) + 1) as process:
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == Exit.DONE
    assert checkpoints(output)[-1] > saved[-1]


def _fill(path: Path, leaving: int) -> None:
    free = shutil.disk_usage(path.parent).free
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, free - leaving))


def test_exit_codes_are_known_without_torch() -> None:
    code = "import sys, draftsmith.distill.exits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {one for one in Exit if one.worth_resuming} == {4, 5, 6}
