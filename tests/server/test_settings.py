"""What is refused before any engine starts, and what an engine is started with."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from draftsmith.distill.manifest import (
    Manifest,
    TargetIdentity,
    write_draft_vocabulary,
    write_manifest,
)
from draftsmith.server.app import create_app
from draftsmith.server.engine import command
from draftsmith.server.engine.command import EngineConfig, engine_command, engine_environment
from draftsmith.server.engine.process import EngineProcess
from draftsmith.server.home import Home
from draftsmith.server.pair import check_pair
from draftsmith.server.run import run_server
from draftsmith.server.settings import load_settings
from tests.server.conftest import Models
from tests.server.drafts import export_draft
from tests.tiny import make_target


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: EngineProcess) -> None:
        pytest.fail("an engine was started")

    monkeypatch.setattr(EngineProcess, "start", start)


def test_settings_come_from_environment_and_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRAFTSMITH_PORT", "9001")
    monkeypatch.setenv("DRAFTSMITH_HOME", str(tmp_path))
    settings = load_settings(target=tmp_path / "some-model", host=None, num_speculative_tokens=5)
    assert settings.port == 9001
    assert settings.host == "127.0.0.1"
    assert settings.served_model_name == "some-model"
    assert settings.engine_config().num_speculative_tokens == 5
    assert settings.home == tmp_path == Home.default().root
    assert load_settings(target=tmp_path, port=1).port == 1


def test_the_lookahead_is_the_one_that_the_draft_was_measured_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draft = tmp_path / "draft"
    draft.mkdir()
    assert load_settings(target=tmp_path, draft=draft).num_speculative_tokens == 3
    identity = TargetIdentity(
        name="t", config_sha256="", weights_fingerprint="", tokenizer_sha256="", vocab_size=1
    )
    recipe = {"evaluate": {"num_speculative_tokens": 1}}
    manifest = Manifest(kind="draft", target=identity, recipe=recipe, versions={}, files=[])
    write_manifest(draft, manifest)
    assert load_settings(target=tmp_path, draft=draft).num_speculative_tokens == 1
    asked = load_settings(target=tmp_path, draft=draft, num_speculative_tokens=4)
    assert asked.num_speculative_tokens == 4
    monkeypatch.setenv("DRAFTSMITH_NUM_SPECULATIVE_TOKENS", "2")
    assert load_settings(target=tmp_path, draft=draft).num_speculative_tokens == 2


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"port": 70000}, "port"), ({"dtype": "int3"}, "dtype"), ({"api_key": "short"}, "settings")],
)
def test_wrong_setting_is_named(wrong: dict[str, object], name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^Setting '{name}' is wrong: ") as caught:
        load_settings(target=tmp_path, **wrong)
    assert "\n" not in str(caught.value)


def test_port_taken(models: Models, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = load_settings(target=models.target, home=tmp_path, port=port)
        with pytest.raises(ValueError, match=f"Port {port} on 127.0.0.1 cannot be used"):
            run_server(settings)


def test_models_that_are_not_there(models: Models, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no target model at"):
        create_app(load_settings(target=tmp_path / "nope", home=tmp_path))
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        create_app(load_settings(target=models.target, draft=tmp_path, home=tmp_path))


def test_pairs_that_do_not_match(models: Models, tmp_path: Path) -> None:
    draft = export_draft(models.other, models.target, tmp_path / "draft")
    manifest = check_pair(models.target, draft)
    assert manifest is not None
    assert check_pair(models.target, models.other) is None  # no manifest, equal vocabulary
    with pytest.raises(ValueError, match=r"distilled for 'target'"):
        check_pair(models.other, draft)
    smaller = make_target(tmp_path / "smaller", vocab_size=300)
    with pytest.raises(ValueError, match="vocabulary of"):
        check_pair(smaller, draft)
    write_draft_vocabulary(smaller, [300])
    with pytest.raises(ValueError, match="outside of 0 to 299"):
        check_pair(smaller, smaller)
    (draft / "generation_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        check_pair(models.target, draft)


def test_key_is_asked_for(models: Models, tmp_path: Path) -> None:
    key = "a-key-of-some-length"
    settings = load_settings(target=models.target, home=tmp_path, api_key=key)
    client = TestClient(create_app(settings))  # not entered: no lifespan, no engine
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    for value in (b"", b"Bearer wrong", b"Bearer \xff", key.encode()[:-1]):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nope", "//health"):
            answer = client.get(path, headers=[(b"authorization", value)])
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    good = {"authorization": f"Bearer {key}"}
    assert client.get("/v1/models", headers=good).status_code == 200
    body = {"model": "target", "prompt": "a"}
    answer = client.post("/v1/completions", headers=good, json=body)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_starting"
    assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_failure_inside_shows_nothing(models: Models, tmp_path: Path) -> None:
    app = create_app(load_settings(target=models.target, home=tmp_path))

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("the secret")

    answer = TestClient(app).get("/boom", headers={"x-request-id": "abc"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "abc"


def test_an_engine_for_large_batches_uses_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "uses_cpu_wheel", lambda: True)
    variable = "VLLM_CPU_NUM_OF_RESERVED_CPU"
    batches = EngineConfig(Path("/m/t"), scheduler_core=False)
    assert engine_environment(batches, Path("/s"), {})[variable] == "0"
    assert engine_environment(batches, Path("/s"), {variable: "3"})[variable] == "3", "a user's own"
    assert variable not in engine_environment(EngineConfig(Path("/m/t")), Path("/s"), {})


def test_command_line_of_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = EngineConfig(Path("/m/t"), Path("/m/d"), num_speculative_tokens=4)
    socket_path = tmp_path / "s"

    def built(cpu: bool) -> tuple[list[str], dict[str, str]]:
        monkeypatch.setattr(command, "uses_cpu_wheel", lambda: cpu)
        base = {"LD_PRELOAD": "/own.so", "DRAFTSMITH_API_KEY": "k"}
        return engine_command(config, socket_path), engine_environment(config, tmp_path, base)

    line, environment = built(cpu=True)
    speculation = json.loads(line[line.index("--speculative-config") + 1])
    assert speculation["num_speculative_tokens"] == 4
    assert speculation["draft_sample_method"] == "probabilistic"
    assert line[line.index("--scheduler-cls") + 1] == command.SCHEDULER
    assert "--tool-call-parser" not in line
    assert "--enforce-eager" in line
    assert "--kv-cache-memory-bytes" in line
    assert environment["LD_PRELOAD"].endswith("/own.so")
    assert environment["VLLM_PLUGINS"] == "draftsmith"
    assert "DRAFTSMITH_API_KEY" not in environment

    line, environment = built(cpu=False)
    assert "--enforce-eager" not in line
    assert "--kv-cache-memory-bytes" not in line
    assert environment["LD_PRELOAD"] == "/own.so"

    for native, cpu, expected in (
        (True, True, "auto"),
        (False, True, "float32"),
        (False, False, "auto"),
    ):
        monkeypatch.setattr(command, "multiplies_bfloat16", lambda native=native: native)
        line, _ = built(cpu)
        assert line[line.index("--dtype") + 1] == expected
    assert EngineConfig(Path(), dtype="bfloat16").dtype_on(cpu=True) == "bfloat16"

    plain = engine_command(EngineConfig(Path("/m/t"), tool_call_parser="hermes"), tmp_path / "s")
    assert plain[plain.index("--tool-call-parser") + 1] == "hermes"
    assert "--enable-auto-tool-choice" in plain
    assert "--speculative-config" not in plain


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("<tool_call>{{ call | tojson }}</tool_call>", "hermes"),
        ("<tool_call><function=f></function></tool_call>", "qwen3_coder"),
        ("[TOOL_CALLS] [", "mistral"),
        ("<|python_tag|>", "llama3_json"),
    ],
)
def test_form_of_tool_calls_is_read_from_the_template(
    template: str, parser: str | None, tmp_path: Path
) -> None:
    assert load_settings(target=tmp_path).engine_config().tool_call_parser is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": template}))
    assert load_settings(target=tmp_path).engine_config().tool_call_parser == parser
    (tmp_path / "chat_template.jinja").write_text(template)
    config.unlink()
    assert load_settings(target=tmp_path).engine_config().tool_call_parser == parser
    chosen = load_settings(target=tmp_path, tool_call_parser="pythonic")
    assert chosen.engine_config().tool_call_parser == "pythonic"
