"""The run as a whole: what it optimises must not depend on how it is split or interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from draftsmith.distill.exits import Exit
from draftsmith.distill.models import load_tokenizer
from tests.distill.runs import errors, kill_in_the_middle, run, succeed, timeless

UNCLIPPED: dict[str, Any] = {"train__max_grad_norm": 1e9, "train__zero_stage": 0}


@pytest.fixture(scope="module")
def reference(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on one process with half of the responses on-policy."""
    output = tmp_path_factory.mktemp("runs") / "reference"
    succeed(tiny_target, output, **UNCLIPPED)
    return output


def train_records(output: Path) -> list[dict[str, Any]]:
    return [record for record in timeless(output) if record["kind"] == "train"]


def first_gradients(output: Path) -> list[torch.Tensor]:
    """The gradients of the first step: Adam's first moment after it is (1 - beta1) g."""
    path = output / "checkpoints" / "step-00000001" / "state" / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=False)["optimizer"]["state"]
    return [state[index]["exp_avg"] / (1 - 0.9) for index in sorted(state)]


# 60 tokens hold two or three of the tiny sequences; two processes need different numbers of
# micro-batches for that.
SPLITS: dict[str, tuple[int, dict[str, Any]]] = {
    "micro-1": (1, {"train__micro_batch_size": 1}),
    "micro-2": (1, {"train__micro_batch_size": 2}),
    "tokens": (1, {"train__micro_batch_tokens": 60}),
    "two-processes": (2, {"train__micro_batch_size": 4}),
    "two-processes-tokens": (2, {"train__micro_batch_tokens": 60}),
}


@pytest.mark.parametrize("split", list(SPLITS))
def test_loss_and_gradients_do_not_depend_on_the_split(
    tiny_target: Path, tmp_path: Path, whole_step: Path, split: str
) -> None:
    nproc, fields = SPLITS[split]
    settings = UNCLIPPED | {"train__steps": 1} | fields
    (record,) = [
        one
        for one in succeed(tiny_target, tmp_path / "run", nproc, **settings)
        if one["kind"] == "train"
    ]
    (expected,) = train_records(whole_step)
    assert record["tokens"] == expected["tokens"]
    assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    pairs = zip(first_gradients(tmp_path / "run"), first_gradients(whole_step), strict=True)
    for ours, theirs in pairs:
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.fixture(scope="module")
def whole_step(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step whose batch is a single micro-batch."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    succeed(tiny_target, output, **UNCLIPPED, train__steps=1, train__micro_batch_size=8)
    assert train_records(output)[0]["student_share"] not in (0, 1), "both sources must be covered"
    return output


# Micro-batches bounded by tokens differ in number between the processes, where ZeRO 2 and 3
# would wait for each other forever.
TOKENS: dict[str, Any] = {"train__micro_batch_tokens": 60}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("nproc", "fields"),
    [
        pytest.param(2, {"train__zero_stage": 1}, id="zero-1"),
        pytest.param(2, {"train__zero_stage": 2} | TOKENS, id="zero-2", marks=SLOW),
        pytest.param(2, {"train__zero_stage": 3} | TOKENS, id="zero-3"),
        pytest.param(2, {"train__zero_stage": 2, "train__offload": "cpu"} | TOKENS,
                     id="zero-2-offload", marks=SLOW),
        pytest.param(2, {"train__zero_stage": 3, "train__offload": "cpu"} | TOKENS,
                     id="zero-3-offload", marks=SLOW),
        pytest.param(1, {"train__gradient_checkpointing": True}, id="checkpointing"),
        pytest.param(2, {"train__zero_stage": 3, "train__gradient_checkpointing": True},
                     id="zero-3-checkpointing", marks=SLOW),
        pytest.param(1, {"train__compile": True}, id="compile", marks=SLOW),
    ],
)  # fmt: skip
def test_every_way_to_hold_the_student_trains_alike(
    tiny_target: Path, tmp_path: Path, reference: Path, nproc: int, fields: dict[str, Any]
) -> None:
    succeed(tiny_target, tmp_path / "run", nproc, **UNCLIPPED | fields)
    pairs = list(zip(train_records(tmp_path / "run"), train_records(reference), strict=True))
    assert len(pairs) == 4
    for ours, theirs in pairs:
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


