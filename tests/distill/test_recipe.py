"""Recipes: overrides, and errors that name the field."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from draftsmith.distill.objectives import REGISTRY, DistillSpecSection
from draftsmith.distill.recipe import Recipe, builtin_recipes, load_recipe
from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.objective import Objective

STEPS = "[train]\nsteps = 5\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_builtin_recipes_load() -> None:
    assert "demo" in builtin_recipes()
    for name in builtin_recipes():
        assert load_recipe(name).name == name


def test_overrides_are_typed_by_toml_and_else_text(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nsteps = 5\n")
    overrides = ["train.steps=7", "objective.divergence=jsd", "student.layers=[0, 3]"]
    recipe = load_recipe(path, overrides)
    assert recipe.train.steps == 7
    assert recipe.objective == DistillSpecSection(divergence="jsd")
    assert recipe.student.layers == [0, 3]
    assert recipe.name == "mine", "the file's name is the default"


def test_every_divergence_of_the_kernels_can_be_chosen() -> None:
    """By name, or as distillspec's; and the kernels accept what the objective charges."""
    for name in DIVERGENCES:
        chosen = "name" if name in REGISTRY else "divergence"
        recipe = load_recipe("tiny", [f"objective.{chosen}={name}"])
        charge = asdict(recipe.objective.charge(0, recipe.train.steps))
        assert charge["divergence"] == name
        Objective(**{field.name: charge[field.name] for field in fields(Objective)
                     if field.name in charge})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[train]\nsteps = 5\nstep = 1\n", [], "train.step: unknown field; did you mean 'steps'"),
        ("[trian]\nsteps = 5\n", [], "did you mean 'train'"),
        ("[train]\nsteps = 0\n", [], "train.steps"),
        ("[train]\nsteps = 'x'\n", [], "train.steps"),
        ("", [], "train: Field required"),
        ("[train]\nsteps = 5\n[objective]\ndivergence = 'kl'\n", [], "objective.divergence"),
        ("[train]\nsteps = 5\n[objective]\nbeta = 1.0\n", [], "objective.beta"),
        ("[train]\nsteps = 5\n[objective]\nalpha = 0\n", [], "objective.alpha"),
        ("[train\n", [], "not valid TOML"),
        ("[train]\nsteps = 5\n", ["train.steps"], "section.field=value"),
        ("[train]\nsteps = 5\n", ["train.steps.x=1"], "'steps' is a field"),
        ("[train]\nsteps = 5\n[student]\ninit = 'random'\n", [], "num_layers"),
        ("[train]\nsteps = 5\n[student]\nlayers=[0]\nhidden_size=64\n", [], "own width"),
        ("[train]\nsteps = 5\n[evaluate]\ngamma_max=2\n", [], "num_speculative_tokens"),
        (STEPS, ["train.offload=cpu"], "train: offload = 'cpu' needs zero_stage 2 or 3"),
        (STEPS, ["train.compile=true", "train.zero_stage=3"], "compile needs a zero_stage below"),
        (STEPS, ["log.tensorbord=true"], "log.tensorbord: unknown field; did you mean"),
        (STEPS, ["train.save_every=3", "rollout.steps_ahead=2"], "mine.toml: train.save_every"),
        (STEPS, ["objective.name=tiad"], "objective.name: unknown objective 'tiad'; did you mean"),
        (STEPS, ["objective=3"], "objective: Input should be a valid dictionary"),
        (STEPS, ["objective.t_start=0.5"], "unknown field of distillspec; it belongs to name ="),
        (STEPS, ["objective.name=taid", "objective.t_strat=0.5"], "did you mean 't_start'"),
        (STEPS, ["objective.name=taid", "objective.t_end=0.3"], "t_start must not be larger"),
        (STEPS, ["objective.divergence=skew_kl"], "set objective.name = 'skew_kl'"),
        (STEPS, ["objective.name=lk", "objective.divergence=jsd"], "objective.divergence: unknown"),
        (STEPS, ["objective.name=adaspec"], "objective.reference: Field required"),
        (STEPS, ["objective.name=adaspec", "objective.reference=''"], "objective.reference: "),
        (STEPS, ["objective.name=minima", "objective.label_weight=1"], "objective.label_weight"),
        (
            STEPS,
            ["objective.name=skew_kl", "rollout.student_fraction=0.5"],
            "rollout.student_fraction: skew_kl sets it",
        ),
        (
            STEPS,
            ["objective.name=sft", "rollout.student_fraction=0.5"],
            "rollout.student_fraction: sft trains on responses in the data only",
        ),
        (STEPS, ["objective.name=seq_kd", "data.responses=given"], "data.responses: seq_kd"),
        (
            STEPS,
            ["rollout.student_fraction=0.5", "rollout.given_fraction=0.6"],
            "rollout.given_fraction",
        ),
        (STEPS, ["rollout.given_fraction=0.6", "data.responses=given"], "rollout.given_fraction"),
        (
            STEPS,
            ["objective.name=self_distillation", "objective.ground_truth_weight=1"],
            "objective.ground_truth_weight",
        ),
    ],
)
def test_errors_name_the_field(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_recipe(write(tmp_path, text), overrides)
    assert "\n" not in str(error.value)


def test_missing_recipe_lists_the_builtin_ones() -> None:
    with pytest.raises(ValueError, match=r"'nope'.*demo, family, tiny"):
        load_recipe("nope")


def test_round_trip_through_json() -> None:
    recipe = load_recipe("demo")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_each_objective_is_chosen_by_name_and_survives_json(tmp_path: Path, name: str) -> None:
    overrides = [f"objective.name={name}"]
    overrides += ["objective.reference=elsewhere"] if name == "adaspec" else []
    recipe = load_recipe(write(tmp_path, STEPS), overrides)
    assert type(recipe.objective) is REGISTRY[name]
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_default_mixture_is_what_the_objective_is_defined_on(tmp_path: Path) -> None:
    path = write(tmp_path, STEPS)
    assert load_recipe(path).objective == DistillSpecSection(divergence="forward_kl")
    assert load_recipe(path).student_fraction == 0.5
    assert load_recipe(path, ["rollout.given_fraction=0.7"]).student_fraction == pytest.approx(0.3)
    for name, given in (("sft", True), ("seq_kd", False), ("self_distillation", True)):
        recipe = load_recipe(path, [f"objective.name={name}"])
        assert recipe.student_fraction == 0
        assert recipe.needs_given_responses == given


def test_recipe_and_manifest_import_no_torch() -> None:
    code = (
        "import sys, draftsmith.distill.recipe, draftsmith.distill.manifest;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
