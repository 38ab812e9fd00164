"""Loaded by vLLM inside each of its processes (entry point `vllm.general_plugins`).

Mends three faults of vLLM's CPU backend, and only where a test shows that they are there, so
that each mend retires itself when vLLM is right:

1. `expand_batch_to_tokens`, which gives each draft token its request's temperature, top-k and
   top-p, returns uninitialised memory: sampling with a draft at temperature > 0 follows the
   wrong distribution (vllm-project/vllm issue 55005).
2. A request with `seed` ends the engine as soon as its prompt is prefilled in several steps:
   the runner rolls the request's random generator back by its offset, which CPU generators do
   not have.
3. Probabilistic drafts ignore `seed`, so that the same request gets another answer each time.

Four more things are slow there, and made fast: random draws (`draws.py`), top-p (`nucleus.py`),
norms (`norms.py`), and a draft that reads along where nothing is proposed (`draft_reading.py`).

And one is of manners: engine core and worker wait for each other in a loop of `sched_yield`, which
keeps a whole core busy. With two cores the API server then hardly runs: measured with a tiny
model, the first byte of a stream came after 2 s, with the last. They sleep a moment instead.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from draftsmith.server.engine import draws
from draftsmith.server.engine.command import FAULTS, REPORT_VARIABLE, SHORTCUTS_VARIABLE
from draftsmith.server.engine.draft_reading import let_drafts_rest
from draftsmith.server.engine.lenience import verify_leniently
from draftsmith.server.engine.norms import normalise_in_one_kernel
from draftsmith.server.engine.nucleus import find_nuclei_without_sorting
from draftsmith.server.engine.vocabulary import serve_draft_vocabularies

_log = logging.getLogger("vllm.draftsmith")


def register() -> None:
    """Entry point; vLLM calls it once per process, possibly again.

    A worker loads the plug-ins first and binds the CPU kernels next, and the faulty function
    can run only then: so the mending waits for that moment. Processes that never bind kernels
    (the API server) never sample either.
    """
    from vllm.platforms import current_platform

    serve_draft_vocabularies()
    if not current_platform.is_cpu():
        _report(dict.fromkeys(FAULTS, "not needed") | verify_leniently())
        return
    platform: Any = type(current_platform)
    if "_draftsmith_hooked" in vars(platform):
        return
    bind = platform.register_triton_kernel_overrides
    _wait_gently()

    def bind_then_mend(cls: Any) -> None:
        bind()
        _report(mend() | verify_leniently())
        let_drafts_rest()
        if os.environ.get(SHORTCUTS_VARIABLE) != "off":
            draws.draw_cheaply()
            find_nuclei_without_sorting()
            normalise_in_one_kernel()

    platform.register_triton_kernel_overrides = classmethod(bind_then_mend)
    platform._draftsmith_hooked = True


def mend() -> dict[str, str]:
    """Test and mend every fault; by fault "right" or "mended". vLLM's kernels must be bound.

    Raises:
        RuntimeError: a fault is there and its mend fails the same test: better no engine than
            one that samples from the wrong distribution.
    """
    found = dict(zip(FAULTS, (_mend_expand(), _mend_prefill(), _mend_draft_noise()), strict=True))
    _log.info("draftsmith plug-in: %s", found)
    return found


def _wait_gently() -> None:
    """Sleep for the shortest time that there is, some 50 us, between two looks at the queue.

    It is what vLLM does itself on a Python whose `sched_yield` keeps the interpreter's lock.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    assert callable(shm_broadcast.sched_yield), "vLLM waits in another way now"
    shm_broadcast.sched_yield = lambda: time.sleep(0)


def _report(findings: dict[str, str]) -> None:
    """Tell whoever started the engine, by a file that `process.py` reads."""
    folder = os.environ.get(REPORT_VARIABLE)
    if folder:
        (Path(folder) / f"plugin-{os.getpid()}.json").write_text(json.dumps(findings))


# 1. Values per request -> values per draft token


