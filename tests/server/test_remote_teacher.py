"""A teacher behind vLLM's HTTP API, against the same model in process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from draftsmith.distill.answers import Answering, EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.models import load_model, load_tokenizer
from draftsmith.distill.sampling import Sampling
from draftsmith.distill.sections.teacher import RemoteSection
from draftsmith.distill.teacher import LiveTeacher, RemoteTeacher
from tests.distill.runs import succeed
from tests.server.conftest import Fleet, Models

EXAMPLES = [
    Example((5, 6, 7), (8, 9, 50, 300, 301, 2), "recorded"),
    Example((1, 40), (41, 2), "student"),
    Example(tuple(range(3, 203)), (17, 18, 19), "recorded"),  # prefilled in two steps
]
TOLERANCE = 5e-5
"""Of float32 log-probabilities whose logits are some tens apart, by two sets of kernels."""


def section(fleet: Fleet, **fields: Any) -> RemoteSection:
    return RemoteSection(url=f"unix://{fleet.plain.socket}", **({"top_logprobs": 8} | fields))


def remote(fleet: Fleet, models: Models, **fields: Any) -> RemoteTeacher:
    tokenizer = load_tokenizer(models.target)
    return RemoteTeacher(section(fleet, **fields), tokenizer, len(tokenizer), torch.device("cpu"))


@pytest.fixture(scope="module")
def live(models: Models) -> LiveTeacher:
    return LiveTeacher(load_model(models.target, torch.float32), 2)


def test_the_signal_is_that_of_the_same_model_in_process(
    fleet: Fleet, models: Models, live: LiveTeacher
) -> None:
    """Log-probability t conditions on what stands before t, and the text's own token is there."""
    best = int(live.signal([Example((1, 40), (0,), "student")]).logits_NV(slice(None)).argmax())
    examples = [*EXAMPLES, Example((1, 40), (best, 2), "student")]
    got = remote(fleet, models).signal(examples)
    exact_NV = live.signal(examples).logits_NV(slice(None)).log_softmax(-1)
    token_N = torch.tensor([token for one in examples for token in one.response])
    stored_NK = ~got.log_p_NK.isneginf()
    assert got.ids_NK.shape == (len(token_N), 9)
    assert set(stored_NK.sum(-1).tolist()) == {8, 9}, "the own token is, and is not, among the 8"
    difference_NK = (got.log_p_NK - exact_NV.gather(-1, got.ids_NK))[stored_NK]
    assert difference_NK.abs().max() < TOLERANCE
    assert ((got.ids_NK == token_N[:, None]) & stored_NK).any(-1).all()
    eighth_N1 = exact_NV.topk(8).values[:, -1:]
    likely_NV = exact_NV > eighth_N1 + TOLERANCE
    kept_NV = torch.zeros_like(likely_NV).scatter_(-1, got.ids_NK, stored_NK)
    assert not (likely_NV & ~kept_NV).any()
    assert got.log_tail_N is not None
    kept_N = exact_NV.masked_fill(~kept_NV, -torch.inf).exp().sum(-1)
    torch.testing.assert_close(got.log_tail_N.exp(), 1 - kept_N, rtol=0, atol=TOLERANCE)


def test_the_whole_vocabulary_and_kept_signals(
    fleet: Fleet, models: Models, live: LiveTeacher
) -> None:
    teacher = remote(fleet, models, top_logprobs=len(load_tokenizer(models.target)))
    assert not teacher.keep_signals(EXAMPLES, budget_bytes=100)
    assert teacher.keep_signals(EXAMPLES, budget_bytes=1e6)
    got = teacher.signal(EXAMPLES[:2])
    expected = live.signal(EXAMPLES[:2]).logits_NV(slice(None)).log_softmax(-1)
    assert got.log_tail_N is None
    torch.testing.assert_close(
        got.logits_NV(slice(None)).log_softmax(-1), expected, rtol=0, atol=TOLERANCE
    )


def test_greedy_answers_are_the_same_and_sampled_ones_repeat(
    fleet: Fleet, models: Models, live: LiveTeacher, tmp_path: Path
) -> None:
    prompts = [EncodedPrompt(str(start), (start, 5, 6)) for start in range(3, 9)]
    samplings = [Sampling(12, temperature=0.0), Sampling(12, temperature=1.0)]
    how = Answering(seed=0, stop_tokens=[2], batch_size=4)
    teacher = remote(fleet, models)
    theirs = teacher.answers(tmp_path / "a.jsonl", prompts, samplings, how, "remote")
    again = teacher.answers(tmp_path / "b.jsonl", prompts, samplings, how, "again")
    ours = live.answers(tmp_path / "c.jsonl", prompts, samplings, how, "live")
    assert [one[0] for one in theirs] == [one[0] for one in ours]
    assert theirs == again
    assert all(len(one[1].tokens) == 12 or one[1].tokens[-1] == 2 for one in theirs)


def test_a_run_with_a_remote_teacher_moves_like_the_live_one(
    fleet: Fleet, models: Models, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "student__init": "random",
        "train__steps": 6,
        "train__eval_every": 6,
        "rollout__student_fraction": 0.5,
    }
    ours = succeed(models.target, tmp_path / "live", **settings)
    url = f"unix://{fleet.plain.socket}"
    by_server: dict[str, Any] = {"teacher__remote__url": url, "teacher__remote__top_logprobs": 300}
    theirs = succeed(models.target, tmp_path / "remote", **settings, **by_server)
    assert 0 < sum(one["student_share"] for one in theirs if one["kind"] == "train") < 6
    for one, other in zip(ours, theirs, strict=True):
        for name in {"loss", "forward_kl", "alpha_overlap"} & set(one):
            assert other[name] == pytest.approx(one[name], rel=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "gpt-x"}, "serves target, not 'gpt-x'"),
        ({"top_logprobs": 100_000}, "but the teacher has"),
        ({"url": "http://127.0.0.1:9", "attempts": 1}, "did not answer in 1 attempts"),
        ({"api_key_env": "DRAFTSMITH_NO_SUCH_KEY"}, "DRAFTSMITH_NO_SUCH_KEY is not set"),
    ],
)
def test_a_server_that_cannot_teach_is_refused(
    fleet: Fleet, models: Models, fields: dict[str, Any], message: str
) -> None:
    given = section(fleet).model_dump() | fields
    tokenizer = load_tokenizer(models.target)
    with pytest.raises(ValueError, match=message) as error:
        RemoteTeacher(RemoteSection(**given), tokenizer, len(tokenizer), torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_too_many_log_probabilities_are_refused_in_the_servers_words(
    fleet: Fleet, models: Models
) -> None:
    tokenizer = load_tokenizer(models.target)
    with pytest.raises(ValueError, match=r"says: .*500.*400") as error:
        RemoteTeacher(section(fleet, top_logprobs=500), tokenizer, 1000, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_another_tokenizer_is_refused(fleet: Fleet) -> None:
    from tests.tiny import make_tokenizer

    tokenizer = make_tokenizer(280)
    with pytest.raises(ValueError, match=r"another tokenizer than teacher\.model"):
        RemoteTeacher(section(fleet), tokenizer, len(tokenizer), torch.device("cpu"))
