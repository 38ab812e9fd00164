"""`draftsmith distill`: run a recipe and register the draft that it makes."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.resolve import resolve_model
from draftsmith.cli.rollout_engine import run_with_engine
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.metrics import read_metrics
from draftsmith.distill.recipe import Recipe, builtin_recipes, load_recipe
from draftsmith.server.home import Home
from draftsmith.server.jobs.trainer import trainer_command, trainer_environment
from draftsmith.server.registry import Registry, Version


def distill(
    recipe: Annotated[
        str,
        typer.Argument(help=f"TOML file, or a built-in recipe: {', '.join(builtin_recipes())}."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Change a field of the recipe; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. Default: a new one under DRAFTSMITH_HOME."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --output.")
    ] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    register: Annotated[
        bool, typer.Option(help="Register the draft under the recipe's export name.")
    ] = True,
) -> None:
    """Distil a draft model from a teacher, as a recipe says.

    The student learns from its own responses (on-policy), mixed with recorded answers of the
    teacher. The run's folder gets the resolved recipe, metrics.jsonl, checkpoints, curves.png
    and the draft as a Hugging Face folder.

    Examples:

        draftsmith distill demo

        draftsmith distill mine.toml --set objective.divergence=jsd --set train.steps=2000

        draftsmith distill mine.toml --output runs/a --resume
    """
    if resume and output is None:
        raise ValueError("--resume needs --output: the folder of the run to go on with.")
    home = Home.default().ensure()
    folder = run_distillation(recipe, overrides or [], output, home, resume=resume, nproc=nproc)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_summary(folder))
    console.print(f"draft    {folder.draft}\ncurves   {folder.picture}")
    if register:
        version = register_draft(folder, home)
        console.print(f"registry {version.id}")


def run_distillation(
    recipe: str,
    overrides: list[str],
    output: Path | None,
    home: Home,
    *,
    resume: bool = False,
    nproc: int = 1,
) -> RunFolder:
    """Run the trainer as a process of its own and return the run's folder.

    Raises:
        ValueError: the recipe is wrong.
        typer.Exit: the trainer failed; it has said why on stderr.
    """
    parsed = load_recipe(recipe, overrides)  # wrong recipes fail before any model is loaded
    folder = output or home.runs / f"{parsed.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    command = trainer_command(recipe, folder.absolute(), nproc=nproc, resume=resume)
    for override in [*overrides, *resolved_teacher(parsed, home)]:
        command += ["--set", override]
    environment = trainer_environment()
    if parsed.rollout.engine == "vllm":
        code = run_with_engine(command, environment, folder.absolute())
    else:
        code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise typer.Exit(code if code > 0 else 1)
    return RunFolder(folder.absolute())


def resolved_teacher(recipe: Recipe, home: Home) -> list[str]:
    """Overrides that put folders in place of the teachers' names.

    A store has the tokenizer and the shape of its teacher: unless a student is cut out of it, the
    model itself need not be on this machine.
    """
    if recipe.teacher.stored is not None and not recipe.loads_teacher:
        return []
    overrides = [f"teacher.model={json.dumps(str(resolve_model(recipe.teacher.model, home)))}"]
    if recipe.teacher.members:
        members = [
            one.model_dump() | {"model": str(resolve_model(one.model, home))}
            for one in recipe.teacher.members
        ]
        tables = (", ".join(f"{name} = {json.dumps(one[name])}" for name in one) for one in members)
        overrides.append(f"teacher.members=[{', '.join(f'{{{table}}}' for table in tables)}]")
    return overrides


def register_draft(folder: RunFolder, home: Home) -> Version:
    """Put the draft of a finished run into the registry, under its recipe's export name."""
    recipe = json.loads(folder.recipe.read_text(encoding="utf-8"))
    return Registry(home).register(folder.draft, recipe["export"]["name"] or recipe["name"])


def _summary(folder: RunFolder) -> Table:
    evaluations = [one for one in read_metrics(folder.metrics) if one["kind"] == "evaluation"]
    before, after = evaluations[0], evaluations[-1]
    table = Table(title="Held-out acceptance", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    rows = {
        "sum min(p, q)": "alpha_overlap",
        "p(argmax q)": "alpha_greedy_draft",
        "argmax agreement": "alpha_argmax",
    }
    for label, field in rows.items():
        table.add_row(label, f"{before[field]:.3f}", f"{after[field]:.3f}")
    for lookahead in before["block_efficiency"]:
        values = [one["block_efficiency"][lookahead] for one in (before, after)]
        table.add_row(f"tokens a target call, K = {lookahead}", *(f"{one:.2f}" for one in values))
    return table
