"""Whole runs of the objectives that have state, models or text of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distill.runs import errors, kill_in_the_middle, run, succeed, timeless

STATEFUL: dict[str, dict[str, Any]] = {
    "taid": {"objective__name": "taid", "objective__alpha": 0.2},
    # The chance rises at every evaluation, and the buffer is soon full.
    "skew_kl": {
        "objective__name": "skew_kl",
        "objective__rise": 0.3,
        "objective__tolerance": -1e9,
        "objective__replay_capacity": 6,
        "rollout__steps_ahead": 2,
    },
}


def settings(name: str, **more: Any) -> dict[str, Any]:
    return (
        STATEFUL[name] | {"train__steps": 30, "train__save_every": 4, "train__eval_every": 5} | more
    )


def train_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "train"]


@pytest.fixture(scope="module")
def whole_runs(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("objectives")
    for name in STATEFUL:
        succeed(tiny_target, folder / name, **settings(name))
    return {name: folder / name for name in STATEFUL}


def test_t_is_logged_and_grows_faster_than_linearly(whole_runs: dict[str, Path]) -> None:
    t = [record["t"] for record in train_records(timeless(whole_runs["taid"]))]
    assert t[0] == 0.4
    assert t == sorted(t)
    assert all(ours > 0.4 + 0.6 * step / 30 for step, ours in enumerate(t[:15]) if step > 1)


def test_student_text_is_written_and_replayed(whole_runs: dict[str, Path]) -> None:
    records = train_records(timeless(whole_runs["skew_kl"]))
    assert {record["student_share"] for record in records[:5]} == {0.0}
    assert records[-1]["student_chance"] == 1.0
    assert any(record["student_share"] for record in records)
    assert any(record["replay_share"] for record in records)
    assert records[-1]["replay_share"] > records[-1]["student_share"]


@pytest.mark.parametrize("name", sorted(STATEFUL))
def test_a_killed_run_goes_on_bit_by_bit(
    tiny_target: Path, tmp_path: Path, whole_runs: dict[str, Path], name: str
) -> None:
    killed = tmp_path / "killed"
    kill_in_the_middle(tiny_target, killed, 18, False, settings(name))
    resumed = succeed(tiny_target, killed, resume=True, **settings(name))
    assert resumed == timeless(whole_runs[name])
    weights = "draft/model.safetensors"
    assert (killed / weights).read_bytes() == (whole_runs[name] / weights).read_bytes()


@pytest.mark.parametrize("name", [pytest.param("skew_kl", marks=pytest.mark.slow), "taid"])
def test_two_processes_take_the_same_steps(
    tiny_target: Path, tmp_path: Path, whole_runs: dict[str, Path], name: str
) -> None:
    expected = train_records(timeless(whole_runs[name]))[:10]
    records = succeed(tiny_target, tmp_path / "run", 2, **settings(name))
    for ours, theirs in zip(train_records(records)[:10], expected, strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        for field in {"student_share", "replay_share", "student_chance", "t"} & set(theirs):
            assert ours[field] == pytest.approx(theirs[field], rel=1e-6)


GIVEN = '{"prompt": "Say a word.", "response": "draft"}\n{"prompt": "Two.", "response": "a b"}\n'


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    prompts = tmp_path_factory.mktemp("prompts") / "given.jsonl"
    prompts.write_text(GIVEN)
    return {"data__train": str(prompts), "data__heldout": str(prompts), "train__steps": 2}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [
        "sft",
        "seq_kd",
        "self_distillation",
        pytest.param("minima", marks=SLOW),
        pytest.param("lk", marks=SLOW),
    ],
)
def test_each_kind_of_text_trains_a_small_vocabulary(
    tiny_target: Path, tmp_path: Path, given: dict[str, Any], name: str
) -> None:
    output = tmp_path / "run"
    records = succeed(tiny_target, output, **given, objective__name=name, student__vocabulary=100)
    first, second = train_records(records)
    assert second["loss"] < first["loss"]
    answers = (output / "answers-train.jsonl").read_text().splitlines()
    own_text = name in ("sft", "self_distillation")
    teachers = [len(json.loads(line)["tokens"]) for line in answers]
    assert (max(teachers) < 12) == own_text, "the teacher's answers are longer than the data's"


def test_a_mixture_draws_from_all_three(
    tiny_target: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    fractions: dict[str, Any] = {"rollout__student_fraction": 0.4, "rollout__given_fraction": 0.3}
    records = succeed(tiny_target, tmp_path / "run", **given, **fractions)
    shares = [record["student_share"] for record in train_records(records)]
    assert 0 < sum(shares) < len(shares)


def test_adaspec_trains_the_chosen_share(
    tiny_target: Path, tmp_path: Path, whole_runs: dict[str, Path]
) -> None:
    reference: dict[str, Any] = {
        "objective__name": "adaspec",
        "objective__reference": str(whole_runs["taid"] / "draft"),
        "train__steps": 2,
    }
    tokens = {}
    for keep in (1.0, 0.25):
        output = tmp_path / str(keep)
        records = succeed(tiny_target, output, **reference, objective__keep=keep)
        tokens[keep] = train_records(records)[0]["tokens"]
    assert 0.25 * tokens[1.0] <= tokens[0.25] < 0.35 * tokens[1.0]


def test_what_the_data_lacks_is_one_sentence(tiny_target: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(GIVEN + '{"prompt": "No answer."}\n')
    cases: list[tuple[dict[str, Any], str]] = [
        ({"objective__name": "sft"}, "1 of 3 prompts have no response, which sft needs"),
        ({"rollout__given_fraction": 0.5}, "no response, which rollout.given_fraction needs"),
        (
            {"objective__name": "self_distillation", "data__limit": 2},
            "data.heldout: 4 of 4 prompts have no response, which self_distillation needs",
        ),
        (
            {"objective__name": "adaspec", "objective__reference": str(tmp_path)},
            "objective.reference: ",
        ),
    ]
    for number, (fields, expected) in enumerate(cases):
        result = run(tiny_target, tmp_path / str(number), data__train=str(prompts), **fields)
        assert result.returncode == 2
        (error,) = errors(result.stderr)
        assert expected in error
