"""Fixtures that several layers share."""

from __future__ import annotations

import os

# Before any import of transformers: tests never ask a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest

from tests.tiny import make_target


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with tokenizer, as a Hugging Face folder."""
    return make_target(tmp_path_factory.mktemp("models") / "tiny-target")
