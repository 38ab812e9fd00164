"""Run the trainer, and beside it the engine that it samples from, once it asks for one."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from draftsmith.distill.rollout_engine import ANSWER, MEETING_VARIABLE, REQUEST
from draftsmith.server.engine.command import EngineConfig, uses_cpu_wheel
from draftsmith.server.engine.process import EngineError, EngineProcess

_POLL_S = 0.1
_KV_CACHE_BYTES = 2 << 30
_GPU_FRACTION = 0.3
"""Of a GPU's memory; teacher, student and optimiser have the rest."""


def run_with_engine(command: Sequence[str], environment: Mapping[str, str], run: Path) -> int:
    """The trainer's exit status; nothing of the engine is left when this returns.

    Args:
        run: the run's folder; the two meet in `rollout/`, the engine's log lies beside it.

    Raises:
        ValueError: no vLLM is installed.
    """
    uses_cpu_wheel()
    meeting = run / "rollout"
    meeting.mkdir(parents=True, exist_ok=True)
    for name in (REQUEST, ANSWER):  # of a run that was killed
        (meeting / name).unlink(missing_ok=True)
    trainer = subprocess.Popen(command, env={**environment, MEETING_VARIABLE: str(meeting)})
    engine: EngineProcess | None = None
    try:
        while trainer.poll() is None:
            if engine is None and (meeting / REQUEST).is_file():
                engine = _start(meeting, run / "rollout-engine.log")
            time.sleep(_POLL_S)
        return trainer.returncode
    finally:
        if engine is not None:
            engine.stop()
        if trainer.poll() is None:
            trainer.terminate()
            trainer.wait()


def _start(meeting: Path, log: Path) -> EngineProcess:
    """Start what the trainer asks for, and tell it where that is or why it is not."""
    engine = EngineProcess(_config(meeting / REQUEST), log)
    try:
        engine.start()
        engine.wait_ready()
        answer = {"socket": str(engine.socket), "pid": engine.pid}
    except EngineError as error:
        answer = {"error": str(error)}
    partial = meeting / "answer.partial"
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(meeting / ANSWER)
    return engine


def _config(request: Path) -> EngineConfig:
    wanted = json.loads(request.read_text(encoding="utf-8"))
    on_cpu = uses_cpu_wheel()
    return EngineConfig(
        target=Path(wanted["model"]),
        served_model_name=wanted["name"],
        dtype=wanted["dtype"],
        max_model_len=wanted["max_model_len"],
        max_num_seqs=wanted["max_num_seqs"],
        kv_cache_bytes=_KV_CACHE_BYTES if on_cpu else None,
        gpu_memory_fraction=None if on_cpu else _GPU_FRACTION,
        # Sampling is said in every request: the model's own defaults must not add to it.
        extra_args=("--tokenizer", wanted["tokenizer"], "--generation-config", "vllm"),
    )
