"""Students that may propose only some tokens: exactly zero elsewhere, unchanged within."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from draftsmith.distill.batch import Example
from draftsmith.distill.evaluate import Acceptance, evaluate, prepare_heldout
from draftsmith.distill.manifest import DRAFT_VOCABULARY_NAME, read_draft_vocabulary
from draftsmith.distill.models import load_model
from draftsmith.distill.sampling import Sampling, generate
from draftsmith.distill.sections import EvaluateSection
from draftsmith.distill.teacher import LiveTeacher
from draftsmith.distill.vocabulary import (
    draft_tokens,
    frequent_tokens,
    head_rows,
    hold_rows,
    restrict_head,
)
from tests.distill.runs import run, succeed

TOKENS = list(range(2, 300, 3))


def test_frequent_tokens_come_first_then_stop_tokens_then_low_ids() -> None:
    texts = [[9, 9, 7], [7, 9, 30]]
    assert frequent_tokens(texts, [2], 3, 50) == [2, 7, 9]
    assert frequent_tokens(reversed(texts), [2], 3, 50) == [2, 7, 9]
    assert frequent_tokens(texts, [2], 7, 50) == [0, 1, 2, 3, 7, 9, 30]
    with pytest.raises(ValueError, match=r"student\.vocabulary is 50"):
        frequent_tokens(texts, [2], 50, 50)


def test_logits_are_the_models_own_or_minus_infinity(tiny_target: Path) -> None:
    model = load_model(tiny_target, torch.float32)
    tokens_BT = torch.arange(12).reshape(2, 6) + 5
    whole = model(tokens_BT).logits
    restrict_head(model, TOKENS)
    kept = torch.tensor(TOKENS)
    assert draft_tokens(model).tolist() == TOKENS  # type: ignore[union-attr]
    assert head_rows(model).shape == (len(TOKENS), model.config.hidden_size)
    restricted = model(tokens_BT).logits
    torch.testing.assert_close(restricted[..., kept], whole[..., kept])
    assert (restricted == -torch.inf).sum() == 12 * (whole.shape[-1] - len(TOKENS))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rollouts_stay_within(tiny_target: Path, temperature: float) -> None:
    model = load_model(tiny_target, torch.float32)
    restrict_head(model, TOKENS)

    def responses() -> list[list[int]]:
        sampling = Sampling(12, temperature=temperature)
        return generate(model, [[5, 6]] * 6, range(6), sampling, stop_tokens=[2], batch_size=6)

    free = responses()
    assert {token for response in free for token in response} <= set(TOKENS)
    with hold_rows(model, torch.float32):
        assert responses() == free
    assert model.get_output_embeddings().held_DH is None


def test_acceptance_of_the_target_itself_is_its_mass_within(tiny_target: Path) -> None:
    """With q = p given that the token is allowed: sum min(p, q) is the allowed mass of p."""
    target = load_model(tiny_target, torch.float32)
    draft = load_model(tiny_target, torch.float32)
    restrict_head(draft, TOKENS)
    example = Example((5, 6, 7), (8, 9, 50, 300, 301, 2), "recorded")
    heldout = prepare_heldout(LiveTeacher(target, 2), [example], 2, 1)
    got = evaluate(draft, heldout, EvaluateSection(temperature=1.0, gamma_max=3))

    tokens_T = torch.tensor(example.prompt + example.response)
    p_TV = target(tokens_T[None]).logits[0, 2:-1].softmax(-1)
    mass_T = p_TV[:, TOKENS].sum(-1)
    assert got.alpha_overlap == pytest.approx(mass_T.mean().item(), rel=1e-5)
    hits = [p_TV[row].argmax().item() in TOKENS for row in range(len(p_TV))]
    assert 0 < sum(hits) < len(hits), "the example must tell the two apart"
    best_T = torch.tensor(TOKENS)[p_TV[:, TOKENS].argmax(-1)]
    assert got.alpha_greedy_draft == pytest.approx(
        p_TV.gather(1, best_T[:, None]).mean().item(), rel=1e-5
    )
    assert got.forward_kl == pytest.approx(0.0, abs=1e-6)


def test_distils_and_exports(tiny_target: Path, tmp_path: Path) -> None:
    records = succeed(tiny_target, tmp_path / "whole", student__vocabulary=100)
    draft = tmp_path / "whole" / "draft"
    tokens = read_draft_vocabulary(draft, 384)
    assert tokens is not None
    assert len(tokens) == 100
    loss = [one["loss"] for one in records if one["kind"] == "train"]
    assert loss[-1] < loss[0]
    evaluation = next(one for one in reversed(records) if one["kind"] == "evaluation")
    assert Acceptance.model_validate(
        {key: evaluation[key] for key in Acceptance.model_fields}
    ).forward_kl < float("inf")


@pytest.mark.parametrize("content", [{"tokens": [3, 2]}, {"tokens": []}, {"tokens": [384]}, {}])
def test_a_damaged_list_is_refused(tmp_path: Path, content: dict[str, list[int]]) -> None:
    (tmp_path / DRAFT_VOCABULARY_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=DRAFT_VOCABULARY_NAME):
        read_draft_vocabulary(tmp_path, 384)


def test_a_vocabulary_as_large_as_the_teachers_is_refused(
    tiny_target: Path, tmp_path: Path
) -> None:
    result = run(tiny_target, tmp_path / "run", student__vocabulary=384)
    assert result.returncode == 2
    assert "student.vocabulary is 384" in result.stderr
