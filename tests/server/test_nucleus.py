"""top-p without a sort keeps what top-p with a sort keeps.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from draftsmith.server.engine.nucleus import keep_top

# Inside a process of its own: vLLM changes much of the one that imports it.
PROBE = """
import json, torch
from vllm.v1.sample.ops import topk_topp_sampler as vllm
from draftsmith.server.engine import nucleus

stock = vllm.apply_top_k_top_p_pytorch
nucleus.find_nuclei_without_sorting()
torch.manual_seed(0)
different = []
# From nuclei of nearly all tokens to nuclei of one.
for spread in (0.1, 2, 5, 9):
    for k, p in ((None, 0.9), (None, 0.3), (50, 0.95), (5000, 0.8), (50, None), (30_000, 0.5)):
        logits = spread * torch.randn(4, 30_000)
        ks = None if k is None else torch.tensor([k, k, k, 7])
        ps = None if p is None else torch.tensor([p, p, 1.0, p])
        copies = [None if ks is None else ks.clone() for _ in range(2)]  # vLLM's changes them
        want = stock(logits.clone(), copies[0], ps, True)
        got = vllm.apply_top_k_top_p(logits.clone(), copies[1], ps)
        if ps is not None:
            want[2] = logits[2] if ks is None else want[2]  # p = 1 keeps what underflows, too
        if not torch.equal(got, want):
            different.append([spread, k, p, (got != want).sum().item()])
print(json.dumps(different))
"""


def test_vllm_keeps_the_same_tokens() -> None:
    """Its own function and what the plug-in puts there, with top-k, without, and mixed rows."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def by_sorting(logits_V: torch.Tensor, p: float) -> set[int]:
    prob_V, token_V = logits_V.double().softmax(-1).sort(descending=True)
    before_V = prob_V.cumsum(0) - prob_V
    return set(token_V[before_V < p].tolist())


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.9999])
def test_the_nucleus_is_as_many_tokens_as_it_takes(p: float) -> None:
    torch.manual_seed(3)
    logits_NV = 4 * torch.randn(5, 3000)
    given_NV = logits_NV.clone()
    assert not len(keep_top(logits_NV, None, torch.full((5,), p)))
    for row, given in zip(logits_NV, given_NV, strict=True):
        kept = row.isfinite()
        different = set(kept.nonzero()[:, 0].tolist()) ^ by_sorting(given, p)
        # p is a float32: tokens of less than its rounding may fall on either side.
        assert given.double().softmax(-1)[list(different)].sum() < 1e-7
        assert torch.equal(row[kept], given[kept])


def test_rows_with_too_large_a_nucleus_are_told_and_left_alone() -> None:
    logits_NV = torch.zeros(3, 5000)  # flat: the nucleus of 0.9 has 4500 tokens
    logits_NV[1, 7] = 50
    given_NV = logits_NV.clone()
    assert keep_top(logits_NV, None, torch.full((3,), 0.9)).tolist() == [0, 2]
    assert torch.equal(logits_NV[[0, 2]], given_NV[[0, 2]])
    assert logits_NV[1].isfinite().nonzero().tolist() == [[7]]


def test_equal_logits_do_not_make_it_larger() -> None:
    """bfloat16 rounds many logits to the same number."""
    logits_NV = torch.zeros(1, 100)
    keep_top(logits_NV, None, torch.tensor([0.255]))
    assert int(logits_NV.isfinite().sum()) == 26


def test_no_limit_changes_nothing() -> None:
    logits_NV = torch.randn(2, 400)
    given_NV = logits_NV.clone()
    assert not len(keep_top(logits_NV, torch.tensor([400, 400]), torch.ones(2)))
    assert torch.equal(logits_NV, given_NV)


def test_top_k_keeps_the_equals_of_the_last() -> None:
    logits_NV = torch.full((2, 300), -1.0)
    logits_NV[:, :6] = torch.tensor([[5.0, 3, 3, 1, 3, 0], [5, 4, 3, 2, 1, 0]])
    keep_top(logits_NV, torch.tensor([2, 2]), None)
    kept = [row.isfinite().nonzero()[:, 0].tolist() for row in logits_NV]
    assert kept == [[0, 1, 2, 4], [0, 1]]


def test_more_equals_than_are_looked_at_are_told() -> None:
    logits_NV = torch.zeros(1, 5000)
    given_NV = logits_NV.clone()
    assert keep_top(logits_NV, torch.tensor([3]), None).tolist() == [0]
    assert torch.equal(logits_NV, given_NV)


def test_top_p_counts_what_top_k_left() -> None:
    """Of four equal tokens two are half, though they are little of the vocabulary."""
    logits_NV = torch.zeros(1, 400)
    logits_NV[0, :4] = 1
    keep_top(logits_NV, torch.tensor([4]), torch.tensor([0.5]))
    assert int(logits_NV.isfinite().sum()) == 2


def test_what_a_grammar_forbids_is_not_looked_for() -> None:
    """Fewer tokens are possible than top-k would leave."""
    logits_NV = torch.full((2, 5000), -torch.inf)
    logits_NV[:, [7, 4000]] = torch.tensor([2.0, 1.0])
    assert not len(keep_top(logits_NV, torch.tensor([50, 5000]), torch.tensor([1.0, 0.6])))
    kept = [row.isfinite().nonzero()[:, 0].tolist() for row in logits_NV]
    assert kept == [[7, 4000], [7]]
