"""The page docs/results.md, written from what the steps of `results.py` kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MEASURES = {
    "sum min(p, q)": "alpha_overlap",
    "argmax agreement": "alpha_argmax",
    "tokens a target call": "tau",
    "KL": "forward_kl",
}

GAP_OBJECTIVES = ("forward_kl", "reverse_kl", "taid")
"""What is compared across capacity gaps."""


@dataclass(frozen=True)
class Kept:
    """What a step found, with the command and the machine that it was found with.

    planned: the command that finds it. found: None where nothing did yet.
    """

    planned: str
    command: str = ""
    machine: str = ""
    found: Any = None

    @property
    def source(self) -> str:
        if self.found is None:
            return f"Not measured yet: `{self.planned}`\n\n"
        return f"`{self.command}`\n({self.machine})\n\n"


def page(kept: Mapping[str, Kept], measured: int) -> str:
    """The whole page; a part that was not measured says so. `measured`: prompts of an engine."""
    parts = [
        "# Results\n",
        "Written by `make results PROMPTS=gsm8k_train.jsonl` from what it keeps in "
        "`benchmarks/results/gsm8k-*.json`; command and machine stand beside the figures.\n",
        "## A draft for one domain\n",
        "### What was planned\n",
        _part(kept["plan"], _plan_table),
        "### What it became\n",
        _training_part(kept["draft"], "draft"),
        f"{measured} held-out questions, greedy:\n",
        _part(kept["evaluation"], _evaluation_table),
        "Planned beside measured:\n",
        _part(kept["check"], _check_table),
        _part(kept["bench"], _bench_table),
        "### A larger one by hand\n",
        "Two layers, chosen before there was a plan, with more prompts and steps.\n",
        _training_part(kept["by-hand-draft"], "by-hand-draft"),
        _part(kept["by-hand-evaluation"], _evaluation_table),
        "## Objectives on one budget\n",
        _part(kept["objectives"], _objectives_table),
        "## Capacity gaps\n",
        "The same budget for students that are further and further below the teacher.\n",
        "### 1 layer\n",
        _part(kept["gap-1-layer"], _gap_table),
        "### 3 layers\n",
        "The student of all objectives, above.\n",
        "" if kept["objectives"].found is None else _gap_table(kept["objectives"].found),
        "### 6 layers\n",
        _part(kept["gap-6-layers"], _gap_table),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _part(kept: Kept, table: Any) -> str:
    return kept.source + ("" if kept.found is None else table(kept.found))


def _plan_table(plan: dict[str, Any]) -> str:
    rows = [["draft", "speed, 90 %", "K", "acceptance, 90 %", "pays from", "millions", "minutes"]]
    for one in plan["rows"]:
        break_even = one["break_even"]
        rows.append(
            [
                one["name"],
                _estimate(one["speedup"]),
                str(one["lookahead"]),
                _estimate(one["alpha"]),
                "never" if break_even is None else f"{break_even:.2f}",
                f"{one['parameters'] / 1e6:.1f}",
                f"{one['minutes']:.0f}",
            ]
        )
    note = (
        f"Predicted for one request at a time after {plan['tokens']:,} trained tokens, "
        f"{plan['tokens_beyond_pilots']:.1f} times the longest pilot's; speed beside the target "
        "alone, parameters, minutes of training."
    )
    return f"{_table(rows)}\n{note}\n"


def _check_table(check: dict[str, Any]) -> str:
    rows = [["", "predicted", "measured", "error"]]
    for line in check["lines"]:
        digits = 0 if line["measured"] >= 1000 else 3
        missed = line["low"] is not None and not line["low"] <= line["measured"] <= line["high"]
        predicted = f"{line['predicted']:,.{digits}f}"
        if line["low"] is not None:
            predicted += f" ({line['low']:.{digits}f}-{line['high']:.{digits}f})"
        error = f"{line['predicted'] / line['measured'] - 1:+.1%}"
        row = [line["quantity"], predicted, f"{line['measured']:,.{digits}f}", error]
        rows.append([*row[:3], f"{row[3]}, outside" if missed else row[3]])
    return f"Draft `{check['draft']}`.\n\n{_table(rows)}"


def _estimate(one: dict[str, float]) -> str:
    return f"{one['value']:.2f} ({one['low']:.2f}-{one['high']:.2f})"


def _training_part(kept: Kept, name: str) -> str:
    if kept.found is None:
        return kept.source
    found = kept.found
    before, after = found["alpha_argmax"]
    return kept.source + (
        f"{found['steps']} steps, {found['tokens']:,} trained tokens, {found['seconds'] / 60:.0f} "
        "minutes, without the teacher's answers and states before them. Held-out argmax agreement "
        f"{before:.3f} before, {after:.3f} after.\n\n"
        f"![Loss and held-out acceptance](images/results-{name}.png)\n"
    )


def _evaluation_table(report: dict[str, Any]) -> str:
    rows = [["", "argmax agreement", "tau, exact", "tau in vLLM", "tokens/s", "speed"]]
    rows.append(
        ["target alone", "", "", "1.00", f"{report['plain_tokens_per_second']:.1f}", "1.00"]
    )
    for name, one in report["drafts"].items():
        acceptance = one["acceptance"]
        rows.append(
            [
                name,
                "" if acceptance is None else f"{acceptance['alpha_argmax']:.3f}",
                _number(one["predicted_block_efficiency"]),
                f"{one['block_efficiency']:.2f}{_interval(one['block_efficiency_interval'])}",
                f"{one['tokens_per_second']:.1f}",
                f"{one['speedup']:.2f}{_interval(one['speedup_interval'])}",
            ]
        )
    note = f"K = {report['num_speculative_tokens']}; 95 % intervals over prompts."
    return f"{_table(rows)}\n{note}\n"


def _bench_table(found: dict[str, Any]) -> str:
    names = list(next(iter(found["results"].values())))
    rows = [["requests at a time", *names]]
    for level, row in found["results"].items():
        rows.append([level, *(f"{row[name]['speedup']:.2f}" for name in names)])
    return (
        _table(rows)
        + "\nTokens a second beside the target alone, median over rounds.\n"
        + "\n![Speed by requests at a time](images/results-bench.png)\n"
    )


def _objectives_table(found: dict[str, Any]) -> str:
    rows = [["objective", *MEASURES, "what its paper reports"]]
    for one in found["objectives"]:
        rows.append([one["objective"], *_means(one), one.get("claim", "")])
    picture = "![Objectives](images/results-objectives.png)\n"
    return f"{_budget(found)}\n\n{_table(rows)}\n{picture}"


def _gap_table(found: dict[str, Any]) -> str:
    wanted = ("untrained", *GAP_OBJECTIVES)
    compared = [one for one in found["objectives"] if one["objective"] in wanted]
    rows = [["objective", *MEASURES]]
    rows += [[one["objective"], *_means(one)] for one in compared]
    return f"{_budget(found)}\n\n{_table(rows)}"


def _budget(found: dict[str, Any]) -> str:
    budget, seeds = found["budget"], found["objectives"][-1]["seeds"]
    spread = "mean over seeds, ± standard deviation" if seeds > 1 else "one seed"
    return (
        f"{budget['steps']} steps of {budget['batch_size']} on {budget['num_prompts']} prompts; "
        f"student {', '.join(found['student'])}; K = {found['num_speculative_tokens']}; {spread}."
    )


def _means(entry: dict[str, Any]) -> list[str]:
    return [_mean(entry[field]) for field in MEASURES.values()]


def _mean(value: dict[str, Any]) -> str:
    spread = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:.3f}{spread}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f" ({bounds[0]:.2f}-{bounds[1]:.2f})"


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"
