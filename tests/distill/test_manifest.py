"""The contract between trainer and server: fingerprints that notice what matters, and only that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from draftsmith.distill.manifest import (
    Manifest,
    check_compatible,
    list_files,
    read_manifest,
    target_identity,
    verify_files,
    write_manifest,
)
from tests.tiny import make_target


@pytest.fixture
def target(tiny_target: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_target, tmp_path / "target"))


def manifest_for(target: Path, folder: Path) -> Manifest:
    return Manifest(
        kind="draft",
        target=target_identity(target),
        recipe={},
        versions={},
        files=list_files(folder),
    )


def test_identity_does_not_depend_on_place_or_writer(target: Path, tmp_path: Path) -> None:
    before = target_identity(target, "name")
    copy = Path(shutil.copytree(target, tmp_path / "elsewhere"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9.9"}))
    assert target_identity(copy, "name") == before


def test_one_changed_weight_is_another_target(target: Path, tmp_path: Path) -> None:
    manifest = manifest_for(target, target)
    path = target / "model.safetensors"
    weights = load_file(path)
    name = max(weights, key=lambda one: weights[one].numel())
    weights[name] = weights[name] + 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are not those.*distil a draft"):
        check_compatible(manifest, target)


def test_other_vocabulary_tokenizer_and_config_are_told_apart(target: Path, tmp_path: Path) -> None:
    manifest = manifest_for(target, target)
    smaller = make_target(tmp_path / "smaller", vocab_size=300)
    with pytest.raises(ValueError, match="tokenizer"):
        check_compatible(manifest, smaller)
    shutil.copy(target / "tokenizer.json", smaller / "tokenizer.json")
    with pytest.raises(ValueError, match=r"366 tokens, the target \d+"):
        check_compatible(manifest, smaller)
    deeper = make_target(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"config\.json"):
        check_compatible(manifest, deeper)
    check_compatible(manifest, target)


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_files_are_verified(target: Path, damage: str) -> None:
    write_manifest(target, manifest_for(target, target))
    manifest = read_manifest(target)
    verify_files(target, manifest)
    victim = target / ("extra.json" if damage == "add" else "config.json")
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_text("{}")
    with pytest.raises(ValueError, match=victim.name):
        verify_files(target, manifest)


def test_wrong_manifests_are_one_sentence(target: Path) -> None:
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        read_manifest(target)
    (target / "manifest.json").write_text('{"kind": "drift"}')
    with pytest.raises(ValueError, match="not a valid manifest: kind"):
        read_manifest(target)


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        target_identity(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 3}')
    with pytest.raises(ValueError, match="no weights"):
        target_identity(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no tokenizer"):
        target_identity(tmp_path)
