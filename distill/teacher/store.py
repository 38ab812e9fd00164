"""A folder with a teacher's answers and its signal on them: complete or absent.

    manifest.json               who spoke, in which format, how much; sha256 of every other file
    model/                      the teacher's tokenizer and configuration, no weights
    answers.jsonl               its answers to each prompt, as token ids
    texts.jsonl                 which rows of which shard belong to which text
    head.safetensors            its vocabulary projection (hidden states only)
    signals-00000.safetensors   rows of many texts, one after the other

Rows have a fixed width and are read by their place, so that plain tensor files are enough: they
are mapped into memory, hold any dtype a model has, and need no schema and no decoder.

Legend: N tokens, G teacher width, V vocabulary, K stored tokens a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from draftsmith.distill.manifest import MANIFEST_NAME, FileEntry, TargetIdentity, sha256_file
from draftsmith.distill.sections.teacher import SignalFormat

Part = Literal["train", "heldout"]

MODEL_FOLDER = "model"
ANSWERS_NAME = "answers.jsonl"
TEXTS_NAME = "texts.jsonl"
HEAD_NAME = "head.safetensors"


class StoreManifest(BaseModel):
    """What a store holds. `top_k`, `temperature` (of the training part) and the extra column for
    the text's own token belong to the format `top_k`; see `kernels.top_k`."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    kind: Literal["teacher_signals"] = "teacher_signals"
    teacher: TargetIdentity
    format: SignalFormat
    dtype: str
    """Of the hidden states or the log-probabilities."""
    top_k: int | None = None
    temperature: float = 1.0
    texts: int
    tokens: int
    signal_bytes: int
    recipe: dict[str, Any]
    files: list[FileEntry]
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class StoredText:
    """Where the rows of a response lie: `len(response)` of them from `row` of `shard` on."""

    part: Part
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    shard: int
    row: int


@dataclass(frozen=True)
class StoredAnswers:
    """The teacher's answers to one prompt, one for each sampling."""

    part: Part
    id: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def shard_name(number: int) -> str:
    return f"signals-{number:05d}.safetensors"


class SignalStore:
    """Reads a complete store. A shard's hash is compared when it is first read."""

    def __init__(self, folder: Path, manifest: StoreManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._entries = {entry.path: entry for entry in manifest.files}
        self._shards: dict[int, Any] = {}

    @classmethod
    def open(cls, folder: Path) -> SignalStore:
        """Read the manifest and check that the files it lists are there.

        Raises:
            ValueError: the folder holds no complete store, or a file is missing or was changed.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise ValueError(
                f"teacher.stored: {folder} holds no recorded signals: `draftsmith teacher record` "
                "writes them, and goes on where it was interrupted."
            )
        try:
            store = cls(folder, StoreManifest.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(
                f"teacher.stored: {path} is no manifest of signals: {where}: {first['msg']}."
            ) from error
        for entry in store.manifest.files:
            file = folder / entry.path
            if not file.is_file() or file.stat().st_size != entry.size:
                raise ValueError(f"teacher.stored: {file} is missing or has another size.")
        return store

    @property
    def model_folder(self) -> Path:
        return self.folder / MODEL_FOLDER

    @cached_property
    def texts(self) -> list[StoredText]:
        return [
            StoredText(one["part"], tuple(one["prompt"]), tuple(one["response"]), one["shard"],
                       one["row"])
            for one in self._lines(TEXTS_NAME)
        ]  # fmt: skip

    @cached_property
    def answers(self) -> list[StoredAnswers]:
        return [
            StoredAnswers(one["part"], one["id"], tuple(one["prompt"]),
                          tuple(tuple(answer) for answer in one["answers"]))
            for one in self._lines(ANSWERS_NAME)
        ]  # fmt: skip

    @cached_property
    def head_VG(self) -> Tensor:
        self._check(HEAD_NAME)
        return load_file(self.folder / HEAD_NAME)["head"]

    def rows(self, text: StoredText) -> dict[str, Tensor]:
        """The text's rows of each tensor in its shard."""
        if text.shard not in self._shards:
            name = shard_name(text.shard)
            self._check(name)
            self._shards[text.shard] = safe_open(self.folder / name, framework="pt")
        shard = self._shards[text.shard]
        rows = slice(text.row, text.row + len(text.response))
        return {name: shard.get_slice(name)[rows] for name in shard.keys()}  # noqa: SIM118

    def _lines(self, name: str) -> list[dict[str, Any]]:
        self._check(name)
        lines = (self.folder / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def _check(self, name: str) -> None:
        path = self.folder / name
        if sha256_file(path) != self._entries[name].sha256:
            raise ValueError(f"teacher.stored: {path} was changed after it was recorded.")


def write_lines(path: Path, records: Iterable[StoredText | StoredAnswers]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(record)) + "\n" for record in records)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
