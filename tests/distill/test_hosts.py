"""A run over two hosts: two network namespaces with a cable between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from draftsmith.distill.exits import Exit
from tests.distill.runs import command, errors, running, succeed, timeless

pytestmark = pytest.mark.slow
ADDRESSES = ["10.77.0.1", "10.77.0.2"]
TORCHRUN = "torch.distributed.run"
STEPS: dict[str, Any] = {"train__max_grad_norm": 1e9, "train__zero_stage": 2}


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces; `cable` is the interface in each of them."""
    names = [f"draftsmith-{os.getpid()}-{number}" for number in range(2)]
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` command")
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("this machine does not let tests make network namespaces")
    ends = [f"ds{os.getpid()}-{number}" for number in range(2)]
    ip("netns", "add", names[1])
    ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    for name, end, address in zip(names, ends, ADDRESSES, strict=True):
        ip("link", "set", end, "netns", name, "name", "cable")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
        ip("-n", name, "link", "set", "cable", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    for name in names:
        ip("netns", "delete", name)


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def on_host(
    number: int, hosts: list[str], trainer: list[str], launcher: str = "draftsmith.distill.launch"
) -> list[str]:
    """The command that a user would type on this host, from the trainer's own."""
    rank = ["--nnodes=2", f"--node-rank={number}"]
    if launcher == TORCHRUN:
        rank += ["--nproc-per-node=1", f"--master-addr={ADDRESSES[0]}", "-m", trainer[2]]
    else:
        rank += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29500", "--"]
    assert trainer[:3] == [sys.executable, "-m", "draftsmith.distill.train"]
    enter = ["ip", "netns", "exec", hosts[number], "env", "GLOO_SOCKET_IFNAME=cable"]
    return [*enter, sys.executable, "-m", launcher, *rank, *trainer[3:]]


def received_bytes(host: str) -> int:
    return int(ip("netns", "exec", host, "cat", "/sys/class/net/cable/statistics/rx_bytes"))


@pytest.mark.parametrize("launcher", ["draftsmith.distill.launch", TORCHRUN])
def test_two_hosts_train_like_one_process(
    tiny_target: Path, tmp_path: Path, hosts: list[str], launcher: str
) -> None:
    trainer = command(tiny_target, tmp_path / "two", **STEPS)
    processes = [
        subprocess.Popen(
            on_host(number, hosts, trainer, launcher), stderr=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == Exit.DONE, stderr[-3000:]
    expected = succeed(tiny_target, tmp_path / "one", **STEPS)
    for ours, theirs in zip(timeless(tmp_path / "two"), expected, strict=True):
        assert ours["kind"] == theirs["kind"]
        if ours["kind"] == "train":
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    gradients = 4 * (366 * 64 + 2 * 35_000)  # bytes of one float32 gradient, a little less
    assert all(received_bytes(host) > 4 * gradients / 2 for host in hosts)


def test_the_loss_of_a_host_ends_the_other(
    tiny_target: Path, tmp_path: Path, hosts: list[str]
) -> None:
    output = tmp_path / "run"
    trainer = command(tiny_target, output, **STEPS, train__steps=5000)
    with ExitStack() as stack:
        other = subprocess.Popen(on_host(1, hosts, trainer), start_new_session=True)
        stack.callback(other.kill)
        first = stack.enter_context(running(on_host(0, hosts, trainer), output, 5))
        for process in [psutil.Process(other.pid), *psutil.Process(other.pid).children(True)]:
            process.kill()
        _, stderr = first.communicate(timeout=120)
    other.wait()
    assert first.returncode == Exit.LOST_PROCESS, stderr[-3000:]
    (error,) = errors(stderr)
    assert "another host was lost" in error
