"""From what a user types to a model folder: a path, a name in the local store, or a hub id."""

from __future__ import annotations

import sys
from pathlib import Path

from draftsmith.distill.embedded import EMBEDDED_NAME, pull_embedded
from draftsmith.server.home import Home
from draftsmith.server.registry import Registry


def resolve_model(name: str, home: Home) -> Path:
    """The folder of the model called `name`.

    Tried in this order: an existing folder, a pulled model, a registered draft (by name or id),
    the embedded target, which is pulled when it is first asked for, and a Hugging Face hub id
    (`owner/name`), which is downloaded into the hub's own cache.

    Raises:
        ValueError: nothing has that name.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()
    stored = home.models / name
    if "/" not in name and stored.is_dir():
        return stored
    registry = Registry(home)
    if home.registry.is_dir() and _is_registered(registry, name):
        return registry.resolve(name).folder
    if name == EMBEDDED_NAME:
        print(f"fetching {name} ...", file=sys.stderr)
        return pull_embedded(home.models)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return pull_from_hub(name)
    raise ValueError(
        f"There is no model '{name}': give a folder, a hub id (owner/name), or one of those "
        "that `draftsmith models list` shows."
    )


def pull_from_hub(identifier: str) -> Path:
    """Download a model from the Hugging Face hub, weights in safetensors only.

    Raises:
        ValueError: the hub cannot be reached or has no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(identifier, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"'{identifier}' cannot be taken from the hub: {reason}") from error


def _is_registered(registry: Registry, name: str) -> bool:
    known = {one.name for one in registry.names()} | {one.id for one in registry.versions()}
    return name in known
