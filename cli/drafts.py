"""`draftsmith drafts`: the registered drafts, and which of them a running server uses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from draftsmith.cli.publish import log_to_mlflow, push_to_hub
from draftsmith.distill.manifest import verify_files
from draftsmith.server.database.connect import open_database
from draftsmith.server.garbage import Collector
from draftsmith.server.home import Home
from draftsmith.server.registry import Registry

drafts = typer.Typer(
    no_args_is_help=True, help="List drafts, move them, and change the one that is served."
)

_TIMEOUT_S = 900.0  # another engine may have to start, and start again
Url = Annotated[str, typer.Option(envvar="DRAFTSMITH_URL", help="Where the server listens.")]
_LOCAL = "http://127.0.0.1:8000"


@drafts.command("list")
def list_drafts() -> None:
    """Show the registered drafts, with their names."""
    registry = _registry()
    console = Console(highlight=False)
    if registry.versions():
        console.print(drafts_table(registry))
    else:
        console.print("No drafts yet: `draftsmith distill` makes one.")


@drafts.command()
def show(name: Annotated[str, typer.Argument(help="Name or id of a registered draft.")]) -> None:
    """Print a draft's manifest: its target, recipe, figures and files."""
    version = _registry().resolve(name)
    print(json.dumps({"id": version.id} | version.manifest.model_dump(mode="json"), indent=2))


@drafts.command("import")
def import_draft(
    folder: Annotated[Path, typer.Argument(help="Folder that `draftsmith` exported.")],
    name: Annotated[str | None, typer.Option(help="Name that shall point to it.")] = None,
) -> None:
    """Copy an exported folder into the registry and print its id; damaged ones are refused."""
    print(_registry().register(folder, name).id)


@drafts.command("export")
def export_draft(
    name: Annotated[str, typer.Argument(help="Name or id of a registered draft.")],
    folder: Annotated[Path | None, typer.Argument(help="Folder to make.")] = None,
    hub: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Repository of a Hugging Face hub.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who sees a new repository.")
    ] = True,
    mlflow: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Registered model of an MLflow server.")
    ] = None,
) -> None:
    """Copy a registered draft to a folder, a hub or MLflow, for other machines.

    Hub and MLflow are found and entered as by their own tools: HF_ENDPOINT and HF_TOKEN,
    MLFLOW_TRACKING_URI. Files are checked against the manifest first.

    Examples:

        draftsmith drafts export my-draft folder

        draftsmith drafts export my-draft --hub my-org/my-draft
    """
    if sum(one is not None for one in (folder, hub, mlflow)) != 1:
        raise ValueError("Give one place: a folder, --hub or --mlflow.")
    version = _registry().resolve(name)
    verify_files(version.folder, version.manifest)
    if hub is not None:
        print(push_to_hub(version, hub, private=private))
    elif mlflow is not None:
        print(log_to_mlflow(version, mlflow))
    elif folder is not None:
        if folder.exists():
            raise ValueError(f"{folder} is there already: choose another folder.")
        shutil.copytree(version.folder, folder)


@drafts.command()
def gc(
    keep: Annotated[
        int, typer.Option(min=0, help="So many of the newest drafts without any use stay.")
    ] = 5,
    job_days: Annotated[
        float,
        typer.Option(min=0, help="Checkpoints and models of jobs that ended longer ago go too."),
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")
    ] = False,
) -> None:
    """Remove drafts that nothing refers to, and what ended jobs left behind.

    A draft stays while a name points to it, a deployment serves it or could go back to it, a job
    that is not over has made it or reads it, a process of this machine has it on its command line,
    or it was registered within the last hour. Metrics and logs of jobs stay.
    """
    home = Home.default().ensure()
    database = open_database(home, os.environ.get("DRAFTSMITH_DATABASE_URL") or None)
    try:
        collector = Collector(home, database, keep=keep, job_age_s=job_days * 86_400)
        found = collector.find()
        size = found.bytes
        if not dry_run:
            found = collector.collect()
    finally:
        database.close()
    for version in found.versions:
        print(version.id)
    for folder in found.folders:
        print(folder.relative_to(home.root))
    verb = "would be freed" if dry_run else "freed"
    print(f"{size / 2**20:.1f} MiB {verb}")


@drafts.command()
def promote(
    name: Annotated[str, typer.Argument(help="Name or id of a registered draft.")],
    url: Url = _LOCAL,
    min_share: Annotated[
        float,
        typer.Option(
            min=0, help="Of the accepted tokens a target call of the draft before; less: it goes."
        ),
    ] = 0.9,
) -> None:
    """Let a running server use another draft, if it does not do worse than the one it has.

    Drafts of the same shape are exchanged in the live engine. The server measures both on its
    canary prompts and goes back by itself. Set DRAFTSMITH_API_KEY if it asks for a key.

    Example:

        draftsmith drafts promote my-draft --min-share 1.0
    """
    event = _change(url, "promote", {"draft": name, "min_share": min_share})
    for when in ("before", "after"):
        if event[when] is not None:
            tau, speed = event[when]["block_efficiency"], event[when]["tokens_per_second"]
            print(f"{when:7}{tau:.2f} tokens a target call, {speed:.1f} tokens a second")
    _tell(event)


@drafts.command()
def rollback(url: Url = _LOCAL) -> None:
    """Let a running server use the draft of before the last promotion again."""
    _tell(_change(url, "rollback", {}))


def drafts_table(registry: Registry) -> Table:
    table = Table(title="Drafts", title_justify="left")
    for column in ("name", "id", "target", "argmax agreement", "exported"):
        table.add_column(column, overflow="fold")
    names: dict[str, list[str]] = {}
    for one in registry.names():
        names.setdefault(one.version, []).append(one.name)
    for version in registry.versions():
        agreement = version.manifest.evaluation.get("alpha_argmax")
        table.add_row(
            ", ".join(names.get(version.id, [])),
            version.id,
            version.manifest.target.name,
            "" if agreement is None else f"{agreement:.3f}",
            version.manifest.created_at,
        )
    return table


def _change(url: str, action: str, body: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError with the server's own sentence."""
    key = os.environ.get("DRAFTSMITH_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            (deployment,) = _checked(client.get("/v1/deployments"))["data"]
            return _checked(client.post(f"/v1/deployments/{deployment['id']}/{action}", json=body))
    except httpx.TransportError as error:
        raise ValueError(f"No server answers at {url}: start one or give --url.") from error


def _checked(answer: httpx.Response) -> dict[str, Any]:
    try:
        said: dict[str, Any] = answer.json()
    except ValueError:
        raise ValueError(f"{answer.url.host} is no draftsmith server.") from None
    if answer.status_code != 200:
        raise ValueError(said["error"]["message"])
    return said


def _tell(event: dict[str, Any]) -> None:
    if event["outcome"] != "done":
        raise ValueError(f"{event['outcome'].replace('_', ' ')}: {event['reason']}")
    how = "in the live engine" if event["way"] == "exchange" else "in another engine"
    print(f"serves {event['draft'] or 'an unregistered draft'}, {how}, {event['swap_ms']:.0f} ms")


def _registry() -> Registry:
    return Registry(Home.default().ensure())
