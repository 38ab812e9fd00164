"""The processes of a run: one, or several joined by gloo (CPU) or nccl (GPU)."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from draftsmith.distill.models import default_device

_SHARED_MEMORY_OP = "deepspeed_shm_comm"
_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def start_processes() -> None:
    """Join the process group that the launcher describes, or make one of a single process."""
    import deepspeed  # slow to import, and needed by the training process only

    if "RANK" not in os.environ:
        os.environ |= _ALONE | {"MASTER_PORT": str(_free_port())}
    backend = "nccl" if default_device().type == "cuda" else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Else each run on a CPU compiles it, behind a lock file that outlives a killed process and then
    # stops every later run. Only DeepSpeed's own inference would use it.
    deepspeed.ops.__compatible_ops__[_SHARED_MEMORY_OP] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def stop_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def sum_over_processes(value: Tensor) -> Tensor:
    """All-reduce in place and return."""
    return _reduce(value, dist.ReduceOp.SUM)


def _reduce(value: Tensor, operation: Any) -> Tensor:
    if world_size() > 1:
        there = value.to(default_device())  # nccl knows no tensor of the CPU
        dist.all_reduce(there, operation)
        value.copy_(there)
    return value


def any_process(value: bool) -> bool:
    """Whether `value` is true on any process."""
    return bool(sum_over_processes(torch.tensor(float(value), dtype=torch.float64)))


def max_over_processes(value: int) -> int:
    """The largest `value` of any process."""
    return int(_reduce(torch.tensor(value), dist.ReduceOp.MAX))


def lost_process(error: RuntimeError) -> bool:
    """Whether `error` says that another process of the run is gone, or does not answer."""
    # gloo raises plain RuntimeErrors, which name its source files.
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, on every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
