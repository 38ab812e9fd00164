"""Other weights in a running engine: loaded whole or not at all, and nothing of the old is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from draftsmith.distill.manifest import write_draft_vocabulary
from draftsmith.server.engine.weights import WEIGHTS_ROUTE, model_shape
from tests.server.conftest import Fleet, Models
from tests.tiny import make_target

PROMPT = [7, 20, 31, 45, 9, 77, 12, 150] * 5  # longer than a block, so that it is cached


@pytest.fixture
def engine(fleet: Fleet, models: Models) -> Iterator[httpx.Client]:
    """The engine without a draft, which gets its own weights back."""
    with fleet.plain.client(60.0) as client:
        yield client
        assert load(client, models.target, "back").status_code == 200


def load(client: httpx.Client, folder: Path, version: str = "v") -> httpx.Response:
    body = {"part": "target", "folder": str(folder), "version": version}
    return client.post(WEIGHTS_ROUTE, json=body)


def answer(client: httpx.Client, **options: Any) -> dict[str, Any]:
    body = {"model": "target", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 1}
    body |= {"ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True}
    response = client.post("/v1/completions", json=body | options)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def log_probs(folder: Path, response: list[int]) -> list[float]:
    """What Hugging Face gives the tokens of `response` after the prompt, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits_TV = model(torch.tensor([PROMPT + response])).logits[0].double()
    places = range(len(PROMPT) - 1, len(PROMPT) + len(response) - 1)
    chosen = zip(places, response, strict=True)
    return [float(logits_TV[place].log_softmax(-1)[token]) for place, token in chosen]


def test_what_answers_are_the_new_weights(engine: httpx.Client, models: Models) -> None:
    before = answer(engine)
    assert before["logprobs"]["token_logprobs"] == pytest.approx(
        log_probs(models.target, before["token_ids"]), abs=1e-4
    )
    said = load(engine, models.other, "seven").json()
    assert said["version"] == engine.get(WEIGHTS_ROUTE).json()["target"] == "seven"
    after = answer(engine)
    assert after["token_ids"] != before["token_ids"]
    new = log_probs(models.other, after["token_ids"])
    assert after["logprobs"]["token_logprobs"] == pytest.approx(new, abs=1e-4)


def test_rows_of_the_head_come_and_go(engine: httpx.Client, models: Models, tmp_path: Path) -> None:
    """A folder's own list of tokens counts, whatever the engine had before."""
    before = answer(engine)
    sampled = answer(engine, temperature=1.0, max_tokens=64)["token_ids"]
    assert any(token % 2 and token % 3 for token in sampled)
    for step in (2, 3):
        folder = shutil.copytree(models.target, tmp_path / str(step))
        write_draft_vocabulary(folder, list(range(0, 366, step)))
        assert load(engine, folder).status_code == 200
        sampled = answer(engine, temperature=1.0, max_tokens=64, logprobs=None)["token_ids"]
        assert all(token % step == 0 for token in sampled)
        assert len(set(sampled)) > 1
    assert load(engine, models.target).status_code == 200
    assert answer(engine) == before


def _wider(folder: Path) -> None:
    shutil.rmtree(folder)
    make_target(folder, max_position_embeddings=4096, intermediate_size=256)


def _other_position_encoding(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))


def _cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def _not_a_number(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _one_less(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _foreign_vocabulary(folder: Path) -> None:
    write_draft_vocabulary(folder, [1, 2, 4000])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_wider, "intermediate_size"),
        (_other_position_encoding, "rms_norm_eps = 0.5"),
        (_cut_short, "not a whole safetensors file"),
        (_not_a_number, "down_proj.weight holds values that are not finite"),
        (_one_less, "lacks the tensor model.norm.weight"),
        (_foreign_vocabulary, "outside of 0 to 365"),
        (shutil.rmtree, "config.json cannot be read"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    engine: httpx.Client, target_copy: Path, spoil: Any, reason: str
) -> None:
    before = answer(engine)
    spoil(target_copy)
    refused = load(engine, target_copy)
    assert refused.status_code == 409, refused.text
    assert reason in refused.json()["error"]["message"]
    assert answer(engine) == before


def test_an_engine_without_a_draft_has_none_to_exchange(
    engine: httpx.Client, models: Models
) -> None:
    body = {"part": "draft", "folder": str(models.target), "version": "v"}
    refused = engine.post(WEIGHTS_ROUTE, json=body)
    assert (refused.status_code, "no draft" in refused.text) == (409, True)


def test_shape_is_of_the_model_not_of_the_file(models: Models, tmp_path: Path) -> None:
    """Another dtype, and the same tensors over several files, are the same shape."""
    folder = shutil.copytree(models.target, tmp_path / "copy")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert model_shape(models.target).difference(model_shape(folder)) is None
