"""`draftsmith plan student` and `plan fit`, as a user runs them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from draftsmith.cli.main import app
from draftsmith.distill.sizing.capacity_gap import CapacityGap
from tests.cli.commands import draftsmith
from tests.distill.runs import TINY
from tests.tiny import make_target


def run(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setenv("DRAFTSMITH_HOME", str(home))
    app([*map(str, arguments)], standalone_mode=False)


def test_a_partner_by_the_published_ratio_with_the_loss_on_the_users_data(
    tiny_target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "mine.jsonl"
    rows = [{"prompt": "What is a list?", "response": f"a list of {n}"} for n in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("COLUMNS", "120")
    options = ["--teacher", str(tiny_target), "--student-params", "20k", "--prompts", str(data)]
    run(tmp_path / "home", monkeypatch, "plan", "student", *options)
    shown = capsys.readouterr().out
    assert "as published (arXiv 2311.07052)" in shown
    assert "a student of 0.02 M learns best from 0.05 M" in shown
    parameters = 2 * (64 * 576 + 128) + 64 + 366 * 64
    assert f"{parameters / 1e6:.2f} M" in shown
    assert f"{parameters / 2.5 / 1e6:.2f} M" in shown
    assert f"{parameters / 20_000:.2f}" in shown
    assert "3 of your responses" in shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["student"], "--student-params, --teacher, or both"),
        (["student", "--student-params", "small"], "such as 50M"),
        (["fit", "tiny", "--teachers", "3,2", "--students", "1"], "only has|at most|layers"),
        (["fit", "--teachers", "3,2,4", "--students", "1"], "needs a recipe, or --teacher"),
    ],
)
def test_wrong_input_fails_at_once(
    tmp_path: Path,
    tiny_target: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: str,
) -> None:
    given = ["--teacher", str(tiny_target)] if "tiny" in options else []
    with pytest.raises(ValueError, match=expected):
        run(tmp_path, monkeypatch, "plan", *options, *given)


@pytest.mark.slow
def test_a_real_sweep_is_fitted_drawn_and_used(tmp_path: Path) -> None:
    target = make_target(tmp_path / "family", num_hidden_layers=4)
    home, picture = tmp_path / "home", tmp_path / "gap.png"
    settings = [f"--set={name}={value}" for name, value in TINY.items()]
    options = ["--teachers=4,3,2", "--students=1", "--teacher-steps=2", "--student-steps=2"]
    command: list[str | Path] = ["plan", "fit", "tiny", "--teacher", target, *settings, *options]
    done = draftsmith(home, *command, "--picture", picture)
    assert done.returncode == 0, done.stderr[-3000:]
    assert picture.read_bytes().startswith(b"\x89PNG")
    gap = CapacityGap.read(home / "plans" / "capacity-gap.json")
    assert len(gap.sweep.pairs) == 3
    assert gap.slope is None, "one student has no slope"
    assert len({round(sum(one.nats), 6) for one in gap.sweep.pairs}) == 3, "teachers differ"
    assert all(math.isfinite(one) for one in gap.sweep.teacher_losses.values())
    assert gap.verdict in done.stdout
    again = draftsmith(home, *command)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "pilot" not in again.stderr
    used = draftsmith(home, "plan", "student", "--student-params", "1M")
    assert used.returncode == 0
    assert ("fitted to family" in used.stdout) == gap.shows_gap
