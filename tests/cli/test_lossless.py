"""The test of losslessness must be able to fail: on sampled and on greedy answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draftsmith.cli.lossless import Bar, compare, tie_of
from draftsmith.cli.main import app
from draftsmith.distill.models import load_model, torch_dtype
from draftsmith.server.engine import command
from tests.cli.commands import draftsmith

BAR = Bar(tie=1e-3, significance=0.001, samples=100, tokens=3)
PROMPTS = [[1, 80, 81, 82], [5, 6]]
OWN = [[7, 8, 9, 2], [10, 11, 2]]


def sampled(rng: random.Random, bias: float) -> list[list[list[int]]]:
    def token() -> int:
        return 0 if rng.random() < bias else rng.randrange(20)

    return [[[token() for _ in range(3)] for _ in range(100)] for _ in PROMPTS]


def test_equal_engines_pass(tiny_target: Path) -> None:
    rng = random.Random(0)
    found = compare(tiny_target, PROMPTS, (OWN, OWN), (sampled(rng, 0), sampled(rng, 0)), BAR)
    assert found.passes
    assert found.same_answers == 1.0
    assert found.samples == 200


def test_a_biased_sampler_fails(tiny_target: Path) -> None:
    rng = random.Random(0)
    found = compare(tiny_target, PROMPTS, (OWN, OWN), (sampled(rng, 0), sampled(rng, 0.2)), BAR)
    assert found.greedy_passes
    assert not found.sampled_passes
    assert not found.passes


def test_another_greedy_answer_fails_unless_it_broke_a_tie(tiny_target: Path) -> None:
    rng = random.Random(0)
    draws = (sampled(rng, 0), sampled(rng, 0))
    other = [OWN[0], [10, 300, 2]]
    found = compare(tiny_target, PROMPTS, (OWN, other), draws, BAR)
    assert found.same_answers == 0.5
    (gap,) = found.gaps_at_first_difference
    assert gap > 1e-3
    assert not found.greedy_passes
    wide = Bar(tie=2 * gap, significance=0.001, samples=100, tokens=3)
    assert compare(tiny_target, PROMPTS, (OWN, other), draws, wide).passes
    # A shorter answer has no other token that could have been as likely.
    shorter = [OWN[0], [10, 11]]
    assert not compare(tiny_target, PROMPTS, (OWN, shorter), draws, wide).greedy_passes


def test_rounding_depends_on_the_dtype_that_is_served(
    tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "multiplies_bfloat16", lambda: True)
    assert tie_of(tiny_target) == 1e-3
    model = load_model(tiny_target, torch_dtype("bfloat16"))
    model.save_pretrained(tmp_path)
    assert tie_of(tmp_path) == 0.5
    monkeypatch.setattr(command, "uses_cpu_wheel", lambda: True)
    monkeypatch.setattr(command, "multiplies_bfloat16", lambda: False)
    assert tie_of(tmp_path) == 1e-3


def test_wrong_options_are_one_sentence(tmp_path: Path, tiny_target: Path) -> None:
    pair = ["--target", str(tiny_target), "--draft", str(tiny_target)]
    models = ["--teacher", str(tiny_target), "--student", str(tiny_target)]
    for arguments, complaint in (
        ([*pair, "--teacher", "x"], "--target and --draft, or --teacher and --student"),
        (["--target", "x"], "--target and --draft, or --teacher and --student"),
        ([*models, "--lossless"], "--lossless is for drafts"),
        ([*pair, "--lm-eval", "gsm8k"], "are for students"),
        ([*pair, "--baseline", "initial"], "give --draft as RUN/draft"),
    ):
        result = CliRunner().invoke(
            app, ["evaluate", *arguments], env={"DRAFTSMITH_HOME": str(tmp_path)}
        )
        assert isinstance(result.exception, ValueError)  # `main` prints it and ends with a code
        assert complaint in str(result.exception)


@pytest.mark.slow
def test_a_draft_is_lossless_in_vllm(tmp_path: Path, tiny_target: Path) -> None:
    figures = tmp_path / "lossless.json"
    done = draftsmith(
        tmp_path, "evaluate", "--target", tiny_target, "--draft", tiny_target, "--lossless",
        "--limit", "3", "--samples", "128", "--baseline", "ngram", "--json", figures,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(figures.read_text())["drafts"]
    assert set(found) == {"tiny-target", "ngram"}
    assert all(one["same_answers"] == 1.0 for one in found.values())
    # The same answers, but none of them may pass a p-value above every one.
    refused = draftsmith(
        tmp_path, "evaluate", "--target", tiny_target, "--draft", tiny_target, "--lossless",
        "--limit", "2", "--significance", "1",
    )  # fmt: skip
    assert refused.returncode == 1
    assert "CHANGES the target's sampled answers" in refused.stdout
