"""`draftsmith student make`, as a user runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from draftsmith.distill.manifest import check_compatible, read_draft_vocabulary, read_manifest
from draftsmith.distill.models import load_model
from tests.cli.commands import draftsmith, one_sentence
from tests.distill.runs import succeed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_a_cut_student_with_what_it_costs(home: Path, tmp_path: Path, tiny_target: Path) -> None:
    output = tmp_path / "new" / "cut"
    arguments: list[str | Path] = ["--teacher", tiny_target, "--set", "student.num_layers=1"]
    result = draftsmith(home, "student", "make", *arguments, "--output", output)
    assert result.returncode == 0, result.stderr[-2000:]
    assert load_model(output, torch.float32).config.num_hidden_layers == 1
    check_compatible(read_manifest(output), tiny_target)
    # 366 tokens of width 64; a layer has 64 x (2 x 64 + 2 x 32 + 3 x 128) weights and two norms.
    layer, head = 64 * 576 + 128, 366 * 64
    c = (layer + 64 + head + 64) / (2 * layer + 64 + head + 64)
    assert f"predicted cost ratio c = {c:.3f}" in result.stdout
    assert "not a measurement" in result.stdout
    again = draftsmith(home, "student", "make", *arguments, "--output", output)
    assert "is there already" in one_sentence(again)


def test_it_is_the_student_that_a_run_starts_with(
    home: Path, tmp_path: Path, tiny_target: Path
) -> None:
    recipe: dict[str, Any] = {
        "student__init": "importance",
        "student__intermediate_size": 96,
        "student__vocabulary": 100,
        "train__steps": 1,
        "data__limit": 6,
        "rollout__max_new_tokens": 8,
    }
    succeed(tiny_target, tmp_path / "run", **recipe)
    overrides = [f"{name.replace('__', '.')}={value}" for name, value in recipe.items()]
    overrides += ["teacher.dtype=float32", "export.dtype=float32"]
    arguments = [part for one in overrides for part in ("--set", one)]
    output = tmp_path / "made"
    command: list[str | Path] = ["student", "make", "tiny", "--teacher", tiny_target, *arguments]
    result = draftsmith(home, *command, "--output", output)
    assert result.returncode == 0, result.stderr[-2000:]
    for name in ("model.safetensors", "draft_vocabulary.json"):
        assert (output / name).read_bytes() == (tmp_path / "run" / "initial" / name).read_bytes()
    tokens = read_draft_vocabulary(output, 366)
    assert tokens is not None
    assert len(tokens) == 100


def test_a_recipe_with_stages_is_refused(home: Path, tmp_path: Path, tiny_target: Path) -> None:
    recipe = tmp_path / "chain.toml"
    recipe.write_text("[train]\nsteps = 1\n[[stages]]\nname = 'a'\n")
    result = draftsmith(home, "student", "make", recipe, "--output", tmp_path / "x")
    assert "without stages" in one_sentence(result)
