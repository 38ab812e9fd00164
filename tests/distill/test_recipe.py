"""Recipes: overrides, and errors that name the field."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from draftsmith.distill.recipe import Recipe, builtin_recipes, load_recipe
from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.objective import Objective


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
    assert recipe.objective.divergence == "jsd"
    assert recipe.student.layers == [0, 3]
    assert recipe.name == "mine", "the file's name is the default"


def test_every_divergence_of_the_kernels_can_be_chosen() -> None:
    for name in DIVERGENCES:
        recipe = load_recipe("tiny", [f"objective.divergence={name}"])
        Objective(**recipe.objective.model_dump())


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
    ],
)
def test_errors_name_the_field(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_recipe(write(tmp_path, text), overrides)
    assert "\n" not in str(error.value)


def test_missing_recipe_lists_the_builtin_ones() -> None:
    with pytest.raises(ValueError, match=r"'nope'.*demo, tiny"):
        load_recipe("nope")


def test_round_trip_through_json() -> None:
    recipe = load_recipe("demo")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_recipe_and_manifest_import_no_torch() -> None:
    code = (
        "import sys, draftsmith.distill.recipe, draftsmith.distill.manifest;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
