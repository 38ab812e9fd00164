"""The plug-in's self-tests must find vLLM's faults, and pass what is right."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from draftsmith.server.engine.command import FAULTS
from draftsmith.server.engine.plugin import (
    draft_noise_is_seeded,
    expand_by_repeating,
    expand_is_right,
)
from tests.server.conftest import Fleet

# Inside a process of its own: vLLM changes much of the one that imports it.
PROBE = """
import json
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler
from vllm.v1.spec_decode import llm_base_proposer
from draftsmith.server.engine import plugin

current_platform.register_triton_kernel_overrides()
stock = rejection_sampler.expand_batch_to_tokens, \
        llm_base_proposer.compute_probs_and_sample_next_token
def verdicts():
    return [plugin.expand_is_right(rejection_sampler.expand_batch_to_tokens),
            plugin.draft_noise_is_seeded(llm_base_proposer.compute_probs_and_sample_next_token)]
before, report, after, again = verdicts(), plugin.mend(), verdicts(), plugin.mend()
print(json.dumps([before, report, after, again]))
"""


def test_stock_faults_are_found_and_mended() -> None:
    """With vLLM's own functions. Fails, rightly, when a new vLLM has mended itself."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=True
    )
    before, report, after, again = json.loads(done.stdout.splitlines()[-1])
    assert before == [False, False]
    assert report == dict.fromkeys(FAULTS, "mended")
    assert after == [True, True]
    assert again["expand_batch_to_tokens"] == again["seeded_drafts"] == "right"  # left alone


def test_every_engine_was_mended(fleet: Fleet) -> None:
    """The start of an engine whose plug-in did not report is refused; here is what it said."""
    assert fleet.plain.plugin_report() == dict.fromkeys(FAULTS, "mended")


def test_right_function_passes() -> None:
    assert expand_is_right(expand_by_repeating)


def uninitialised(x: torch.Tensor, ends: torch.Tensor, count: int, **replace: int) -> torch.Tensor:
    return x.new_full((count,), 3)


def no_replacement(x: torch.Tensor, ends: torch.Tensor, count: int, **replace: int) -> torch.Tensor:
    return expand_by_repeating(x, ends, count)


def wrong_owner(x: torch.Tensor, ends: torch.Tensor, count: int, **replace: int) -> torch.Tensor:
    return expand_by_repeating(x.flip(0), ends, count, **replace)


@pytest.mark.parametrize("faulty", [uninitialised, no_replacement, wrong_owner])
def test_faulty_function_is_caught(faulty) -> None:  # type: ignore[no-untyped-def]
    assert not expand_is_right(faulty)


def test_unseeded_draft_is_caught() -> None:
    def unseeded(logits: torch.Tensor, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        probs = logits.softmax(-1)
        return torch.multinomial(probs, 1).view(-1), probs

    assert not draft_noise_is_seeded(unseeded)
