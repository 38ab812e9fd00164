"""/metrics shows all engines at once, as one text that Prometheus can read."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from draftsmith.server.app import create_app
from draftsmith.server.engine.remote import RemoteModel
from draftsmith.server.metrics import EnginePage, merged_text
from draftsmith.server.settings import ServerSettings
from tests.server.conftest import Fleet, Models
from tests.server.processes import MODEL, wait_until
from tests.server.stub import StubEngine, running, serving

PAGE = """\
# HELP tokens_total Tokens so far.
# TYPE tokens_total counter
tokens_total{engine="0",model_name="a"} 3.0
# HELP seconds Time.
# TYPE seconds histogram
seconds_bucket{le="1.0",model_name="a"} 2.0
seconds_bucket{le="+Inf",model_name="a"} 2.0
seconds_count{model_name="a"} 2.0
seconds_sum{model_name="a"} 0.5
# HELP up Whether.
# TYPE up gauge
up 1.0
"""


def read(text: str) -> dict[str, Metric]:
    """The families of a text; fails where it breaks the format's rules."""
    families = list(text_string_to_metric_families(text))
    names = Counter(one.name for one in families)
    assert names.most_common(1)[0][1] == 1, f"a family twice: {names.most_common(1)}"
    samples = Counter(
        (one.name, *sorted(one.labels.items())) for family in families for one in family.samples
    )
    assert samples.most_common(1)[0][1] == 1, f"a sample twice: {samples.most_common(1)}"
    return {one.name: one for one in families}


def labels(family: Metric, name: str) -> set[str | None]:
    return {sample.labels.get(name) for sample in family.samples}


def page_server(text: str, meeting: asyncio.Barrier) -> StubEngine:
    """An engine that shows its page once all of the `meeting` are asked for theirs."""

    async def handle(request: httpx.Request) -> httpx.Response:
        await meeting.wait()
        return httpx.Response(200, text=text)

    transport = httpx.MockTransport(handle)
    return StubEngine(httpx.AsyncClient(transport=transport, base_url="http://engine"))


def test_pages_of_two_engines_are_one_text() -> None:
    pages = [EnginePage("a", "speculative", PAGE), EnginePage("a", "plain", PAGE)]
    text = merged_text("# HELP mine My own.\n# TYPE mine gauge\nmine 1.0\n", pages)
    families = read(text)
    assert list(families) == ["mine", "tokens", "seconds", "up"]
    assert (families["tokens"].type, families["seconds"].type) == ("counter", "histogram")
    assert families["seconds"].documentation == "Time."
    assert text.count("# HELP") == text.count("# TYPE") == 4
    assert labels(families["up"], "role") == {"speculative", "plain"}
    assert labels(families["tokens"], "engine") == {"0"}, "vLLM's own label stays"
    assert families["mine"].samples[0].labels == {}


def test_labels_that_look_like_ours() -> None:
    """A name that is taken is kept under another, and no text inside quotes is touched."""
    line = 'info{role="x",path="a\\"}, model=\\"b,model=",other_model="c",} 1e+06 1700000000000\n'
    sample = read(merged_text("", [EnginePage('m"\\', "remote", line)]))["info"].samples[0]
    given = {"exported_role": "x", "path": 'a"}, model="b,model=', "other_model": "c"}
    assert sample.labels == given | {"model": 'm"\\', "role": "remote"}
    assert (sample.value, sample.timestamp) == (1e6, 1.7e9)


def test_what_cannot_be_read_spoils_nothing() -> None:
    html = EnginePage("web", "remote", "<html>\n<b>404</b>\n</html>")
    word = EnginePage("word", "remote", "up many\n")
    other = EnginePage("other", "remote", "# TYPE up counter\nup 7\n# TYPE mine gauge\nmine 8\n")
    families = read(merged_text("", [EnginePage("a", "plain", PAGE), html, word, other]))
    assert labels(families["up"], "model") == {"a"}, "a gauge cannot be a counter too"
    assert labels(families["mine"], "model") == {"other"}


def test_engines_are_asked_at_the_same_time(models: Models, tmp_path: Path) -> None:
    """Both engines of one model are there; one that hangs shows in draftsmith_engine_up."""
    meeting = asyncio.Barrier(2)
    pair = page_server(PAGE, meeting), page_server(PAGE, meeting)
    hangs = page_server(PAGE, asyncio.Barrier(2))
    with serving(tmp_path, models.target, *pair, draft=models.partial) as url:
        answer = httpx.get(f"{url}/metrics", timeout=20)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = read(answer.text)
    assert labels(families["tokens"], "role") == {"speculative", "plain"}
    assert families["draftsmith_engine_up"].samples[0].value == 1
    alone = page_server(PAGE, asyncio.Barrier(1))
    with serving(tmp_path, models.target, alone, hangs, draft=models.partial) as url:
        families = read(httpx.get(f"{url}/metrics", timeout=20).text)
    assert labels(families["tokens"], "role") == {"speculative"}
    assert families["draftsmith_engine_up"].samples[0].value == 0


def test_real_pages_of_two_models(fleet: Fleet, tmp_path: Path) -> None:
    """vLLM's own text, twice, from gateways whose metrics bear our names: nothing gets lost."""
    both = {"one": fleet.identical, "two": fleet.partial}
    remotes = [
        RemoteModel(served_model_name=name, url=gateway.url, model=MODEL)
        for name, gateway in both.items()
    ]
    app = create_app(ServerSettings(home=tmp_path, worker=False), remotes)
    with running(app) as url:
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, 10, "both answer")
        families = read(httpx.get(f"{url}/metrics").text)
    tokens = families["vllm:generation_tokens"]
    assert labels(tokens, "model") == {"one", "two"}
    assert labels(tokens, "model_name") == {MODEL}
    seconds = families["vllm:time_to_first_token_seconds"]
    assert seconds.type == "histogram"
    assert labels(seconds, "model") == {"one", "two"}
    assert labels(families["draftsmith_draft_info"], "exported_model") == {MODEL}
    for name, gateway in both.items():
        for family in read(gateway.get("/metrics").text).values():
            shown = [
                one for one in families[family.name].samples if one.labels.get("model") == name
            ]
            if family.name.startswith("vllm:"):
                assert len(shown) == len(family.samples), family.name
