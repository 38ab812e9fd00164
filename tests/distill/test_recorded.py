"""Answers that one run takes over from another, and prompts that change under a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distill.runs import errors, run, succeed

ANSWERS = ("answers-train.jsonl", "answers-heldout.jsonl")


@pytest.fixture(scope="module")
def answered(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose answers no teacher would give again: each ends after two tokens."""
    folder = tmp_path_factory.mktemp("answered") / "run"
    succeed(tiny_target, folder, train__steps=1)
    path = folder / ANSWERS[0]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    cut = [json.dumps(row | {"tokens": row["tokens"][:2]}) + "\n" for row in rows]
    path.write_text("".join(cut))
    return folder


def test_answers_are_taken_over(tiny_target: Path, answered: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    settings: dict[str, Any] = {"rollout__student_fraction": 0.0, "train__steps": 2}
    records = succeed(tiny_target, taken, data__answers=str(answered), **settings)
    for name in ANSWERS:
        assert (taken / name).read_bytes() == (answered / name).read_bytes()
    steps = [one for one in records if one["kind"] == "train"]
    assert [one["tokens"] for one in steps] == [2 * 8] * 2, "it trains on them"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data__limit": 11}, "another set of prompts"),
        ({"seed": 1}, "another seed"),
        ({"rollout__max_new_tokens": 11}, "another sampling"),
        ({"teacher__dtype": "bfloat16"}, "another teacher"),
        ({"data__answers": "nowhere"}, "nowhere is no run with the answers"),
    ],
)
def test_answers_to_something_else_are_refused(
    tiny_target: Path, answered: Path, tmp_path: Path, settings: dict[str, Any], expected: str
) -> None:
    fields = {"data__answers": str(answered)} | settings
    result = run(tiny_target, tmp_path / "run", **fields)
    assert result.returncode != 0
    (error,) = errors(result.stderr)
    assert expected in error
    assert "the teacher answers again" in error


def test_a_run_goes_on_with_its_own_prompts_only(tiny_target: Path, tmp_path: Path) -> None:
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "run"
    rows = [{"id": str(number), "prompt": f"Question {number}"} for number in range(12)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    succeed(tiny_target, folder, data__train=str(prompts), train__steps=1)
    rows[3]["prompt"] = "Another question"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(tiny_target, folder, resume=True, data__train=str(prompts), train__steps=1)
    assert result.returncode != 0
    (error,) = errors(result.stderr)
    assert "begun with other prompts" in error
