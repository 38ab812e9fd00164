"""`draftsmith demo`: the whole path once, from nothing to a served, distilled draft."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer
from openai import OpenAI
from rich.console import Console

from draftsmith.cli.background import served
from draftsmith.cli.distill import is_finished, register_draft, run_distillation
from draftsmith.cli.evaluate import encode, say
from draftsmith.cli.evaluation import evaluate_drafts
from draftsmith.cli.evaluation_tables import report_table
from draftsmith.cli.verdict import draft_verdict
from draftsmith.cli.workload import Workload
from draftsmith.distill.embedded import EMBEDDED_NAME, pull_embedded
from draftsmith.distill.processor import multiplies_bfloat16
from draftsmith.distill.recipe import load_recipe
from draftsmith.server.engine.command import uses_cpu_wheel
from draftsmith.server.home import Home

_QUESTION = "What does `heapq.nsmallest` do? Answer in two sentences."


def demo(
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Change a field of the demo's recipe."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Held-out prompts to measure on.")] = 12,
) -> None:
    """Distil a draft for a small model, measure it, and serve both.

    Takes about 15 minutes on 2 cores, and an hour where they do not multiply bfloat16. It fetches
    SmolLM2-135M-Instruct, distils a three-layer draft from it on prompts about Python's standard
    library, compares speed with and without it on held-out prompts, and streams one chat completion
    from the server through the `openai` client.
    """
    began = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    home = Home.default().ensure()
    if uses_cpu_wheel() and not multiplies_bfloat16():
        console.print(
            "This processor does not multiply bfloat16: everything is float32, and takes about an "
            "hour. Shorter, with a weaker draft: draftsmith demo --set train.steps=60"
        )

    console.rule("1/5  target", align="left")
    target = pull_embedded(home.models)
    console.print(f"{EMBEDDED_NAME} in {target}")

    console.rule("2/5  distil", align="left")
    recipe = load_recipe("demo", overrides)
    run = run_distillation("demo", overrides or [], None, home)
    if not is_finished(run):
        raise typer.Exit  # stopped by a signal; the trainer has said how to go on

    console.rule("3/5  measure", align="left")
    workload = Workload(
        prompts=encode(recipe.data.heldout, target, limit),
        max_tokens=recipe.rollout.max_new_tokens,
        temperature=recipe.evaluate.temperature,
        top_p=recipe.evaluate.top_p,
        num_speculative_tokens=recipe.evaluate.num_speculative_tokens,
    )
    drafts = {"before": run.initial, "after": run.draft}
    report = evaluate_drafts(target, drafts, workload, home, on_stage=say)
    report_file = run.root / "report.json"
    report_file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")

    console.rule("4/5  register", align="left")
    version = register_draft(run, home)
    console.print(f"{recipe.export_name} -> {version.id}")

    console.rule("5/5  serve", align="left")
    pair = ["--target", EMBEDDED_NAME, "--draft", recipe.export_name]
    with served(pair, home.logs / "demo-serve.log") as url:
        _stream_chat(url, console)

    console.rule(align="left")
    console.print(report_table(report))
    console.print(draft_verdict("The draft", report.drafts["after"], report.prompts))
    for label, path in {
        "draft": version.folder,
        "picture": run.picture,
        "metrics": run.metrics,
        "report": report_file,
    }.items():
        console.print(f"{label:<8} {path}")
    command = f"draftsmith serve --target {EMBEDDED_NAME} --draft {recipe.export_name}"
    console.print(f"serve it {command}")
    console.print(f"The demo took {(time.monotonic() - began) / 60:.1f} minutes.")


def _stream_chat(url: str, console: Console) -> None:
    """One streamed chat completion with the stock client."""
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("DRAFTSMITH_API_KEY", "none"))
    model = client.models.list().data[0].id
    console.print(f"[bold]user[/]  {_QUESTION}")
    console.print("[bold]model[/] ", end="")
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": _QUESTION}],
        max_tokens=96,
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            console.print(chunk.choices[0].delta.content, end="", markup=False)
    console.print()
