"""`draftsmith plan`: real pilots on the tiny target, the plan that they give, and its check."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from draftsmith.cli.main import app
from draftsmith.distill.recipe import load_recipe
from tests.cli.commands import DRAFTSMITH, environment
from tests.distill.runs import TINY, last_step


def run(*arguments: str | Path) -> None:
    app([*map(str, arguments)], standalone_mode=False)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTSMITH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def arguments(target: Path, *options: str | Path) -> list[str | Path]:
    fields = TINY | {"train.steps": 5}
    settings = [f"--set={name}={value}" for name, value in fields.items()]
    shapes = ["--starts=cut", "--layers=1,2", "--vocabularies=100,all", "--batch=1,4"]
    return ["plan", "draft", "tiny", "--teacher", target, *settings, *shapes, *options]


def test_pilots_plan_and_check(
    home: Path, tiny_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plan = tmp_path / "best.toml", tmp_path / "plan.json"
    run(*arguments(tiny_target, "--pilots=2", "--pilot-steps=5", "-o", output, "--json", plan))
    shown = capsys.readouterr().out
    found = json.loads(plan.read_text())
    assert {row["name"] for row in found["rows"]} == {
        "cut-1l", "cut-2l", "cut-1l-v100", "cut-2l-v100",
    }  # fmt: skip
    speeds = [row["loads"][0]["speedup"]["value"] for row in found["rows"]]
    assert speeds == sorted(speeds, reverse=True)
    assert found["tokens_beyond_pilots"] == pytest.approx(1, abs=0.01)
    assert "torch on this machine" in shown
    assert found["rows"][0]["name"] in shown
    recipe = load_recipe(output)
    assert recipe.student.model_dump(mode="json") == found["rows"][0]["student"]
    assert (home / "plans" / f"{recipe.name}.json").read_bytes() == plan.read_bytes()

    # The pilots had the whole budget, so that they are what the plan predicts.
    runs = sorted(
        (home / "plans" / "pilots").glob("cut-*"),
        key=lambda one: (one.name.rpartition("-")[0], load_recipe(one / "recipe.json").train.steps),
    )
    names = [one.name.rpartition("-")[0] for one in runs]
    assert names == ["cut-1l-v100"] * 3 + ["cut-2l-v100"] * 3
    answers = {one.joinpath("answers-train.jsonl").read_bytes() for one in runs}
    assert len(answers) == 1, "the teacher answered once"
    assert recipe.data.answers == str(runs[0]), "nor does it answer for the planned run again"
    states = home / "plans" / "tiny.states.safetensors"
    assert recipe.teacher.states == str(states)
    assert states.stat().st_mtime < (runs[0] / "draft/config.json").stat().st_mtime
    assert not runs[0].joinpath("checkpoints").exists()
    run("plan", "check", runs[2], "--plan", plan, "--json", tmp_path / "check.json")
    assert "minutes of training steps" in capsys.readouterr().out
    checked = json.loads((tmp_path / "check.json").read_text())
    lines = {one["quantity"]: one for one in checked["lines"]}
    tokens = lines["trained tokens"]
    assert tokens["predicted"] == pytest.approx(tokens["measured"], rel=0.01)
    first = lines["acceptance of the first position"]
    assert first["predicted"] == pytest.approx(first["measured"], abs=0.05)

    before = {one: one.stat().st_mtime_ns for one in runs[0].rglob("*")}
    run(*arguments(tiny_target, "--batch=2"))
    assert {one: one.stat().st_mtime_ns for one in runs[0].rglob("*")} == before, "pilots are kept"
    with pytest.raises(ValueError, match=r"trained with another \[rollout\]"):
        run(*arguments(tiny_target, "--set=rollout.max_new_tokens=7"))


def test_without_pilots_a_plan_says_how_to_get_some(home: Path, tiny_target: Path) -> None:
    with pytest.raises(ValueError, match=r"only be predicted from pilots.*--pilots 3"):
        run(*arguments(tiny_target))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["plan", "draft"], "needs a recipe, or --teacher"),
        (["plan", "draft", "family"], "without stages"),
        (["plan", "draft", "tiny", "--batch", "1,x"], "--batch 1,x"),
        (["plan", "draft", "tiny", "-o", "nowhere/best.toml"], "nowhere does not exist"),
        (["plan", "draft", "tiny", "--rank=training-free", "-o", "a.toml"], "predicts no speed"),
        (["plan", "draft", "tiny", "--set", "teacher.stored=x"], "one live model"),
    ],
)
def test_wrong_input_fails_at_once(home: Path, options: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        run(*options)


@pytest.mark.slow
def test_a_signal_ends_the_plan_and_not_only_its_pilot(home: Path, tiny_target: Path) -> None:
    options = arguments(tiny_target, "--pilots=2", "--pilot-steps=400")
    command = [str(DRAFTSMITH), *map(str, options)]
    pilots = home / "plans" / "pilots"
    plan = subprocess.Popen(command, env=environment(home), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not any(last_step(pilot) >= 3 for pilot in pilots.glob("cut-*")):
            assert plan.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        plan.terminate()
        _, stderr = plan.communicate(timeout=100)
    finally:
        plan.kill()
    assert "the same command goes on" in stderr
    assert "pilot 1 of 2" in stderr
    assert "pilot 2 of 2" not in stderr
    (pilot,) = pilots.glob("cut-*")
    assert (pilot / f"checkpoints/step-{last_step(pilot):08d}/COMPLETE.json").is_file()
