"""Time, memory and error of the fused distillation loss, beside what others offer.

    .venv/bin/python benchmarks/kd_loss.py --json benchmarks/results/kd_loss-cpu.json
    .venv/bin/python benchmarks/kd_loss.py --shapes small --divergences jsd tvd --rounds 9

Forward and backward pass of the mean loss, bfloat16 inputs, teacher given as hidden states and
head. Contenders take turns within a round, all in one process, so that a busy machine slows all of
them; figures are medians over rounds, ratios are medians of the rounds' ratios. `matmuls` is the
lower bound: the four bare products, without any row in between.

Peak memory is what a call adds to its inputs. On a GPU the allocator counts it. On a CPU every
contender runs in a process of its own, after a warm-up and with the kernel's high-water mark of
resident memory reset: that also sees what libraries allocate by themselves.

Errors are relative to float64 autograd, in norm, over the first tokens of each shape.

Legend: N tokens, V vocabulary, H student width, G teacher width.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import DEVICE, MAKERS, Inputs, Loss, Shape, contenders, projected
from figures import device_name, resident_bytes, version
from torch import Tensor

from draftsmith.kernels.planner import plan

ERROR_TOKENS = 48
GPU_SHAPES = {
    "A": Shape(8192, 49152, 576, 576),
    "B": Shape(8192, 128256, 2048, 4096),
    "C": Shape(16384, 151936, 896, 3584),
}
CPU_SHAPES = {
    "cpu": Shape(2048, 49152, 576, 576),
    "small": Shape(256, 49152, 576, 576),
    "narrow": Shape(768, 49152, 192, 576),
    "wide": Shape(256, 151936, 896, 3584),
}
SHAPES = GPU_SHAPES if DEVICE.type == "cuda" else CPU_SHAPES


def matmuls(inputs: Inputs, logits_NV: Tensor) -> None:
    """The four products of the loss and its gradients, and nothing else."""
    hidden_NH, head_VH = inputs.hidden_NH.detach(), inputs.head_VH.detach()
    torch.mm(inputs.teacher.hidden_NG, inputs.teacher.head_VG.T, out=logits_NV)
    torch.mm(hidden_NH, head_VH.T, out=logits_NV)
    torch.mm(logits_NV, head_VH)
    torch.mm(logits_NV.T, hidden_NH)


def step(loss: Loss, inputs: Inputs) -> Tensor:
    value = loss(inputs)
    value.backward()
    return value.detach()


def seconds(run: Callable[[], Any]) -> float:
    synchronise()
    began = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def times(can: dict[str, Loss], inputs: Inputs, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round, after one round of warm-up."""
    shape = (len(inputs.weight_N), inputs.teacher.vocab_size)
    measured: dict[str, list[float]] = {name: [] for name in ("matmuls", *can)}
    for one in range(rounds + 1):
        for name in measured:
            if name == "matmuls":
                logits_NV = torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE)
                taken = seconds(lambda logits_NV=logits_NV: matmuls(inputs, logits_NV))  # type: ignore[misc]
                del logits_NV
            else:
                taken = seconds(lambda loss=can[name]: step(loss, inputs))  # type: ignore[misc]
            inputs.drop_gradients()
            if one > 0:
                measured[name].append(taken)
    return measured


def errors(loss: Loss, inputs: Inputs, divergence: str) -> dict[str, float]:
    """Relative errors of value and gradients against float64."""
    few = inputs.first(ERROR_TOKENS, torch.bfloat16)
    exact = few.first(ERROR_TOKENS, torch.float64)
    f64 = torch.float64
    wanted = step(lambda one: projected(one, divergence, f64, f64), exact)
    value = step(loss, few)
    pairs = {
        "value": (value, wanted),
        "hidden_gradient": (few.hidden_NH.grad, exact.hidden_NH.grad),
        "head_gradient": (few.head_VH.grad, exact.head_VH.grad),
    }
    return {
        name: float((a.double() - b).norm() / b.norm())
        for name, (a, b) in pairs.items()
        if a is not None and b is not None
    }


