"""Loaded by vLLM inside each of its processes (entry point `vllm.general_plugins`).

Mends two faults of vLLM's CPU backend, and only where a test shows that they are there, so
that each mend retires itself when vLLM is right:

1. `expand_batch_to_tokens`, which gives each draft token its request's temperature, top-k and
   top-p, returns uninitialised memory on the CPU: sampling with a draft at temperature > 0
   follows the wrong distribution (vllm-project/vllm issue 55005).
2. A request with `seed` ends the engine as soon as its prompt is prefilled in several steps:
   the runner rolls the request's random generator back by its offset, which CPU generators do
   not have.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from draftsmith.server.engine.command import REPORT_VARIABLE

Expand = Callable[..., torch.Tensor]
_log = logging.getLogger("vllm.draftsmith")


def register() -> None:
    """Entry point; vLLM calls it once per process, possibly again.

    Raises:
        RuntimeError: a fault is there and its mend does not pass the same test: better no
            engine than one that samples from the wrong distribution.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        _report({"expand_batch_to_tokens": "not needed", "seeded_prefill": "not needed"})
        return
    _after_kernels_are_registered(type(current_platform))
    _report({"seeded_prefill": _mend_seeded_prefill()})


def _after_kernels_are_registered(platform: Any) -> None:
    """Test and mend `expand_batch_to_tokens` once it can run.

    A worker loads the plug-ins first and binds the CPU kernels next; before that, the function
    raises. Processes that never bind kernels (the API server) never sample either.
    """
    if "_draftsmith_hooked" in vars(platform):
        return
    bind = platform.register_triton_kernel_overrides

    def bind_then_mend(cls: Any) -> None:
        bind()
        _report({"expand_batch_to_tokens": _mend_expand()})

    platform.register_triton_kernel_overrides = classmethod(bind_then_mend)
    platform._draftsmith_hooked = True


def _report(findings: dict[str, str]) -> None:
    """Tell the log and, by a file that `process.py` reads, whoever started the engine."""
    _log.info("draftsmith plug-in: %s", findings)
    folder = os.environ.get(REPORT_VARIABLE)
    if folder:
        path = Path(folder) / f"plugin-{os.getpid()}-{'-'.join(findings)}.json"
        path.write_text(json.dumps(findings))


def expand_is_right(expand: Expand) -> bool:
    """Whether `expand` repeats each request's value over its draft tokens.

    Tries float and integer values, unequal and zero counts, with and without replacement, on
    memory that was filled before: a function that leaves its output as allocated is caught.
    """
    counts = torch.tensor([3, 0, 2, 1], dtype=torch.int32)
    ends = counts.cumsum(0, dtype=torch.int32)
    total = int(ends[-1])
    for values in (torch.tensor([0.5, 1.5, 0.0, 0.25]), torch.tensor([7, 8, 0, 9]).int()):
        for old, new in ((0, 0), (0, 1)):
            want = torch.where(values == old, torch.full_like(values, new), values)
            torch.full((total,), 12345, dtype=values.dtype)  # freed at once; new_empty reuses it
            got = expand(values.clone(), ends.clone(), total, replace_from=old, replace_to=new)
            if got.dtype != values.dtype or not torch.equal(got, want[_owners(ends)]):
                return False
    return True


def expand_by_repeating(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Values [batch] and running totals of draft tokens [batch] -> values [num_tokens]."""
    if replace_from != replace_to:
        x = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return torch.repeat_interleave(x, counts, output_size=num_tokens)


def _owners(ends: torch.Tensor) -> torch.Tensor:
    """Index of the request that each token belongs to, found the slow and plain way."""
    owners = [int((ends <= token).sum()) for token in range(int(ends[-1]))]
    return torch.tensor(owners)


def _mend_expand() -> str:
    from vllm.v1.sample import rejection_sampler

    if expand_is_right(rejection_sampler.expand_batch_to_tokens):
        return "right"
    rejection_sampler.expand_batch_to_tokens = expand_by_repeating
    if not expand_is_right(rejection_sampler.expand_batch_to_tokens):
        raise RuntimeError("draftsmith: the replaced expand_batch_to_tokens fails its self-test")
    return "mended"


def rewind_works() -> bool:
    """Whether a CPU generator can be rolled back the way vLLM's runner does it."""
    generator = torch.Generator(device="cpu")
    try:
        generator.set_offset(generator.get_offset())
    except RuntimeError:
        return False
    return True


def _mend_seeded_prefill() -> str:
    """Roll the generators of unfinished prompts back by saved state instead of by offset.

    In a step that ends inside a request's prompt the runner samples a token, drops it, and
    must leave the request's generator as if it had not drawn. `_sample` knows which requests
    those are: keep their generators' states and put them back; then hide these generators
    from `_bookkeeping_sync`, whose only use of them is the failing roll-back.
    """
    if rewind_works():
        return "right"
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if getattr(GPUModelRunner, "_draftsmith_rewinds", False):
        return "mended"
    sample, bookkeep = GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync

    def sample_and_rewind(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept = [(one, one.get_state()) for one in _unfinished(self).values()]
        output = sample(self, *args, **kwargs)
        for generator, state in kept:
            generator.set_state(state)
        return output

    def bookkeep_without_rewind(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        hidden = _unfinished(self)
        for index in hidden:
            del generators[index]
        try:
            return bookkeep(self, *args, **kwargs)
        finally:
            generators.update(hidden)

    GPUModelRunner._sample = sample_and_rewind
    GPUModelRunner._bookkeeping_sync = bookkeep_without_rewind
    GPUModelRunner._draftsmith_rewinds = True
    return "mended"


def _unfinished(runner: Any) -> dict[int, torch.Generator]:
    """Batch index -> generator, of the requests whose prompt this step does not finish."""
    batch = runner.input_batch
    mask = runner.discard_request_mask.np[: batch.num_reqs]
    return {index: one for index, one in batch.generators.items() if mask[index]}