def expand_is_right(expand: Callable[..., torch.Tensor]) -> bool:
    """Whether `expand` repeats each request's value over its draft tokens.

    Tries float and integer values, unequal and zero counts, with and without replacement.
    """
    ends = torch.tensor([3, 3, 5, 6], dtype=torch.int32)  # running totals: 3, 0, 2, 1 tokens
    owners = torch.tensor([0, 0, 0, 2, 2, 3])
    for values in (torch.tensor([0.5, 1.5, 0.0, 0.25]), torch.tensor([7, 8, 0, 9]).int()):
        for old, new in ((0, 0), (0, 1)):
            want = torch.where(values == old, torch.full_like(values, new), values)[owners]
            got = expand(values.clone(), ends.clone(), 6, replace_from=old, replace_to=new)
            if got.dtype != values.dtype or not torch.equal(got, want):
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


def _mend_expand() -> str:
    from vllm.v1.sample import rejection_sampler

    if expand_is_right(rejection_sampler.expand_batch_to_tokens):
        return "right"
    rejection_sampler.expand_batch_to_tokens = expand_by_repeating
    if not expand_is_right(rejection_sampler.expand_batch_to_tokens):
        raise RuntimeError("draftsmith: the replaced expand_batch_to_tokens fails its self-test")
    return "mended"


# 2. Seeded prompts that are prefilled in several steps


def rewind_works() -> bool:
    """Whether a CPU generator can be rolled back the way vLLM's runner does it."""
    generator = torch.Generator(device="cpu")
    try:
        generator.set_offset(generator.get_offset())
    except RuntimeError:
        return False
    return True


def _mend_prefill() -> str:
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
        with _unfinished_hidden(self):
            return bookkeep(self, *args, **kwargs)

    GPUModelRunner._sample = sample_and_rewind
    GPUModelRunner._bookkeeping_sync = bookkeep_without_rewind
    GPUModelRunner._draftsmith_rewinds = True
    return "mended"


def _unfinished(runner: Any) -> dict[int, torch.Generator]:
    """Batch index -> generator, of the requests whose prompt this step does not finish."""
    batch = runner.input_batch
    mask = runner.discard_request_mask.np[: batch.num_reqs]
    return {index: one for index, one in batch.generators.items() if mask[index]}


@contextmanager
def _unfinished_hidden(runner: Any) -> Iterator[None]:
    generators = runner.input_batch.generators
    hidden = _unfinished(runner)
    for index in hidden:
        del generators[index]
    try:
        yield
    finally:
        generators.update(hidden)


# 3. Seeds for the draft


def draft_noise_is_seeded(propose: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Whether `propose` draws a seeded request's token from that request's generator."""

    def once() -> torch.Tensor:
        generators = {0: torch.Generator(device="cpu").manual_seed(11)}
        batch = SimpleNamespace(
            all_greedy=False, all_random=True, temperature=torch.ones(1), generators=generators
        )
        # Flat over many tokens: two unseeded draws agree once in 65536 times.
        return propose(torch.zeros(1, 1 << 16), batch)[0]

    return torch.equal(once(), once())


def _mend_draft_noise() -> str:
    """Draw the proposals of seeded requests from their generators.

    Not for prompts that the step does not finish: their number depends on the load and on the
    prefix cache, and so would the answer.
    """
    from vllm.v1.spec_decode import llm_base_proposer
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if draft_noise_is_seeded(llm_base_proposer.compute_probs_and_sample_next_token):
        return "right"
    if not draft_noise_is_seeded(draws.propose):
        raise RuntimeError("draftsmith: the seeded draft sampling fails its self-test")
    llm_base_proposer.compute_probs_and_sample_next_token = draws.propose
    propose_batch = GPUModelRunner.propose_draft_token_ids

    def propose_for_finished(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _unfinished_hidden(self):
            return propose_batch(self, *args, **kwargs)

    GPUModelRunner.propose_draft_token_ids = propose_for_finished
    return "mended"
