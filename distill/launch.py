"""Start the processes of a run on this host, and say in one sentence how they ended.

    python -m draftsmith.distill.launch --nproc 2 -- --recipe RECIPE --output FOLDER
    python -m draftsmith.distill.launch --nnodes 2 --node-rank 0 --rdzv-endpoint HOST:PORT -- ...

What follows `--` goes to `draftsmith.distill.train`. The processes are torch's elastic workers, as
under `torchrun`, which also works; this launcher differs in how a run ends. A signal is handed on
once, the workers are given time to save, and the exit code is the one of `exits.py` that the first
process to fail gave.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from types import FrameType

import psutil
import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from draftsmith.distill.exits import Exit

# A step of training, with its rollouts, and a checkpoint must fit in.
_GRACE_S = 600.0
_MEET_S = 600


def launch(
    nproc: int, nnodes: int, node_rank: int, endpoint: str | None, arguments: list[str]
) -> int:
    """Run the trainer with `nproc` processes on this host until all have ended.

    Args:
        node_rank: of this host; number 0 is the one that `endpoint` names.
        endpoint: host:port where the hosts meet; None on a single host.

    Returns:
        The exit code of the run.
    """
    config = LaunchConfig(
        min_nodes=nnodes,
        max_nodes=nnodes,
        nproc_per_node=nproc,
        run_id="draftsmith",
        rdzv_backend="static" if endpoint else "c10d",
        rdzv_endpoint=endpoint or "localhost:0",
        rdzv_configs={"rank": node_rank, "timeout": _MEET_S} if endpoint else {},
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
        signals_to_handle="SIGQUIT",  # the others are handled here
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _hand_on)
    try:
        elastic_launch(config, sys.executable)("-m", "draftsmith.distill.train", *arguments)
    except ChildFailedError as error:
        return _explain(*_cause(error))
    except torch.distributed.DistError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        print(f"error: The hosts did not meet at {endpoint}: {reason}.", file=sys.stderr)
        return Exit.LOST_PROCESS
    return Exit.DONE


def _hand_on(number: int, frame: FrameType | None) -> None:
    workers = psutil.Process().children()
    for worker in workers:
        worker.terminate()
    timer = threading.Timer(_GRACE_S, lambda: [worker.kill() for worker in workers])
    timer.daemon = True
    timer.start()


def _cause(error: ChildFailedError) -> tuple[int, int]:
    """Rank and exit code of the process that failed by itself, rather than after another."""
    order = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    codes = [(rank, failure.exitcode) for rank, failure in order]
    return next((one for one in codes if one[1] != Exit.LOST_PROCESS), codes[0])


def _explain(rank: int, code: int) -> int:
    """The run's exit code; says what the process that failed first could not say itself."""
    if code < 0:
        name = signal.Signals(-code).name
        print(
            f"error: Process {rank} of the run was ended by {name}; the last checkpoint is "
            "intact, --resume goes on from it.",
            file=sys.stderr,
        )
        return Exit.LOST_PROCESS
    if code == Exit.LOST_PROCESS:
        print(
            "error: A process on another host was lost; the last checkpoint is intact, --resume "
            "goes on from it.",
            file=sys.stderr,
        )
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a run's processes on this host.")
    parser.add_argument("--nproc", type=int, default=1, help="processes on this host")
    parser.add_argument("--nnodes", type=int, default=1, help="hosts of the run")
    parser.add_argument("--node-rank", type=int, default=0, help="of this host, from 0")
    parser.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the hosts meet")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the trainer, after --")
    given = parser.parse_args()
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    arguments = given.arguments[1:] if given.arguments[:1] == ["--"] else given.arguments
    endpoint = given.rdzv_endpoint
    sys.exit(launch(given.nproc, given.nnodes, given.node_rank, endpoint, arguments))


if __name__ == "__main__":
    main()
