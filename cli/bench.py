"""`draftsmith bench`: target alone, every way to speculate, and our controller, side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from draftsmith.cli.bench_report import (
    ALONE,
    Results,
    bench_table,
    lossy_line,
    write_results,
)
from draftsmith.cli.engines import KV_CACHE_BYTES, running_engines
from draftsmith.cli.evaluate import encode, say
from draftsmith.cli.numbers import distinct_numbers
from draftsmith.cli.resolve import resolve_model
from draftsmith.cli.score import load_scorer, mean_scores
from draftsmith.distill.progress import track
from draftsmith.server.engine.command import EngineConfig, uses_cpu_wheel
from draftsmith.server.engine.load import measure_load
from draftsmith.server.home import Home
from draftsmith.server.pair import check_pair

ADAPTIVE = "adaptive"
LOSSY = "lossy"
_METHODS = (ADAPTIVE, "fixed", "greedy", "block", "ngram", "suffix", "eagle3")


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
            "measured goodput), `fixed` (the draft, always K), `greedy` (fixed, and the draft "
            "proposes its first choice at a temperature too), `block` (fixed, blocks are verified "
            "as a whole; GPU), vLLM's `ngram`, `suffix` and `eagle3` (with --head)."
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
    head: Annotated[
        str | None, typer.Option(help="EAGLE-3 head of the target, for the method `eagle3`.")
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
    score: Annotated[
        str | None,
        typer.Option(
            help="MODULE:FUNCTION of yours, which gets a prompt and an answer as text and returns "
            "a number: its mean stands beside each contender's speed."
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
    scorer = None if score is None else load_scorer(score)
    chosen, levels = _methods(methods), distinct_numbers("--concurrency", concurrency)
    if ("eagle3" in chosen) != (head is not None):
        raise ValueError("The method eagle3 and --head FOLDER go together: give both or none.")
    target_folder, draft_folder = resolve_model(target, home), resolve_model(draft, home)
    check_pair(target_folder, draft_folder)
    encoded = encode(prompts, target_folder, limit)
    configs = contenders(
        target_folder,
        draft_folder,
        chosen,
        num_speculative_tokens,
        max(levels),
        profile,
        head=None if head is None else resolve_model(head, home),
        others=int(lenience is not None),
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
    scores = None
    if scorer is not None:
        scores = mean_scores(scorer, target_folder, encoded, results[levels[0]])
    title = f"{target}, {len(encoded)} prompts, T={temperature:g}"
    console.print(bench_table(results, title, scores))
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
        write_results(output, results, settings, effect, scores)
        console.print(f"picture  {output.with_suffix('.png')}")


def contenders(
    target: Path,
    draft: Path,
    methods: list[str],
    lookahead: int,
    most: int,
    profile: Path | None,
    *,
    head: Path | None = None,
    others: int = 0,
) -> dict[str, EngineConfig]:
    """The target alone, then each method.

    Args:
        most: requests at a time.
        others: engines beside these that a GPU must have room for.
    """
    on_cpu = uses_cpu_wheel()
    alone = EngineConfig(
        target=target,
        num_speculative_tokens=lookahead,
        max_num_seqs=max(8, most),
        kv_cache_bytes=KV_CACHE_BYTES if on_cpu else None,
        gpu_memory_fraction=None if on_cpu else 0.9 / (1 + len(methods) + others),
    )
    changes: dict[str, dict[str, Any]] = {
        ADAPTIVE: {"draft": draft, "lookahead_control": "adaptive", "profile": profile},
        "fixed": {"draft": draft},
        "greedy": {"draft": draft, "draft_sample_method": "greedy"},
        "block": {"draft": draft, "rejection_sample_method": "block"},
        "eagle3": {"draft": head, "method": "eagle3"},
        "ngram": {"method": "ngram"},
        "suffix": {"method": "suffix"},
    }
    return {ALONE: alone} | {name: replace(alone, **changes[name]) for name in methods}


def _methods(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    unknown = [one for one in chosen if one not in _METHODS]
    if unknown:
        raise ValueError(f"--methods: '{unknown[0]}' is none of {', '.join(_METHODS)}.")
    return list(dict.fromkeys(chosen))
