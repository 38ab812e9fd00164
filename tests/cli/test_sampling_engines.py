"""`draftsmith distill` with vLLM: engines beside the trainer, gone when that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from draftsmith.distill.metrics import read_metrics
from tests.cli.commands import DRAFTSMITH, draftsmith, environment, one_sentence
from tests.distill.runs import TINY, run, succeed, timeless
from tests.server.processes import alive, command_of, descendants, wait_until

VLLM: dict[str, Any] = TINY | {
    "rollout.engine": "vllm",
    "rollout.student_fraction": 1.0,
    "rollout.steps_ahead": 2,
    "rollout.batch_size": 8,
    "train.save_every": 2,
}


def arguments(target: Path, output: Path, **settings: Any) -> list[str]:
    fields = VLLM | {name.replace("__", "."): value for name, value in settings.items()}
    fields["teacher.model"] = str(target)
    given = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    return ["distill", "tiny", "--no-register", "--output", str(output), *given]


def train_records(output: Path) -> list[dict[str, Any]]:
    return [one for one in read_metrics(output / "metrics.jsonl") if one["kind"] == "train"]


def start(home: Path, words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [DRAFTSMITH, *words],
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_a_killed_trainer_takes_its_engine_along(tiny_target: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(tmp_path, arguments(tiny_target, output, train__steps=100_000))
    try:
        wait_until(lambda: len(train_records(output)) >= 6, 150, "six steps")
        family = descendants(process.pid)
        trainer = next(pid for pid in family if "draftsmith.distill.train" in command_of(pid))
        os.kill(trainer, signal.SIGKILL)
        assert process.wait(60) != 0
        wait_until(lambda: not any(alive(pid) for pid in family), 20, "nothing is left")
    finally:
        process.kill()
        process.wait()
    records = train_records(output)
    assert (output / "teacher-engine.log").is_file()
    assert len(family) >= 5  # trainer, watchdog, API server, engine core, worker
    assert [one["staleness"] for one in records[:6]] == [0, 1] * 3
    assert all(one["student_share"] == 1 for one in records)


def test_only_draftsmith_distill_can_give_an_engine(tiny_target: Path, tmp_path: Path) -> None:
    result = run(tiny_target, tmp_path / "run", rollout__engine="vllm")
    assert "start the run with `draftsmith distill`" in one_sentence(result)


def test_no_engine_runs_for_text_that_is_there(tiny_target: Path, tmp_path: Path) -> None:
    """The teacher's answers are taken over, and the student writes none."""
    answered, output = tmp_path / "answered", tmp_path / "run"
    succeed(tiny_target, answered, train__steps=1)
    settings = {"rollout__student_fraction": 0, "data__answers": answered}
    result = draftsmith(tmp_path, *arguments(tiny_target, output, **settings))
    assert result.returncode == 0, result.stderr
    assert len(train_records(output)) == TINY["train.steps"]
    assert not list(output.glob("*-engine.log"))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_responses(tiny_target: Path, tmp_path: Path) -> None:
    """In float32 the samples belong to their seeds, so that the loss says the same."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = {"train__steps": 12}
    assert draftsmith(tmp_path, *arguments(tiny_target, whole, **steps)).returncode == 0
    process = start(tmp_path, arguments(tiny_target, killed, **steps))
    wait_until(lambda: len(train_records(killed)) >= 5, 150, "five steps")
    family = descendants(process.pid)
    process.kill()  # the engine goes with it, and the trainer when it finds that out
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in family), 30, "nothing is left")
    assert len(train_records(killed)) < 12
    resumed = draftsmith(tmp_path, *arguments(tiny_target, killed, **steps), "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert timeless(killed) == timeless(whole)


@pytest.mark.slow
def test_two_processes_and_a_small_vocabulary(tiny_target: Path, tmp_path: Path) -> None:
    settings = {"student__vocabulary": 100, "train__steps": 4}
    two = arguments(tiny_target, tmp_path / "two", **settings)
    result = draftsmith(tmp_path, *two, "--nproc", "2")
    assert result.returncode == 0, result.stderr[-2000:]
    began = time.monotonic()
    one = draftsmith(tmp_path, *arguments(tiny_target, tmp_path / "one", **settings))
    assert one.returncode == 0, one.stderr[-2000:]
    assert time.monotonic() - began < 200
    pairs = zip(train_records(tmp_path / "two"), train_records(tmp_path / "one"), strict=True)
    for ours, theirs in pairs:
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
