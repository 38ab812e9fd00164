"""What a teacher's signal costs in training: live, stored hidden states, stored top-k.

    .venv/bin/python benchmarks/teachers.py --target FOLDER --json benchmarks/results/teachers.json

The teacher answers some prompts and its signals on the answers are recorded in both formats. Each
round then takes every kind of teacher in turn over the same texts: `signal` is the time until the
signal is in memory (a forward pass, or reading rows), `loss` that of the chunked loss and its
gradients with a student of the given width. Figures are medians over rounds, of 1000 tokens. The
first round is not counted: it reads the files into the page cache and checks their hashes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import torch
from figures import device_name, version

from draftsmith.distill.batch import Example
from draftsmith.distill.models import default_device, load_model, quiet_libraries, torch_dtype
from draftsmith.distill.recipe import parse_recipe
from draftsmith.distill.sections.teacher import SignalFormat
from draftsmith.distill.teacher import LiveTeacher, SignalStore, StoredTeacher, Teacher
from draftsmith.distill.teacher.record import record
from draftsmith.kernels.linear import fused_linear_divergence

TEXTS_AT_A_TIME = 4


def main() -> None:
    options = parse()
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        stores = {name: Path(scratch) / name for name in get_args(SignalFormat)}
        seconds = {}
        for name, folder in stores.items():
            began = time.perf_counter()
            record(recipe(options), folder, format=name, top_k=options.top_k)
            seconds[name] = time.perf_counter() - began
        opened = {name: SignalStore.open(folder) for name, folder in stores.items()}
        texts = [text for text in opened["hidden"].texts if text.part == "train"]
        examples = [Example(text.prompt, text.response, "recorded") for text in texts]
        model = load_model(options.target, torch_dtype("auto")).to(default_device())
        device = default_device()
        teachers: dict[str, Teacher] = {"live": LiveTeacher(model, 0)}
        teachers |= {name: StoredTeacher(store, "train", device) for name, store in opened.items()}
        times = measure(teachers, examples, model.config.vocab_size, options)
        bytes_a_token = {
            name: store.manifest.signal_bytes / store.manifest.tokens
            for name, store in opened.items()
        }
    result = {
        "command": " ".join(["python", *sys.argv]),
        "device": device_name(),
        "load": os.getloadavg(),
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "teacher_dtype": str(model.dtype),
        "student_width": options.width,
        "texts": len(examples),
        "tokens": sum(len(example.response) for example in examples),
        "bytes_per_token": bytes_a_token,
        "recording_seconds": seconds,
        "seconds_per_1000_tokens": times,
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a teacher's signal costs in training.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--width", type=int, default=192, help="of the student")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for the recordings")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args()


def recipe(options: argparse.Namespace) -> Any:
    content = {
        "name": "teachers",
        "teacher": {"model": str(options.target)},
        "data": {"limit": options.prompts, "heldout_limit": 1},
        "rollout": {"student_fraction": 0, "max_new_tokens": options.new_tokens},
        "train": {"steps": 1},
    }
    return parse_recipe(content, "benchmark")


def measure(
    teachers: dict[str, Teacher],
    examples: list[Example],
    vocab_size: int,
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Medians over rounds of the seconds that 1000 tokens take."""
    generator = torch.Generator().manual_seed(0)
    device, dtype = default_device(), torch_dtype("auto")
    head_VH = torch.randn(vocab_size, options.width, generator=generator) / options.width**0.5
    head_VH = head_VH.to(device, dtype).requires_grad_()
    starts = range(0, len(examples), TEXTS_AT_A_TIME)
    parts = [examples[start : start + TEXTS_AT_A_TIME] for start in starts]
    tokens = sum(len(example.response) for example in examples)
    rounds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(options.rounds + 1):
        for name, teacher in teachers.items():
            spent = {"signal": 0.0, "loss": 0.0}
            for part in parts:
                began = time.perf_counter()
                signal = teacher.signal(part)
                ready = time.perf_counter()
                hidden_NH = torch.randn(len(signal), options.width, generator=generator)
                hidden_NH = hidden_NH.to(device, dtype).requires_grad_()
                weight_N = torch.full((len(signal),), 1 / len(signal), device=device)
                started = time.perf_counter()
                loss, _ = fused_linear_divergence(
                    hidden_NH, head_VH, signal, weight_N, divergence="forward_kl"
                )
                torch.autograd.grad(loss, (hidden_NH, head_VH))
                spent["signal"] += ready - began
                spent["loss"] += time.perf_counter() - started
            if number:
                for what, value in spent.items():
                    rounds[name, what].append(1000 * value / tokens)
    return {
        name: {what: statistics.median(rounds[name, what]) for what in ("signal", "loss")}
        for name in teachers
    }


if __name__ == "__main__":
    main()
