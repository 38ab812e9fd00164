"""`draftsmith distill` as a supervisor of jobs sees it: signals in, exit codes out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from draftsmith.distill.exits import Exit
from tests.cli.commands import DRAFTSMITH, draftsmith, environment, one_sentence
from tests.distill.runs import TINY, last_step, running


def arguments(target: Path, output: Path, *options: str | Path) -> list[str]:
    fields = TINY | {"teacher.model": f'"{target}"', "train.steps": 400, "train.eval_every": 500}
    settings = [f"--set={name}={value}" for name, value in fields.items()]
    return ["distill", "tiny", "--output", str(output), *settings, *map(str, options)]


def test_a_stopped_run_is_told_from_a_finished_one(tiny_target: Path, tmp_path: Path) -> None:
    home, output = tmp_path / "home", tmp_path / "run"
    command = [str(DRAFTSMITH), *arguments(tiny_target, output, "--stopped-code=75")]
    with running(command, output, 3, environment(home)) as process:
        process.terminate()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    stopped = last_step(output)
    assert (output / f"checkpoints/step-{stopped:08d}/COMPLETE.json").is_file()
    assert "No models yet" in draftsmith(home, "models", "list").stdout


def test_a_killed_trainer_is_one_sentence_and_worth_resuming(
    tiny_target: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = [str(DRAFTSMITH), *arguments(tiny_target, output)]
    with running(command, output, 3, environment(tmp_path / "home")) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        subprocess.run(["kill", "-KILL", *children], check=True)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == Exit.LOST_PROCESS
    assert "error: The trainer was ended by SIGKILL" in stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--nnodes=2", "--node-rank=1"], "--rdzv-endpoint"),
        (["--nnodes=2", "--node-rank=2", "--rdzv-endpoint=h:1"], "--node-rank"),
        (["--hostfile=nowhere"], "nowhere is not a file"),
    ],
)
def test_hosts_that_cannot_be_reached(tmp_path: Path, options: list[str], expected: str) -> None:
    result = draftsmith(tmp_path, "distill", "tiny", *options)
    assert result.returncode == Exit.WRONG_INPUT
    assert expected in one_sentence(result)


@pytest.mark.slow
def test_deepspeeds_launcher_starts_the_same_run(tiny_target: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    options = arguments(tiny_target, tmp_path / "run", "--hostfile", hosts, "--set=train.steps=2")
    result = draftsmith(tmp_path / "home", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run/draft/manifest.json").is_file()
