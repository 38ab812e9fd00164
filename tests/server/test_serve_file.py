"""The deployments file: what is refused at once, and several models in one server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from draftsmith.server.app import create_app
from draftsmith.server.engine.command import EngineConfig, engine_command, engine_environment
from draftsmith.server.engine.remote import RemoteEngine, RemoteModel
from draftsmith.server.run import _listen
from draftsmith.server.serve_file import read_serve_file
from draftsmith.server.settings import Settings
from tests.cli.commands import draftsmith, one_sentence
from tests.server.processes import wait_until
from tests.server.stub import answering, completion, running, strict_client
from tests.tiny import make_target


def read(path: Path, text: str, **flags: Any) -> Any:
    path.write_text(text)
    return read_serve_file(path, lambda name: Path("/models") / name, **flags)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("port = 1", "there is no model"),
        ("x = = 1", "is not TOML"),
        ('portt = 1\n[models.a]\nurl = "http://x"', "Setting 'portt' is unknown."),
        ('port = 70000\n[models.a]\nurl = "http://x"', "Setting 'port' is wrong: Input should be"),
        ('api_key = "x"\n[models.a]\nurl = "http://x"', "is a secret: set DRAFTSMITH_API_KEY"),
        ('[models.a]\nurl = "http://x"\nk = 3', "Setting 'models.a.k' is unknown."),
        ('[models.a]\nurl = "http://x/v1"', "Setting 'models.a.url' is wrong: give it without"),
        ('[models.a]\nurl = "ftp://x"', "Setting 'models.a.url' is wrong"),
        ("[models.a]\nlookahead = 3", "Setting 'models.a.target' is wrong: Field required."),
        ('[models.a]\ntarget = "t"\nlookahead = 3', "Setting 'models.a.lookahead' is unknown."),
        ('[models.a]\ntarget = "t"\nport = 3', "'models.a.port' holds for the whole server"),
        ('[models.a]\ntarget = 3', "Setting 'models.a.target' is wrong: it must be a string."),
        ('[models.a]\ntarget = "t"\nlenience = 0.5', "lenience needs a draft"),
        ('[models.a]\ntarget = "t"\ntensor_parallel_size = 0', "'models.a.tensor_parallel_size'"),
        ('[models.a]\nurl = "http://u:p@x"', "give no user or password in it"),
        ('[models.a]\nurl = "http://x"\n[models.b]\nurl = "http://y"\nserved_model_name = "a"',
         "two models are called 'a'"),
        ("models = 3", "there is no model"),
        ("[models]\na = 3", "Setting 'models.a' is wrong: it must be a table."),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"\.") as refused:
        read(tmp_path / "serve.toml", text)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_a_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTSMITH_DRAFT", "/of/another/model")
    monkeypatch.setenv("DRAFTSMITH_MAX_QUEUED", "7")
    (tmp_path / "beside").mkdir()
    text = """
        port = 1
        drain_timeout_s = 5
        [models.a]
        target = "t"
        draft = "d"
        num_speculative_tokens = 5
        [models."org/b"]
        target = "beside"
        tensor_parallel_size = 2
        data_parallel_size = 4
        devices = "2,3"
        [models.c]
        url = "http://10.0.0.7:8000/"
        model = "meta/large"
        """
    server, (a, b, c) = read(tmp_path / "serve.toml", text, port=9, host=None, home=tmp_path)
    assert (server.port, server.max_queued, server.drain_timeout_s) == (9, 7, 5)
    assert isinstance(a, Settings)
    assert (a.target, a.draft) == (Path("/models/t"), Path("/models/d"))
    assert (a.port, a.max_queued, a.num_speculative_tokens) == (9, 7, 5)
    assert (b.served_model_name, b.target, b.draft) == ("org/b", tmp_path / "beside", None)
    command = engine_command(b.engine_config(), Path("/s"))
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[command.index("--data-parallel-size") + 1] == "4"
    assert "--pipeline-parallel-size" not in command
    assert engine_environment(b.engine_config(), Path("/s"))["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in engine_environment(EngineConfig(Path()), Path(), base={})
    assert c == RemoteModel(served_model_name="c", url="http://10.0.0.7:8000", model="meta/large")


def test_a_key_that_is_missing(tmp_path: Path) -> None:
    server, models = read(
        tmp_path / "f", '[models.a]\nurl = "http://x"\nkey_variable = "NOT_SET"', home=tmp_path
    )
    with pytest.raises(ValueError, match="environment variable NOT_SET, which is not set"):
        create_app(server, models)


class Other:
    """Somebody else's server with an OpenAI-compatible API, which can be made to fall ill."""

    def __init__(self) -> None:
        self.healthy = True
        self.status, self.headers = 200, {"retry-after": "9"}
        self.seen: list[tuple[str | None, dict[str, Any]]] = []
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response("other_metric 1\n")

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append((request.headers.get("authorization"), body))
        if self.status != 200:
            error = {"message": "secret of theirs", "code": self.status}
            return JSONResponse({"error": error}, self.status, self.headers)
        return JSONResponse(completion("from afar") | {"model": body["model"]})