def peak_bytes(loss: Loss, inputs: Inputs) -> int:
    """What one call adds to the inputs and to what the libraries hold."""
    step(loss, inputs)
    inputs.drop_gradients()
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, inputs)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_bytes("VmRSS")
    step(loss, inputs)
    return resident_bytes("VmHWM") - before


def peak_in_own_process(name: str, shape: str, divergence: str) -> int:
    command = [sys.executable, __file__, "--peak", name, "--shapes", shape]
    done = subprocess.run(
        [*command, "--divergences", divergence], capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])


def compare(name: str, divergence: str, rounds: int) -> dict[str, Any]:
    """All figures of one shape and divergence."""
    shape = SHAPES[name]
    can, cannot = contenders(divergence)
    inputs = Inputs.random(shape)
    print(f"{divergence} {name}: times", file=sys.stderr, flush=True)
    measured = times(can, inputs, rounds)
    bound = measured["matmuls"]
    rows: dict[str, Any] = {"matmuls": {"ms": 1e3 * statistics.median(bound)}}
    for one, loss in can.items():
        print(f"{divergence} {name}: memory and error of {one}", file=sys.stderr, flush=True)
        if DEVICE.type == "cuda":
            peak = peak_bytes(loss, inputs)
            inputs.drop_gradients()
        else:
            peak = peak_in_own_process(one, name, divergence)
        rows[one] = {
            "ms": 1e3 * statistics.median(measured[one]),
            "times_matmuls": _ratio(measured[one], bound),
            "percent_of_bound": 100 / _ratio(measured[one], bound),
            "torch_float32_over_this": _ratio(measured["torch float32"], measured[one]),
            "peak_bytes": peak,
            "errors": errors(loss, inputs, divergence),
        }
    for one in can:
        rows[one]["peak_over_torch_float32"] = (
            rows[one]["peak_bytes"] / rows["torch float32"]["peak_bytes"]
        )
    foretold = plan(
        shape.tokens, shape.vocab, shape.student_width, shape.teacher_width,
        device_type=DEVICE.type,
    )  # fmt: skip
    return {
        "shape": vars(shape),
        "divergence": divergence,
        "planned_peak_bytes": foretold.peak_bytes,
        "flops": foretold.flops,
        "contenders": rows,
        "left_out": cannot,
    }


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def show(figures: dict[str, Any]) -> None:
    print(f"\n{figures['divergence']}  {figures['shape']}")
    print(
        f"{'':24}{'ms':>9}{'x bound':>9}{'speed-up':>10}{'MiB':>8}{'value':>10}{'dH':>9}{'dW':>9}"
    )
    for name, row in figures["contenders"].items():
        line = f"{name:24}{row['ms']:10.1f}"
        if "errors" in row:
            wrong = row["errors"].values()
            line += f"{row['times_matmuls']:10.2f}{row['torch_float32_over_this']:10.2f}"
            line += f"{row['peak_bytes'] / 2**20:10.0f}" + "".join(f"{e:10.1e}" for e in wrong)
        print(line)
    for name, reason in figures["left_out"].items():
        print(f"{name:24} left out: {reason}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time, memory and error of the distillation loss.")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument(
        "--divergences", nargs="+", default=["forward_kl", "jsd", "tvd"],
        choices=["forward_kl", "reverse_kl", "jsd", "tvd"],
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", metavar="CONTENDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        (shape,), (divergence,) = arguments.shapes, arguments.divergences
        loss = MAKERS[arguments.peak](divergence)
        print(peak_bytes(loss, Inputs.random(SHAPES[shape])))
        return
    results = []
    for shape in arguments.shapes:
        for divergence in arguments.divergences:
            results.append(compare(shape, divergence, arguments.rounds))
            show(results[-1])
    if arguments.json:
        packages = ("torch", "triton", "liger-kernel", "trl")
        record = {
            "command": " ".join(["python", *sys.argv]),
            "device": device_name(),
            "load": os.getloadavg(),
            "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
            "rounds": arguments.rounds,
            "results": results,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
