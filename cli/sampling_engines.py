"""Run the trainer, and beside it the engines that it samples from, once it asks for them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import get_args

from draftsmith.cli.trainer_process import running_trainer
from draftsmith.distill.meeting import EngineAnswer, EngineRequest, Meeting, Part
from draftsmith.distill.recipe import Recipe
from draftsmith.server.engine.command import EngineConfig, uses_cpu_wheel
from draftsmith.server.engine.process import EngineError, EngineProcess
from draftsmith.server.jobs.trainer import trainer_environment

_POLL_S = 0.1
_KV_CACHE_BYTES = 2 << 30
_FEW_CORES = 4
"""So few that large batches need the scheduler's too: 1.3 times faster with two of two."""
_GPU_FRACTION = 0.3
"""Of a GPU's memory; teacher, student and optimiser have the rest."""


def run_trainer(
    command: Sequence[str], recipe: Recipe, run: Path, stopped: Event | None = None
) -> int:
    """Run the trainer, with engines where the recipe samples in vLLM, and return its exit status.

    Args:
        run: folder for what engines leave; see `run_with_engines`.
        stopped: see `running_trainer`.

    Raises:
        ValueError: no vLLM is installed.
    """
    if recipe.rollout.engine == "vllm":
        return run_with_engines(command, trainer_environment(), run, stopped)
    with running_trainer(command, trainer_environment(), stopped) as trainer:
        return trainer.wait()


def run_with_engines(
    command: Sequence[str],
    environment: Mapping[str, str],
    run: Path,
    stopped: Event | None = None,
) -> int:
    """The trainer's exit status; nothing of the engines is left when this returns.

    Args:
        run: the run's folder; they meet in `rollout/`, the engines' logs lie beside it.
        stopped: see `running_trainer`.

    Raises:
        ValueError: no vLLM is installed.
    """
    uses_cpu_wheel()
    parts: tuple[Part, ...] = get_args(Part)
    engines = [
        _Engine(Meeting(run / "rollout", part), run / f"{part}-engine.log") for part in parts
    ]
    environment = {**environment, **engines[0].meeting.environment}
    try:
        with running_trainer(command, environment, stopped) as trainer:
            while trainer.poll() is None:
                for engine in engines:
                    engine.attend()
                time.sleep(_POLL_S)
            return trainer.returncode
    finally:
        for engine in engines:
            engine.stop()


class _Engine:
    """What the trainer may ask for at one meeting: an engine, until it releases it."""

    def __init__(self, meeting: Meeting, log: Path) -> None:
        self.meeting = meeting
        self._log = log
        self._process: EngineProcess | None = None
        self._attended = False
        meeting.prepare()

    def attend(self) -> None:
        """Do what was asked for since the last call."""
        if not self._attended and (request := self.meeting.asked()) is not None:
            self._attended = True
            self._process = EngineProcess(_config(request), self._log)
            self.meeting.answer(_start(self._process))
        if self.meeting.released():
            self.stop()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None


def _start(engine: EngineProcess) -> EngineAnswer:
    try:
        engine.start()
        engine.wait_ready()
    except EngineError as error:
        return EngineAnswer(error=str(error))
    assert engine.pid is not None, "an engine that answers has a process"
    return EngineAnswer(socket=str(engine.socket), group=engine.pid)


def _config(request: EngineRequest) -> EngineConfig:
    on_cpu = uses_cpu_wheel()
    return EngineConfig(
        target=Path(request.model),
        dtype=request.dtype,
        max_model_len=request.max_model_len,
        max_num_seqs=request.max_num_seqs,
        kv_cache_bytes=_KV_CACHE_BYTES if on_cpu else None,
        gpu_memory_fraction=None if on_cpu else _GPU_FRACTION,
        scheduler_core=len(os.sched_getaffinity(0)) > _FEW_CORES,
        # Sampling is said in every request: the model's own defaults must not add to it.
        extra_args=("--tokenizer", request.tokenizer, "--generation-config", "vllm"),
    )
