"""Runs in stages: what is handed on, and a kill in any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draftsmith.distill.folder import RunFolder
from draftsmith.distill.manifest import check_compatible, read_draft_vocabulary, read_manifest
from tests.distill.runs import kill_in_the_middle, run, timeless

CHAIN = """
name = "chain"
[student]
num_layers = 1
[train]
steps = 16
batch_size = 8
save_every = 3
eval_every = 5
[export]
dtype = "float32"

[[stages]]
name = "target"
student = {lora = {rank = 4}}

[[stages]]
name = "draft"
teacher = {model = "stage:target"}
student = {init = "importance", num_layers = 1, intermediate_size = 96, vocabulary = 100}
objective = {name = "taid", alpha = 0.2}

[[stages]]
name = "polish"
teacher = {model = "stage:target"}
student = {freeze_embeddings = true}
objective = {divergence = "reverse_kl"}
"""
STAGES = ("target", "draft", "polish")
SETTINGS: dict[str, Any] = {"train__steps": 16}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "chain.toml"
    path.write_text(CHAIN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tiny_target: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The three stages, undisturbed."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    result = run(tiny_target, output, recipe=recipe, **SETTINGS)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "stage 3 of 3: polish" in result.stderr
    return RunFolder(output)


def evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    return [one for one in timeless(folder.root) if one["kind"] == "evaluation"]


def test_each_stage_is_a_whole_run(whole: RunFolder) -> None:
    for name in STAGES:
        stage = whole.stage(name)
        assert stage.picture.is_file()
        assert [one["step"] for one in evaluations(stage)] == [0, 5, 10, 15, 16]
        assert len(list(stage.checkpoints.glob("step-*"))) == 2


def test_weights_carry_on_without_a_bit_lost(whole: RunFolder) -> None:
    before, after = evaluations(whole.stage("draft"))[-1], evaluations(whole.stage("polish"))[0]
    assert before | {"step": 0} == after
    tokens = read_draft_vocabulary(whole.stage("draft").draft, 366)
    assert tokens is not None
    assert read_draft_vocabulary(whole.draft, 366) == tokens


def test_a_stages_model_teaches_the_next(whole: RunFolder, tiny_target: Path) -> None:
    target = whole.stage("target").draft
    made, manifest = read_manifest(target), read_manifest(whole.draft)
    assert (made.kind, manifest.kind) == ("student", "draft")
    check_compatible(made, tiny_target)
    check_compatible(manifest, target)
    assert manifest.target.name == "chain-target"
    with pytest.raises(ValueError, match="made for"):
        check_compatible(manifest, tiny_target)


def test_the_manifest_tells_the_whole_chain(whole: RunFolder, tiny_target: Path) -> None:
    manifest = read_manifest(whole.draft)
    assert [stage.name for stage in manifest.stages] == list(STAGES)
    assert [stage.teacher.name for stage in manifest.stages] == [
        tiny_target.name,
        "chain-target",
        "chain-target",
    ]
    assert manifest.target.weights_fingerprint == manifest.stages[0].weights_fingerprint
    assert manifest.evaluation == manifest.stages[-1].evaluation
    assert [one["name"] for one in manifest.recipe["stages"]] == list(STAGES)
    assert str(tiny_target.parent) not in manifest.model_dump_json(), "a path of this machine"
    assert str(whole.root) not in manifest.model_dump_json()


def test_a_kill_in_any_stage_goes_on_bit_by_bit(
    tiny_target: Path, recipe: Path, tmp_path: Path, whole: RunFolder
) -> None:
    killed = RunFolder(tmp_path / "killed")
    for number, (name, after) in enumerate((("target", 7), ("draft", 2), ("polish", 13))):
        kill_in_the_middle(
            tiny_target,
            killed.root,
            after,
            number > 0,
            SETTINGS | {"recipe": recipe},
            watched=killed.stage(name).root,
        )
        assert not killed.stage(name).draft.exists()
    result = run(tiny_target, killed.root, resume=True, recipe=recipe, **SETTINGS)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "stage 1" not in result.stderr, "a stage that is done is not run again"
    for name in STAGES:
        ours, theirs = killed.stage(name), whole.stage(name)
        assert timeless(ours.root) == timeless(theirs.root)
        weights = "model.safetensors"
        assert (ours.draft / weights).read_bytes() == (theirs.draft / weights).read_bytes()
    assert (killed.draft / weights).read_bytes() == (whole.draft / weights).read_bytes()
