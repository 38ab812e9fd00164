"""`draftsmith plan check`: was the plan right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from draftsmith.cli.plan_tables import check_table
from draftsmith.cli.resolve import resolve_model
from draftsmith.server.home import Home


def check(
    run: Annotated[str, typer.Argument(help="Folder of a finished run, or a draft.")],
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="Of `plan draft`; else the last one of the run's recipe."),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="JSON of `draftsmith evaluate` or `bench`, for speed in vLLM."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table.")] = None,
) -> None:
    """Compare what a plan predicted with what was measured after training.

    Example:

        draftsmith plan check runs/best --measured evaluation.json
    """
    from draftsmith.distill.sizing.check import check_plan, read_outcome
    from draftsmith.distill.sizing.plan import Plan

    home = Home.default().ensure()
    folder = Path(run)
    outcome = read_outcome(folder if folder.is_dir() else resolve_model(run, home), measured)
    found = Plan.read(plan_file or home.plans / f"{outcome.recipe.name}.json")
    lines = check_plan(found, outcome)
    Console(highlight=False, soft_wrap=True).print(check_table(found, lines))
    if json_file is not None:
        json_file.write_text(lines.model_dump_json(indent=2) + "\n", encoding="utf-8")
