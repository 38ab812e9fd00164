"""`draftsmith distill`: run a recipe and register the draft that it makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.resolve import resolve_model
from draftsmith.cli.stages import stage_table
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.metrics import read_metrics
from draftsmith.distill.recipe import builtin_recipes, load_recipe
from draftsmith.server.engine.command import preload_libraries
from draftsmith.server.home import Home
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
    and the draft as a Hugging Face folder. Each of a recipe's stages is such a run in a folder
    of its own.

    Examples:

        draftsmith distill demo

        draftsmith distill mine.toml --set objective.divergence=jsd --set train.steps=2000

        draftsmith distill mine.toml --output runs/a --resume
    """
    if resume and output is None:
        raise ValueError("--resume needs --output: the folder of the run to go on with.")
    home = Home.default().ensure()
    console = Console(highlight=False, soft_wrap=True)
    stages = load_recipe(recipe, overrides).stage_recipes(RunFolder(Path()))
    if stages:
        console.print(stage_table(stages))
    folder = run_distillation(recipe, overrides or [], output, home, resume=resume, nproc=nproc)
    runs = {f" of stage {name}": folder.stage(name) for name in stages} or {"": folder}
    for which, run in runs.items():
        console.print(_summary(run, f"Held-out acceptance{which}"))
        console.print(f"curves   {run.picture}")
    console.print(f"draft    {folder.draft}")
    if not register:
        return
    for name, stage in stages.items():
        if stage.export.kind == "student":  # a model of its own, such as the target of the draft
            console.print(f"registry {register_draft(folder.stage(name), home).id}")
    console.print(f"registry {register_draft(folder, home).id}")


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
    models = {field: resolve_model(name, home) for field, name in parsed.models().items()}
    folder = output or home.runs / f"{parsed.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    arguments = ["--recipe", recipe, "--output", str(folder.absolute())]
    resolved = [f"{field}={json.dumps(str(model))}" for field, model in models.items()]
    for override in [*overrides, *resolved]:
        arguments += ["--set", override]
    if resume:
        arguments.append("--resume")
    code = subprocess.run([*_launcher(nproc), *arguments], env=_environment(), check=False)
    if code.returncode:
        raise typer.Exit(code.returncode if code.returncode > 0 else 1)
    return RunFolder(folder.absolute())


def register_draft(folder: RunFolder, home: Home) -> Version:
    """Put the draft of a finished run into the registry, under its recipe's export name."""
    recipe = json.loads(folder.recipe.read_text(encoding="utf-8"))
    return Registry(home).register(folder.draft, recipe["export"]["name"] or recipe["name"])


def _launcher(nproc: int) -> list[str]:
    module = ["-m", "draftsmith.distill.train"]
    if nproc == 1:
        return [sys.executable, *module]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    return [sys.executable, *torchrun, *module]


def _environment() -> dict[str, str]:
    # DeepSpeed compiles its communication op with ninja, which lies beside this interpreter.
    tools = str(Path(sys.executable).parent)
    # glibc gives large buffers back to the kernel each time; tcmalloc halves a step's time.
    preload = [str(path) for path in preload_libraries()]
    return os.environ | {
        "PATH": os.pathsep.join([tools, os.environ.get("PATH", "")]),
        "LD_PRELOAD": os.pathsep.join([*preload, os.environ.get("LD_PRELOAD", "")]).strip(":"),
    }


def _summary(folder: RunFolder, title: str) -> Table:
    evaluations = [one for one in read_metrics(folder.metrics) if one["kind"] == "evaluation"]
    before, after = evaluations[0], evaluations[-1]
    table = Table(title=title, title_justify="left")
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
