"""`draftsmith evaluate`: is this draft worth it for this target and this traffic?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.evaluation import MAX_LOOKAHEAD, Report, Workload, evaluate_drafts
from draftsmith.cli.resolve import resolve_model
from draftsmith.distill.prompts import load_prompts
from draftsmith.server.home import Home


def evaluate(
    target: Annotated[str, typer.Option(help="Folder, name in the store or hub id.")],
    draft: Annotated[str, typer.Option(help="Folder, registered name or hub id.")],
    prompts: Annotated[
        str, typer.Option(help="JSONL file, built-in set or Hugging Face dataset.")
    ] = "draftsmith:stdlib/heldout",
    temperature: Annotated[float, typer.Option(min=0.0, help="Of serving; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 1.0,
    gamma_max: Annotated[
        int,
        typer.Option(
            min=1,
            max=MAX_LOOKAHEAD,
            help="Show exact figures for lookaheads up to this; the report has all up to 16.",
        ),
    ] = 8,
    num_speculative_tokens: Annotated[
        int, typer.Option("--num-speculative-tokens", "-k", min=1, help="K of the measured engine.")
    ] = 3,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 96,
    limit: Annotated[int, typer.Option(min=1, help="Prompts to use, from the first.")] = 12,
    output: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
) -> None:
    """Measure a draft: three acceptance rates, block efficiency, and speed against no draft.

    The target is served by vLLM twice, alone and with the draft, and both answer every prompt in
    turn. Acceptance is computed exactly from the answers, for every lookahead and verification
    rule, and block efficiency is also measured by the engine's own counters.

    Example:

        draftsmith evaluate --target smollm2-135m --draft demo --temperature 0.7 --output r.json
    """
    home = Home.default().ensure()
    if output is not None and not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: the folder {output.parent} does not exist.")
    target_folder, draft_folder = resolve_model(target, home), resolve_model(draft, home)
    workload = Workload(
        prompts=encode(prompts, target_folder, limit),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        num_speculative_tokens=num_speculative_tokens,
    )
    console = Console(highlight=False)
    drafts = {Path(draft).name: draft_folder}
    report = evaluate_drafts(target_folder, drafts, workload, home, on_stage=say)
    console.print(report_table(report))
    console.print(lookahead_table(report, gamma_max))
    if output is not None:
        output.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def encode(prompts: str, target: Path, limit: int) -> list[list[int]]:
    """Prompts as token ids, by the target's chat template.

    Raises:
        ValueError: a line of the prompts, or the tokenizer, is wrong.
    """
    chosen = load_prompts(prompts, limit=limit)
    from draftsmith.distill.models import load_tokenizer
    from draftsmith.distill.prompts import encode_prompts

    return encode_prompts(chosen, load_tokenizer(target), max_tokens=4096)


def say(stage: str) -> None:
    """Tell on stderr what has begun."""
    print(f"{stage} ...", file=sys.stderr)


def report_table(report: Report) -> Table:
    """Target alone and each draft, one column each."""
    at = f"T={report.temperature:g}, K={report.num_speculative_tokens}"
    table = Table(title=f"{report.target}, {report.prompts} prompts, {at}", title_justify="left")
    table.add_column("")
    for name in ("no draft", *report.drafts):
        table.add_column(name, justify="right")
    drafts = list(report.drafts.values())
    rates = {
        "sum min(p, q)": "alpha_overlap",
        "p(argmax q)": "alpha_greedy_draft",
        "argmax agreement": "alpha_argmax",
    }
    for label, field in rates.items():
        table.add_row(label, "", *(f"{one.acceptance[field]:.3f}" for one in drafts))
    table.add_row(
        "tokens a target call", "1.00", *(f"{one.block_efficiency:.2f}" for one in drafts)
    )
    plain = f"{report.plain_tokens_per_second:.1f}"
    table.add_row("tokens a second", plain, *(f"{one.tokens_per_second:.1f}" for one in drafts))
    table.add_row("speed against no draft", "1.00", *(f"{one.speedup:.2f}" for one in drafts))
    table.add_row("same answers", "", *(f"{one.same_answers:.0%}" for one in drafts))
    if report.temperature == 0:
        gaps = (max(one.gaps_at_first_difference, default=0.0) for one in drafts)
        table.add_row("widest tie broken, nats", "", *(f"{gap:.3f}" for gap in gaps))
    return table


def lookahead_table(report: Report, gamma_max: int) -> Table:
    """Exact block efficiency for lookaheads up to this, by each way to draft and to verify.

    At temperature 0 all of them are the same.
    """
    table = Table(title="Exact tokens a target call by lookahead K", title_justify="left")
    table.add_column("draft")
    for lookahead in range(1, gamma_max + 1):
        table.add_column(str(lookahead), justify="right")
    ways = {"": "block_efficiency"}
    if report.temperature > 0:
        ways |= {
            "  block rule": "block_efficiency_block_rule",
            "  greedy draft": "block_efficiency_greedy_draft",
        }
    for name, draft in report.drafts.items():
        for way, field in ways.items():
            values = list(draft.acceptance[field].values())[:gamma_max]
            table.add_row(way or name, *(f"{value:.2f}" for value in values))
    return table