@contextmanager
def other_server(other: Other) -> Iterator[str]:
    listener = _listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(other.app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def test_models_beside_each_other(
    tmp_path: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request goes to its model's engine, here or elsewhere, and is answered in its name."""

    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)
        return httpx.Response(200, json=completion(json.loads(request.content)["model"]))

    monkeypatch.setenv("OTHER_KEY", "sk-other")
    make_target(tmp_path / "second")
    other = Other()
    with other_server(other) as elsewhere:
        server, models = read(
            tmp_path / "serve.toml",
            f"""
            worker = false
            [models.first]
            target = "{tiny_target}"
            [models."org/second"]
            target = "second"
            [models.far]
            url = "{elsewhere}"
            model = "their/name"
            key_variable = "OTHER_KEY"
            """,
            home=tmp_path / "home",
        )
        app = create_app(server, models)
        for name in ("first", "org/second"):
            app.state.gateway.models[name].engine = answering(answer)
        with running(app) as url:
            client = strict_client(url)
            wait_until(lambda: _state(url, "far") == "ready", 10, "the other server answers")
            assert [one.id for one in client.models.list()] == ["first", "org/second", "far"]
            assert client.models.retrieve("org/second").id == "org/second"
            for name in ("first", "org/second"):
                said = client.completions.with_raw_response.create(model=name, prompt="a")
                assert said.parse().choices[0].text == name
                assert said.headers["x-draftsmith-engine"] == "plain"
            said = client.completions.with_raw_response.create(model="far", prompt="a")
            assert said.parse().choices[0].text == "from afar"
            assert said.parse().model == "far", "in the name that the client knows"
            assert said.headers["x-draftsmith-engine"] == "remote"
            assert other.seen == [("Bearer sk-other", {"model": "their/name", "prompt": "a"})]
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model="their/name", prompt="a")
            with pytest.raises(openai.BadRequestError) as steered:
                client.completions.create(
                    model="far", prompt="a", extra_body={"speculation": {"num_tokens": 1}}
                )
            assert steered.value.param == "speculation"
            promote = httpx.post(f"{url}/v1/deployments/far/promote", json={"draft": "d"})
            assert promote.status_code == 409
            assert "another server's" in promote.json()["error"]["message"]
            assert httpx.get(f"{url}/metrics/models/far").text == "other_metric 1\n"

            for status, seen, code in (
                (429, 429, "rate_limit_exceeded"), (503, 503, "overloaded"),
                (401, 500, "internal_error"), (404, 500, "internal_error"),
                (500, 500, "internal_error"), (400, 400, "invalid_value"),
            ):  # fmt: skip
                other.status = status
                with pytest.raises(openai.APIStatusError) as theirs:
                    client.completions.create(model="far", prompt="a")
                assert (theirs.value.status_code, theirs.value.code) == (seen, code)
                assert ("secret" in theirs.value.message) == (status == 400)
                if seen in (429, 503):
                    assert theirs.value.response.headers["retry-after"] == "9"
            other.status = 200

            other.healthy = False
            wait_until(lambda: _state(url, "far") == "restarting", 10, "it is noticed")
            with pytest.raises(openai.InternalServerError) as away:
                client.completions.create(model="far", prompt="a")
            assert away.value.code == "engine_restarting"
            assert httpx.get(f"{url}/ready").status_code == 200, "the others go on"
            assert client.completions.create(model="first", prompt="a").choices
            other.healthy = True
            wait_until(lambda: _state(url, "far") == "ready", 10, "it is back")


def _state(url: str, name: str) -> str:
    return str(httpx.get(f"{url}/v1/deployments/{name}").json()["state"])


def test_the_command_takes_models_from_one_place(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('portt = 1\n[models.a]\nurl = "http://x"')
    arguments = ("serve", "--config", str(file))
    assert "Setting 'portt' is unknown" in one_sentence(draftsmith(tmp_path, *arguments))
    both = one_sentence(draftsmith(tmp_path, *arguments, "--target", "a"))
    assert "--target belongs into the file of --config" in both


def test_what_a_server_keeps_that_went_away_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took a request, and from then on nobody answers, though its port is open."""
    monkeypatch.setattr("draftsmith.server.engine.remote._LOST_S", 1.0)
    monkeypatch.setattr("draftsmith.server.engine.remote._HEALTH_TIMEOUT_S", 0.5)
    answers = True

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answers and (head := await reader.readuntil(b"\r\n\r\n")):
            if head.startswith(b"POST"):
                break
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await asyncio.sleep(60)

    async def check() -> None:
        nonlocal answers
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        engine = RemoteEngine(RemoteModel(served_model_name="m", url=f"http://127.0.0.1:{port}"))
        engine.launch()
        while engine.client is None:
            await asyncio.sleep(0.01)
        request = asyncio.create_task(engine.client.post("/v1/completions", json={}))
        await asyncio.sleep(0.1)
        answers = False
        with pytest.raises(httpx.TransportError):
            async with asyncio.timeout(15):
                await request
        assert engine.client is None
        await engine.stop()
        server.close()

    asyncio.run(check())
