"""Stages as recipes: what they inherit, and errors that name stage and field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from draftsmith.distill.folder import RunFolder
from draftsmith.distill.objectives import REGISTRY
from draftsmith.distill.recipe import Recipe, load_recipe

CHAIN = """
name = "family"
seed = 7
[student]
num_layers = 4
[objective]
divergence = "jsd"
[train]
steps = 50
[export]
name = "drafty"

[[stages]]
name = "target"
[stages.train]
steps = 9

[[stages]]
name = "draft"
teacher = {model = "stage:target"}
student = {init = "cut", layers = [0], vocabulary = 100}

[[stages]]
name = "polish"
teacher = {model = "stage:target"}
student = {freeze_embeddings = true}
objective = {name = "taid"}
"""


def write(folder: Path, text: str = CHAIN) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_stage_says_what_changes(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    run = RunFolder(tmp_path / "run")
    stages = recipe.stage_recipes(run)
    target, draft, polish = stages.values()
    assert list(stages) == ["target", "draft", "polish"]
    assert [one.name for one in stages.values()] == [f"family-{name}" for name in stages]
    assert [one.seed for one in stages.values()] == [7, 8, 9]
    assert [one.train.steps for one in stages.values()] == [9, 50, 50]
    assert all(not one.stages and one.export_name == one.name for one in stages.values())

    assert target.student.num_layers == 4
    assert target.teacher.model == recipe.teacher.model
    assert draft.teacher.model == polish.teacher.model == str(run.stage("target").draft)
    assert (draft.student.layers, draft.student.num_layers) == ([0], None), "begun afresh"
    assert (polish.student.init, polish.student.model) == ("load", str(run.stage("draft").draft))
    assert polish.student.freeze_embeddings
    assert draft.objective == recipe.objective
    assert isinstance(polish.objective, REGISTRY["taid"])
    # A teacher is served by itself; what is trained on must not be rounded.
    assert [one.export.kind for one in stages.values()] == ["student", "draft", "draft"]
    assert [one.export.dtype for one in stages.values()] == ["bfloat16", "float32", "bfloat16"]


def test_overrides_reach_into_a_stage_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path)
    recipe = load_recipe(path, ["stages.draft.train.steps=3", "stages.target.teacher.model=big"])
    stages = recipe.stage_recipes(RunFolder(tmp_path))
    assert stages["draft"].train.steps == 3
    assert stages["target"].teacher.model == "big"
    assert recipe.models() == {
        "teacher.model": "smollm2-135m",
        "stages.target.teacher.model": "big",
    }
    renamed = recipe.with_models(lambda name: name.upper())
    assert renamed.models() == {
        "teacher.model": "SMOLLM2-135M",
        "stages.target.teacher.model": "BIG",
    }
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.draft.teacher.model=stage:tagret"], "stages.draft.teacher.model: no stage 'tagr"),
        (["stages.draft.teacher.model=stage:tagret"], "did you mean 'target'"),
        (["stages.target.teacher.model=stage:draft"], "no stage 'draft' comes before it"),
        (["stages.draft.teacher.model=stage:draft"], "no stage 'draft' comes before it"),
        (["stages.polish.teacher.model=stage:draft"], "stage 'draft' may propose only some tokens"),
        (["stages.draft.name=target"], "stages: two are called 'target'"),
        (["stages.draft.train.step=1"], "stages.draft.train.step: unknown field; did you mean"),
        (["stages.draft.tain.steps=1"], "stages.draft.tain: unknown field; did you mean 'train'"),
        (["stages.draft.student.layers=x"], "stages.draft.student.layers"),
        (["stages.polish.student.layers=[1]"], "stages.polish.student: a loaded student has its"),
        (["stages.polish.objective.t_strat=1"], "stages.polish.objective.t_strat: unknown field"),
        (["stages.draft.rollout.steps_ahead=3"], "stages.draft.train.save_every must be"),
        (["stages.darft.train.steps=1"], "there is no stage 'darft'"),
        (["stages.draft=1"], "name a stage and its section"),
        (["teacher.model=stage:target"], "teacher.model: 'stage:target' has a meaning only within"),
        (["student.lora.rnk=1"], "student.lora.rnk: unknown field; did you mean 'rank'"),
        (["student.init=load"], "student: init = 'load' and model go together"),
        (["student.init=random", "student.lora.rank=1"], "student: lora keeps the weights"),
    ],
)
def test_errors_name_stage_and_field(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_recipe(write(tmp_path), overrides)
    assert "\n" not in str(error.value)
