"""The processes of a run: one, or several joined by gloo (CPU) or nccl (GPU)."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from draftsmith.distill.compiled import build_communication
from draftsmith.distill.models import default_device

_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def start_processes() -> None:
    """Join the process group that the launcher describes, or make one of a single process."""
    import deepspeed  # slow to import, and needed by the training process only

    if "RANK" not in os.environ:
        os.environ |= _ALONE | {"MASTER_PORT": str(_free_port())}
    backend = "nccl" if default_device().type == "cuda" else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        build_communication()
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
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def sum_over_processes(value: Tensor) -> Tensor:
    """All-reduce in place and return."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, on every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