SIXTY_STEPS: dict[str, Any] = {
    "train__steps": 60,
    "train__save_every": 7,
    "train__eval_every": 20,
}


@pytest.fixture(scope="module")
def sixty_steps(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "sixty"
    succeed(tiny_target, output, **SIXTY_STEPS)
    return output


def test_training_lowers_the_loss_and_raises_the_overlap(sixty_steps: Path) -> None:
    evaluations = [one for one in timeless(sixty_steps) if one["kind"] == "evaluation"]
    assert evaluations[-1]["forward_kl"] < evaluations[0]["forward_kl"]
    assert evaluations[-1]["alpha_overlap"] > evaluations[0]["alpha_overlap"]
    assert (sixty_steps / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_killed_anywhere_goes_on_bit_by_bit(
    tiny_target: Path, tmp_path: Path, sixty_steps: Path
) -> None:
    killed = tmp_path / "killed"
    for kill_after, resume in ((10, False), (35, True)):
        kill_in_the_middle(tiny_target, killed, kill_after, resume, SIXTY_STEPS)
    partial = killed / "checkpoints" / "step-00000999.partial"
    partial.mkdir()  # what a kill while saving leaves behind
    resumed = succeed(tiny_target, killed, resume=True, **SIXTY_STEPS)

    assert resumed == timeless(sixty_steps)
    weights = "draft/model.safetensors"
    assert (killed / weights).read_bytes() == (sixty_steps / weights).read_bytes()


def test_given_responses_are_trained_on_only_when_asked_for(
    tiny_target: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Say a word.", "response": "draft"}\n')
    tokenizer = load_tokenizer(tiny_target)
    given = [*tokenizer("draft", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    data: dict[str, Any] = {"data__train": str(prompts), "data__heldout": str(prompts)}
    for responses in ("given", "teacher"):
        output = tmp_path / responses
        succeed(tiny_target, output, **data, data__responses=responses, train__steps=1)
        train, heldout = (
            json.loads((output / f"answers-{name}.jsonl").read_text())["tokens"]
            for name in ("train", "heldout")
        )
        assert (train == given) == (responses == "given")
        assert heldout != given, "acceptance is defined on the target's own text"


def test_a_damaged_checkpoint_is_passed_over(
    tiny_target: Path, tmp_path: Path, reference: Path
) -> None:
    output = tmp_path / "run"
    settings = UNCLIPPED | {"train__save_every": 2}
    expected = succeed(tiny_target, output, **settings)
    for damaged in ("state/mp_rank_00_model_states.pt", "COMPLETE.json"):
        newest = output / "checkpoints" / "step-00000004" / damaged
        newest.write_bytes(newest.read_bytes()[:-100])
        result = run(tiny_target, output, resume=True, **settings)
        assert result.returncode == 0, result.stderr[-2000:]
        assert "step-00000004 is damaged" in result.stderr
        assert timeless(output) == expected


def test_wrong_input_is_one_sentence(tiny_target: Path, tmp_path: Path, reference: Path) -> None:
    bad_line = tmp_path / "bad.jsonl"
    bad_line.write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    cases: list[tuple[dict[str, Any], Path, str]] = [
        ({"data__train": str(bad_line)}, tmp_path / "a", "bad.jsonl:2"),
        ({"train__micro_batch_size": 3}, tmp_path / "b", "multiple of micro_batch_size"),
        ({"student__num_layers": 5}, tmp_path / "c", "the teacher has only 2"),
        ({}, reference, "--resume"),
    ]
    for settings, output, expected in cases:
        result = run(tiny_target, output, **settings)
        assert result.returncode == Exit.WRONG_INPUT
        (error,) = errors(result.stderr)
        assert expected in error
        assert "Traceback" not in result.stderr


def test_resuming_with_another_recipe_names_the_field(tiny_target: Path, reference: Path) -> None:
    result = run(tiny_target, reference, resume=True, **UNCLIPPED, train__learning_rate=0.5)
    assert result.returncode != 0
    assert "train.learning_rate differs" in result.stderr
