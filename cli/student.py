"""`draftsmith student`: make a student and see what it would cost to serve, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.resolve import resolve_model
from draftsmith.distill.recipe import Recipe, load_recipe
from draftsmith.server.home import Home

if TYPE_CHECKING:
    from draftsmith.distill.make import Made
    from draftsmith.distill.student.sizing import Size

student = typer.Typer(no_args_is_help=True, help="Make students without training them.")


@student.callback()
def group() -> None:
    """Keeps `make` a command of its own while it is the only one."""


@student.command()
def make(
    output: Annotated[Path, typer.Option(help="New folder for the student.")],
    recipe: Annotated[
        str | None, typer.Argument(help="TOML file or built-in recipe, for its [student].")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder, name in the store or hub id; else the recipe's.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Change a field of the recipe; repeatable."),
    ] = None,
) -> None:
    """Write the student that a run would start with, and what it costs beside its teacher.

    Parameters, bytes and products are counted. The cost ratio is predicted: a decoding step of
    one sequence reads all weights that it multiplies, and takes as long as that.

    Examples:

        draftsmith student make demo --output students/demo

        draftsmith student make --teacher smollm2-135m --set student.layers=[0,1,29] --output cut
    """
    home = Home.default().ensure()
    given = [*(overrides or []), *([f"teacher.model={teacher}"] if teacher else [])]
    parsed = _recipe(recipe, given)
    if parsed.stages:
        raise ValueError(
            "student make takes a recipe without stages: a stage's student may be one that the "
            "stages before it have to make."
        )
    resolved = parsed.with_models(lambda name: str(resolve_model(name, home)))
    from draftsmith.distill.make import make as make_student  # loads torch

    made = make_student(resolved, output)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(made))
    console.print(
        f"predicted cost ratio c = {made.cost_ratio:.3f}: a step of the student by a step of the "
        "teacher, by the\nbytes that both read; a model, not a measurement."
    )
    console.print(f"student  {output}")


def _recipe(source: str | None, overrides: list[str]) -> Recipe:
    # A student needs no training, which a recipe has to name.
    return load_recipe(source or "tiny", overrides if source else ["student={}", *overrides])


def _table(made: Made) -> Table:
    table = Table()
    table.add_column("")
    table.add_column("teacher", justify="right")
    table.add_column("student", justify="right")
    for label, show in _ROWS.items():
        table.add_row(label, show(made.teacher), show(made.student))
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M"


def _head(size: Size) -> str:
    return _millions(size.head) if size.head else "the embedding's"


_ROWS: dict[str, Any] = {
    "parameters": lambda size: _millions(size.parameters),
    "  embedding": lambda size: _millions(size.embedding),
    "  layers": lambda size: _millions(size.layers),
    "  head": _head,
    "rows of the head that are multiplied": lambda size: f"{size.rows:,}",
    "bytes stored": lambda size: f"{size.stored_bytes / 1e6:,.1f} MB",
    "bytes read a token": lambda size: f"{size.bytes_a_token / 1e6:,.1f} MB",
    "products a token": lambda size: f"{size.flops_a_token / 1e6:,.1f} MFLOP",
}
