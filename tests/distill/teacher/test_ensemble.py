"""Several teachers: who teaches what, and runs that several transformed teachers lead."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from draftsmith.distill.answers import EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.models import load_model, load_tokenizer
from draftsmith.distill.recipe import load_recipe
from draftsmith.distill.sections.teacher import MemberSection
from draftsmith.distill.teacher import EnsembleTeacher, LiveTeacher, open_teachers
from draftsmith.distill.teacher.ensemble import member_weights
from tests.distill.runs import command, timeless
from tests.tiny import make_target

EXAMPLES = [
    Example((3, 4, 5), (7, 200, 9, 10, 11), "recorded"),
    Example((6,), (20, 21), "student"),
    Example((8, 9), (30, 31, 2), "recorded"),
]
PROMPTS = [
    EncodedPrompt("math-1", (3, 4, 5)),
    EncodedPrompt("code-1", (6,)),
    EncodedPrompt("both-1", (8, 9)),
]
SECTIONS = [
    MemberSection(model="a", weight=3.0, prompts="[mb]*"),
    MemberSection(model="b", prompts="[!m]*"),
]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another width and depth."""
    folder = tmp_path_factory.mktemp("other") / "wide"
    return make_target(folder, seed=5, hidden_size=96, num_hidden_layers=1)


def test_weights_are_shares_of_those_who_teach_the_prompt() -> None:
    weights = member_weights(PROMPTS, SECTIONS)
    assert weights == {(3, 4, 5): (1.0, 0.0), (6,): (0.0, 1.0), (8, 9): (0.75, 0.25)}
    with pytest.raises(ValueError, match="no member teaches the prompt code-1"):
        member_weights(PROMPTS, SECTIONS[:1])
    twice = [*PROMPTS, EncodedPrompt("code-2", (3, 4, 5))]
    with pytest.raises(ValueError, match="code-2 stands in the data under another id"):
        member_weights(twice, SECTIONS)


def test_each_text_is_taught_by_its_members(tiny_target: Path, other: Path) -> None:
    members = [LiveTeacher(load_model(folder, torch.float32), 2) for folder in (tiny_target, other)]
    ensemble = EnsembleTeacher(members[0], members, member_weights(PROMPTS, SECTIONS))
    expected = []
    for example, shares in zip(EXAMPLES, ((1.0, 0.0), (0.0, 1.0), (0.75, 0.25)), strict=True):
        signals = [member.signal([example]).logits_NV(slice(None)) for member in members]
        first, second = (w * z.softmax(-1) for w, z in zip(shares, signals, strict=True))
        expected.append(first + second)
    got = ensemble.signal(EXAMPLES).logits_NV(slice(None)).softmax(-1)
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-6)
    assert not ensemble.keep_signals(EXAMPLES, 100)
    assert ensemble.keep_signals(EXAMPLES, 1e6)
    kept = ensemble.signal(EXAMPLES[1:]).logits_NV(slice(None)).softmax(-1)
    torch.testing.assert_close(kept, got[5:], rtol=1e-4, atol=1e-6)


def test_members_need_the_targets_vocabulary(tiny_target: Path, tmp_path: Path) -> None:
    small = make_target(tmp_path / "small", vocab_size=300)
    recipe = load_recipe(
        "tiny", [f"teacher.model={tiny_target}", f"teacher.members=[{{model = '{small}'}}]"]
    )
    model = load_model(tiny_target, torch.float32)
    with pytest.raises(ValueError, match="has another vocabulary"):
        open_teachers(recipe, None, model, load_tokenizer(tiny_target), [2], PROMPTS)


def test_several_transformed_teachers_resume_bit_by_bit(
    tiny_target: Path, other: Path, tmp_path: Path
) -> None:
    """Mixed for half of the prompts; reliable mass, a small vocabulary and noise on top."""
    settings: dict[str, Any] = {
        "student__vocabulary": 120,
        "teacher__reliable__mass": 0.9,
        "teacher__reliable__top_k": 20,
        "teacher__reliable__temperature": 0.8,
        "teacher__privacy__patterns": ["[a-m]"],
    }
    members = f"{{model = '{tiny_target}', dtype = 'float32'}}, "
    members += f"{{model = '{other}', dtype = 'float32', weight = 2.0, prompts = '*[02468]'}}"

    def train(output: Path, *more: str) -> None:
        arguments = command(tiny_target, output, **settings)
        arguments += ["--set", f"teacher.members=[{members}]", *more]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    shutil.rmtree(resumed / "draft")
    train(resumed, "--resume")
    assert timeless(resumed) == timeless(whole)
    weights = "draft/model.safetensors"
    assert (resumed / weights).read_bytes() == (whole / weights).read_bytes()
    losses = [one["loss"] for one in timeless(whole) if one["kind"] == "train"]
    assert losses[-1] < losses[0]
