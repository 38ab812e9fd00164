"""Bad input on the command line: one sentence and a non-zero exit each."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draftsmith.cli.main import app
from tests.cli.commands import DRAFTSMITH, draftsmith, environment, one_sentence
from tests.tiny import make_target

COMMANDS = [
    *("doctor", "models", "drafts", "distill", "teacher", "student", "evaluate", "profile"),
    *("bench", "serve", "jobs", "keys", "traffic", "demo"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_help_of_every_command_is_there(home: Path) -> None:
    overview = draftsmith(home, "--help")
    assert overview.returncode == 0
    for command in COMMANDS:
        assert command in overview.stdout
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_the_command_line_does_not_load_torch(home: Path) -> None:
    code = "import sys, draftsmith.cli.main; sys.exit('torch' in sys.modules)"
    python = DRAFTSMITH.with_name("python")
    assert subprocess.run([python, "-c", code], env=environment(home), check=False).returncode == 0


def test_missing_model(home: Path, tiny_target: Path) -> None:
    for arguments in (
        ["distill", "tiny", "--set", "teacher.model=nothing-here"],
        ["evaluate", "--target", "nothing-here", "--draft", str(tiny_target)],
        ["serve", "--target", "nothing-here"],
    ):
        assert "no model 'nothing-here'" in one_sentence(draftsmith(home, *arguments))


def test_unreachable_hub(home: Path) -> None:
    message = one_sentence(draftsmith(home, "models", "pull", "nobody/nothing"))
    assert "'nobody/nothing' cannot be taken from the hub" in message


def test_wrong_recipe(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[train]\nsteps = 3\nlearning_rat = 1\n")
    message = one_sentence(draftsmith(home, "distill", recipe))
    assert "mine.toml: train.learning_rat: unknown field; did you mean 'learning_rate'" in message


def test_wrong_prompt_line(home: Path, tmp_path: Path, tiny_target: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    arguments: list[str | Path] = ["--target", tiny_target, "--draft", tiny_target]
    arguments += ["--prompts", prompts]
    assert "prompts.jsonl:2" in one_sentence(draftsmith(home, "evaluate", *arguments))


def test_mismatched_tokenizer(home: Path, tmp_path: Path, tiny_target: Path) -> None:
    other = make_target(tmp_path / "other")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"ByteLevel"', '"Whitespace"', 1))
    pair: list[str | Path] = ["--target", tiny_target, "--draft", other]
    assert "okenizer" in one_sentence(draftsmith(home, "evaluate", *pair))


def test_smaller_vocabulary(home: Path, tmp_path: Path, tiny_target: Path) -> None:
    other = make_target(tmp_path / "other", vocab_size=300)
    pair: list[str | Path] = ["--target", tiny_target, "--draft", other]
    message = one_sentence(draftsmith(home, "evaluate", *pair))
    assert "300 tokens" in message
    assert "366" in message


def test_resume_needs_a_folder(home: Path) -> None:
    assert "--output" in one_sentence(draftsmith(home, "distill", "tiny", "--resume"))


def test_no_disk_space(home: Path, tmp_path: Path, tiny_target: Path) -> None:
    """A run on a file system of 1 MiB, mounted where only this process sees it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f"mount -t tmpfs -o size=1m tmpfs {disk} && exec "
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, f"{mounted} true"]).returncode:
        pytest.skip("this machine does not let tests mount a file system")
    run = f"{DRAFTSMITH} distill tiny --set teacher.model={tiny_target} --output {disk}/run"
    result = subprocess.run(
        [*unshare, mounted + run],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "GiB free" in one_sentence(result)


def test_empty_store_says_what_to_do(tmp_path: Path) -> None:
    result = draftsmith(tmp_path / "new", "models", "list")
    assert result.returncode == 0
    assert "draftsmith models pull" in result.stdout
