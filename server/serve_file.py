"""The deployments file: one TOML that says what a server serves, checked before anything starts.

    port = 8000
    max_in_flight = 64

    [models."support"]
    target = "my-org/my-model"
    draft = "support-draft"
    num_speculative_tokens = 4

    [models."large"]
    url = "http://10.0.0.7:8000"

What stands at the top holds for the whole server (`ServerSettings`), a table for one model: the
fields of `Settings`, or those of `RemoteModel` where it has a `url`.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from draftsmith.server.engine.command import uses_cpu_wheel
from draftsmith.server.engine.remote import RemoteModel
from draftsmith.server.settings import ServerSettings, Settings, wrong_setting

_SECRET = ("api_key", "database_url")
_FOLDERS = ("target", "draft")
_FILES = ("profile", "canary_prompts")


class _TableSettings(Settings):
    """The environment speaks of one model, and so of none where a file names several."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def read_serve_file(
    path: Path, resolve: Callable[[str], Path], **flags: object
) -> tuple[ServerSettings, list[Settings | RemoteModel]]:
    """What the file at `path` says.

    Args:
        resolve: from what a user calls a model to its folder.
        flags: settings of the whole server that go before the file's, unless they are None.

    Raises:
        ValueError: one sentence that names the first wrong setting.
    """
    tables = _read(path)
    models = tables.pop("models", None)
    if not isinstance(models, dict) or not models:
        raise ValueError(f'{path}: there is no model: add a table [models."NAME"].')
    given = tables | {name: value for name, value in flags.items() if value is not None}
    server = _server_settings(given)
    found = [_model(name, table, server, path, resolve) for name, table in models.items()]
    names = Counter(one.served_model_name for one in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{path}: two models are called '{twice[0]}': clients could not choose.")
    _check_memory(found)
    return server, found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}.") from error


def _server_settings(given: dict[str, Any]) -> ServerSettings:
    for name in _SECRET:
        if name in given:
            variable = f"DRAFTSMITH_{name.upper()}"
            raise ValueError(f"Setting '{name}' is a secret: set {variable} in the environment.")
    try:
        return ServerSettings(**given)
    except ValidationError as error:
        raise ValueError(wrong_setting(error)) from error


def _model(
    name: str, table: Any, server: ServerSettings, path: Path, resolve: Callable[[str], Path]
) -> Settings | RemoteModel:
    where = f"models.{name}"
    if not isinstance(table, dict):
        raise ValueError(f"Setting '{where}' is wrong: it must be a table.")
    for field in table:
        if field in ServerSettings.model_fields:
            raise ValueError(
                f"Setting '{where}.{field}' holds for the whole server: put it at the file's top."
            )
    own: dict[str, Any] = {"served_model_name": name} | table
    try:
        if "url" in table:
            return RemoteModel(**own)
        for field in {*_FOLDERS, *_FILES} & set(table):
            if not isinstance(table[field], str):
                raise ValueError(f"Setting '{where}.{field}' is wrong: it must be a string.")
            beside = path.parent / Path(table[field]).expanduser()
            is_path = field in _FILES or beside.is_dir()
            own[field] = beside if is_path else resolve(table[field])
        return _TableSettings(**server.model_dump(), **own)
    except ValidationError as error:
        raise ValueError(wrong_setting(error, where)) from error


def _check_memory(models: list[Settings | RemoteModel]) -> None:
    """vLLM takes nearly all memory of each GPU that it sees, unless it is told otherwise."""
    ours = [one for one in models if isinstance(one, Settings)]
    if len(ours) < 2 or uses_cpu_wheel():
        return
    for one in ours:
        if one.gpu_memory_fraction is None and one.devices is None:
            raise ValueError(
                f"The model '{one.served_model_name}' would take a whole GPU: give it "
                "gpu_memory_fraction, or devices of its own."
            )
