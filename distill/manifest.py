"""`manifest.json`: the contract between the trainer that makes a model and its server.

Every exported folder carries one. It names the target that the model was distilled for, by
fingerprints rather than by path, so that the server can refuse a pair that does not match.
This module is one of the two that the server imports from `distill`; it never imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST_NAME = "manifest.json"
DRAFT_VOCABULARY_NAME = "draft_vocabulary.json"
"""In a draft's folder: the tokens that it may propose, where it may not propose them all."""
# Keys of config.json that say how or by what a folder was written, not what the model is.
_VOLATILE_CONFIG_KEYS = {"_name_or_path", "_model_name_or_path", "transformers_version"}
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
_TOKENIZER_FALLBACKS = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
_SAMPLE_BLOCKS = 64
_BLOCK_BYTES = 16 * 1024


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TargetIdentity(_Strict):
    """Which model a draft belongs to. Equal identities mean: the same weights and tokenizer."""

    name: str
    config_sha256: str
    weights_fingerprint: str
    """sha256 over the size and evenly spaced blocks of every weight file: cheap for any size,
    and different after any fine-tuning."""
    tokenizer_sha256: str
    vocab_size: int


class FileEntry(_Strict):
    path: str
    size: int
    sha256: str


class StageRecord(_Strict):
    """One run of a chain: who taught, what came of it, and how well it agreed with its teacher."""

    name: str
    teacher: TargetIdentity
    weights_fingerprint: str
    """Of the model that the stage made."""
    evaluation: dict[str, Any]


class Manifest(_Strict):
    schema_version: Literal[1] = 1
    kind: Literal["draft", "student"]
    target: TargetIdentity
    recipe: dict[str, Any]
    versions: dict[str, str]
    evaluation: dict[str, Any] = Field(default_factory=dict)
    stages: list[StageRecord] = Field(default_factory=list)
    """Where the recipe chains stages: all of them, in the order in which they ran."""
    files: list[FileEntry]
    created_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def target_identity(folder: Path, name: str | None = None) -> TargetIdentity:
    """Fingerprint the Hugging Face folder `folder`.

    Raises:
        ValueError: `config.json`, the weights or the tokenizer are missing or unreadable.
    """
    config = _read_json(folder / "config.json")
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG_KEYS}
    return TargetIdentity(
        name=name or model_name(folder),
        config_sha256=_sha256_json(kept),
        weights_fingerprint=_weights_fingerprint(folder),
        tokenizer_sha256=tokenizer_fingerprint(folder),
        vocab_size=int(config.get("vocab_size") or config.get("text_config", {})["vocab_size"]),
    )


def model_name(folder: Path) -> str:
    """What a model is called: as its recipe names it, if it was exported here, else its folder."""
    recipe = read_manifest(folder).recipe if (folder / MANIFEST_NAME).is_file() else {}
    named = recipe.get("export", {}).get("name") or recipe.get("name")
    return str(named or folder.resolve().name)


def tokenizer_fingerprint(folder: Path) -> str:
    """sha256 of what decides token ids: vocabulary, merges, added tokens and normalisation.

    Raises:
        ValueError: the folder holds no tokenizer.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        content = _read_json(path)
        keys = ("model", "added_tokens", "normalizer", "pre_tokenizer")
        return _sha256_json({key: content.get(key) for key in keys})
    parts = [folder / name for name in _TOKENIZER_FALLBACKS if (folder / name).is_file()]
    if not parts:
        raise ValueError(f"{folder} holds no tokenizer: tokenizer.json is missing.")
    return _sha256_json({part.name: sha256_file(part) for part in parts})


def list_files(folder: Path) -> list[FileEntry]:
    """Hash every file of `folder` but the manifest, in the order of their names."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return [
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=sha256_file(path),
        )
        for path in sorted(files)
    ]


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    path = folder / MANIFEST_NAME
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an exported folder.

    Raises:
        ValueError: there is none, or it does not have the form that this version writes.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {MANIFEST_NAME}: it was not exported by draftsmith.")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path} is not a valid manifest: {where}: {first['msg']}.") from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compare the files of `folder` with the sizes and hashes in its manifest.

    Raises:
        ValueError: a file is missing, added or changed; the first one is named.
    """
    found = {entry.path: entry for entry in list_files(folder)}
    for entry in manifest.files:
        actual = found.pop(entry.path, None)
        if actual is None:
            raise ValueError(f"{folder} lacks {entry.path}, which its manifest lists.")
        if actual != entry:
            raise ValueError(f"{folder / entry.path} was changed after its export: sha256 differs.")
    if found:
        raise ValueError(f"{folder / min(found)} is not listed in the manifest of its folder.")


def check_compatible(manifest: Manifest, target: Path) -> None:
    """Refuse a draft that was not distilled for the model in `target`.

    Raises:
        ValueError: says which of tokenizer, vocabulary, configuration or weights differs.
    """
    ours, theirs = manifest.target, target_identity(target)
    advice = f"it was distilled for '{ours.name}'; distil a draft for '{theirs.name}' instead."
    if ours.tokenizer_sha256 != theirs.tokenizer_sha256:
        raise ValueError(f"The draft's tokenizer is not the target's: {advice}")
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(
            f"The draft has {ours.vocab_size} tokens, the target {theirs.vocab_size}: {advice}"
        )
    if ours.config_sha256 != theirs.config_sha256:
        raise ValueError(
            f"The target's config.json is not the one the draft was made for: {advice}"
        )
    if ours.weights_fingerprint != theirs.weights_fingerprint:
        raise ValueError(f"The target's weights are not those the draft was made for: {advice}")


def write_draft_vocabulary(folder: Path, tokens: list[int]) -> None:
    text = json.dumps({"tokens": tokens}, separators=(",", ":"))
    (folder / DRAFT_VOCABULARY_NAME).write_text(text + "\n", encoding="utf-8")


def read_draft_vocabulary(folder: Path, vocab_size: int) -> list[int] | None:
    """The ascending token ids that the draft in `folder` may propose; None means all.

    Raises:
        ValueError: the file does not hold ascending ids below `vocab_size`.
    """
    path = folder / DRAFT_VOCABULARY_NAME
    if not path.is_file():
        return None
    tokens = _read_json(path).get("tokens")
    numbers = isinstance(tokens, list) and all(type(token) is int for token in tokens)
    if not numbers or not tokens or tokens != sorted(set(tokens)):
        raise ValueError(f"{path} must hold 'tokens': ascending token ids, at least one.")
    if tokens[0] < 0 or tokens[-1] >= vocab_size:
        raise ValueError(f"{path} names tokens outside of 0 to {vocab_size - 1}.")
    return tokens


def flush_to_disk(path: Path) -> None:
    """Return when what was written to this file or folder will survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _weights_fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no weights: no .safetensors file is in it.")
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        step = max(_BLOCK_BYTES, size // _SAMPLE_BLOCKS)
        with path.open("rb") as stream:
            for offset in range(0, size, step):
                stream.seek(offset)
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _sha256_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent} is not a Hugging Face model folder: {path.name} is missing."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object.")
    return content
