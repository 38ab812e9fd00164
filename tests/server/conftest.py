"""Three real vLLM engines for the whole session, started side by side.

`identical`: a gateway whose draft is the target itself. `partial`: a gateway whose draft is the
target, but may propose every other token only. `plain`: the target without a draft.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from draftsmith.distill.manifest import write_draft_vocabulary
from draftsmith.distill.models import load_tokenizer
from draftsmith.server.engine.command import EngineConfig
from draftsmith.server.engine.process import EngineProcess
from tests.server.processes import CONTEXT, ENGINE_START_S, GatewayProcess
from tests.tiny import make_target


@dataclass(frozen=True)
class Models:
    target: Path
    partial: Path
    other: Path


@dataclass(frozen=True)
class Fleet:
    identical: GatewayProcess
    partial: GatewayProcess
    plain: EngineProcess


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    partial = make_target(folder / "partial", max_position_embeddings=CONTEXT)
    write_draft_vocabulary(partial, list(range(0, len(load_tokenizer(partial)), 2)))
    return Models(
        make_target(folder / "target", max_position_embeddings=CONTEXT),
        partial,
        make_target(folder / "other", seed=1, max_position_embeddings=CONTEXT),
    )


@pytest.fixture(scope="session")
def fleet(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    homes = [tmp_path_factory.mktemp(name) for name in ("identical", "partial", "plain")]
    config = EngineConfig(
        target=models.target,
        dtype="float32",
        max_model_len=CONTEXT,
        max_num_seqs=16,
        max_num_batched_tokens=128,
        kv_cache_bytes=64 << 20,
        extra_args=("--max-logprobs", "400"),  # the whole vocabulary, for a remote teacher
    )
    with ExitStack() as stack:
        plain = EngineProcess(config, homes[2] / "engine.log")
        stack.callback(plain.stop)
        plain.start()
        identical = GatewayProcess(homes[0], models.target, models.target)
        stack.callback(identical.stop)
        partial = GatewayProcess(homes[1], models.target, models.partial)
        stack.callback(partial.stop)
        identical.wait_ready()
        partial.wait_ready()
        plain.wait_ready(ENGINE_START_S)
        yield Fleet(identical, partial, plain)


@pytest.fixture(scope="session")
def gateway(fleet: Fleet) -> GatewayProcess:
    return fleet.identical


@pytest.fixture
def target_copy(models: Models, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models.target, tmp_path / "copy"))
