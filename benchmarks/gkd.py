"""Whole distillation steps beside TRL's GKD trainer: tokens a second and peak memory.

    .venv/bin/python benchmarks/gkd.py --teacher FOLDER --json benchmarks/results/gkd-cpu.json

Same teacher (bfloat16), same student (some of its layers, float32 weights under bfloat16
autocast; `--dtype float32` where the processor does not multiply it), same token ids, JSD with
beta 0.5, AdamW with clipping. Each contender is a process of its own that trains by its library's
own loop: TRL's `train()`, and `train_step` of `draftsmith.distill.train`. They take turns step by
step, so that a busy machine slows all of them; one does nothing while another works. Figures are
medians over rounds, ratios are medians of the rounds' ratios.

`given` steps train on responses that the data gives; `on-policy` steps let the student write them
first. Only `draftsmith, kept states` keeps something of the teacher between steps, as a run does by
default from its second pass over the text on. TRL keeps all activations, its faster setting. Peak
memory is the process's high-water mark of resident memory, models and libraries included. `TRL`
runs as Python starts it, `TRL, preloaded` with the allocator and the OpenMP that `draftsmith
distill` loads first. `passes alone` is no trainer: both models' passes, and the student's backwards
from a given gradient of its logits, so that the rest of our step is what loss and optimiser add.

The text is that of the built-in prompts, one after the other, cut into prompts and responses of
equal lengths.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from figures import device_name, version

from draftsmith.server.engine.command import preload_libraries

WORKERS = Path(__file__).with_name("gkd_workers.py")


@dataclass(frozen=True)
class Contender:
    library: str
    micro_batch: int
    checkpointing: bool = False
    preload: bool = True
    """tcmalloc and Intel's OpenMP loaded first, as `draftsmith distill` does."""
    kept_states: bool = False
    """The teacher's states of given text are computed before the first step, as by default."""


CONTENDERS = {
    "draftsmith": Contender("draftsmith", 4),
    "draftsmith, kept states": Contender("draftsmith", 4, kept_states=True),
    "draftsmith, micro-batch 8": Contender("draftsmith", 8),
    "passes alone": Contender("passes", 4),
    "TRL": Contender("trl", 8, preload=False),
    "TRL, preloaded": Contender("trl", 8),
    "TRL, preloaded, micro-batch 4": Contender("trl", 4),
    "TRL, gradient checkpointing": Contender("trl", 8, checkpointing=True, preload=False),
}
DEFAULT = ["draftsmith", "draftsmith, kept states", "TRL", "TRL, preloaded"]


class Worker:
    """A contender's process, which does one step for each line that it is sent."""

    def __init__(self, name: str, mode: str, arguments: argparse.Namespace) -> None:
        contender = CONTENDERS[name]
        task = asdict(contender) | {
            "teacher": str(arguments.teacher),
            "layers": arguments.layers,
            "dtype": arguments.dtype,
            "batch": arguments.batch,
            "prompt_tokens": arguments.prompt_tokens,
            "response_tokens": arguments.response_tokens,
            "steps": arguments.rounds + 1,
            "on_policy": mode == "on-policy",
        }
        libraries = preload_libraries() if contender.preload else []
        self._process = subprocess.Popen(
            [sys.executable, str(WORKERS), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arguments.verbose else subprocess.DEVNULL,
            text=True,
            env=os.environ | {"LD_PRELOAD": ":".join(map(str, libraries))},
        )
        self._answer()  # models are loaded

    def step(self) -> dict[str, float]:
        """seconds, trained tokens and loss of one more step, and peak bytes until then."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print as well
                answer: dict[str, float] = json.loads(line)
                return answer
        raise SystemExit("error: a contender ended early: run with --verbose to see why.")


def compare(mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one mode; the first round warms up."""
    workers = {name: Worker(name, mode, arguments) for name in arguments.contenders}
    rounds = []
    for number in range(arguments.rounds + 1):
        rounds.append({name: worker.step() for name, worker in workers.items()})
        shown = ", ".join(f"{name} {one['seconds']:.2f} s" for name, one in rounds[-1].items())
        print(f"{mode} {number}/{arguments.rounds}: {shown}", file=sys.stderr, flush=True)
    measured = rounds[1:]
    peaks = {name: int(one["peak_bytes"]) for name, one in rounds[-1].items()}
    for worker in workers.values():
        worker.close()
    first = arguments.contenders[0]

    def row(name: str) -> dict[str, Any]:
        mine = [one[name] for one in measured]
        speeds = [one["tokens"] / one["seconds"] for one in mine]
        best = [one[first]["tokens"] / one[first]["seconds"] for one in measured]
        ratios = [a / b for a, b in zip(best, speeds, strict=True)]
        return {
            **asdict(CONTENDERS[name]),
            "seconds_a_step": statistics.median(one["seconds"] for one in mine),
            "tokens_a_step": statistics.median(one["tokens"] for one in mine),
            "tokens_a_second": statistics.median(speeds),
            "peak_bytes": peaks[name],
            "speed_of_first": statistics.median(ratios),
            "memory_of_first": peaks[first] / peaks[name],
            "rounds": mine,
        }

    return {name: row(name) for name in arguments.contenders}


def show(mode: str, figures: dict[str, Any]) -> None:
    print(f"\n{mode:30}{'s a step':>10}{'tokens/s':>10}{'GiB':>8}{'speed-up':>10}{'memory':>9}")
    for name, row in figures.items():
        print(
            f"{name:30}{row['seconds_a_step']:10.2f}{row['tokens_a_second']:10.0f}"
            f"{row['peak_bytes'] / 2**30:8.2f}{row['speed_of_first']:10.2f}"
            f"{row['memory_of_first']:9.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Distillation steps beside TRL's GKD trainer.")
    parser.add_argument("--teacher", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--layers", type=int, default=6, help="of the student")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--response-tokens", type=int, default=172)
    parser.add_argument("--modes", nargs="+", default=["given", "on-policy"])
    parser.add_argument("--contenders", nargs="+", default=DEFAULT, choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--verbose", action="store_true", help="let the contenders speak")
    arguments = parser.parse_args()
    results = {mode: compare(mode, arguments) for mode in arguments.modes}
    for mode, figures in results.items():
        show(mode, figures)
    if arguments.json:
        packages = ("torch", "transformers", "deepspeed", "trl")
        record = {
            "command": " ".join(["python", *sys.argv]),
            "device": device_name(),
            "load": os.getloadavg(),
            "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
            "results": results,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
