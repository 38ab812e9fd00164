"""Recorded signals: the same training as with the live teacher, without the teacher."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draftsmith.distill.exits import Exit
from draftsmith.distill.models import load_model
from draftsmith.distill.recipe import Recipe, load_recipe
from draftsmith.distill.teacher import SignalStore, open_store
from draftsmith.distill.teacher.record import record
from tests.distill.runs import TINY, run, succeed

# A random student needs the teacher's shape only, and the store has it.
SETTINGS: dict[str, Any] = {
    "rollout__student_fraction": 0,
    "rollout__answers_per_prompt": 2,
    "student__init": "random",
    "train__eval_every": 2,
}
NOWHERE = Path("nowhere")


def recipe_of(target: Path, **settings: Any) -> Recipe:
    fields = TINY | {name.replace("__", "."): value for name, value in settings.items()}
    fields["teacher.model"] = str(target)
    return load_recipe("tiny", [f"{name}={json.dumps(value)}" for name, value in fields.items()])


@pytest.fixture(scope="module")
def hidden(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "hidden"
    record(recipe_of(tiny_target, **SETTINGS), folder, shard_bytes=16384)
    return folder


@pytest.fixture(scope="module")
def live(tiny_target: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "live"
    return [*succeed(tiny_target, output, **SETTINGS), weights_of(output)]


def weights_of(output: Path) -> dict[str, Any]:
    return load_file(output / "draft" / "model.safetensors")


def test_hidden_states_train_to_the_same_bits_without_the_teacher(
    hidden: Path, live: list[dict[str, Any]], tmp_path: Path
) -> None:
    *records, weights = live
    assert succeed(NOWHERE, tmp_path / "run", **SETTINGS, teacher__stored=str(hidden)) == records
    for name, tensor in weights_of(tmp_path / "run").items():
        assert torch.equal(tensor, weights[name])


def test_all_of_the_vocabulary_trains_alike(
    tiny_target: Path, live: list[dict[str, Any]], tmp_path: Path
) -> None:
    *records, weights = live
    store = tmp_path / "store"
    record(recipe_of(tiny_target, **SETTINGS), store, format="top_k", top_k=10_000)
    stored = succeed(NOWHERE, tmp_path / "run", **SETTINGS, teacher__stored=str(store))
    for ours, theirs in zip(stored, records, strict=True):
        for name in {"loss", "forward_kl", "alpha_overlap"} & set(theirs):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    for name, tensor in weights_of(tmp_path / "run").items():
        # Adam divides by the gradient's own size: its rounding counts where that is small.
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-4)


def test_a_cut_student_with_a_small_vocabulary_trains_on_a_few_tokens(
    tiny_target: Path, tmp_path: Path
) -> None:
    cut = SETTINGS | {"student__init": "cut", "student__vocabulary": 100}
    record(recipe_of(tiny_target, **cut), tmp_path / "store", format="top_k", top_k=8)
    records = succeed(tiny_target, tmp_path / "run", **cut, teacher__stored=str(tmp_path / "store"))
    losses = [one["loss"] for one in records if one["kind"] == "train"]
    assert losses[-1] < losses[0]


def test_the_size_is_told_before_and_is_what_the_tensors_take(
    tiny_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = record(recipe_of(tiny_target), tmp_path / "store", format="top_k", top_k=20)
    shards = (tmp_path / "store").glob("signals-*.safetensors")
    tensors = [tensor for path in shards for tensor in load_file(path).values()]
    assert manifest.signal_bytes == sum(one.numel() * one.element_size() for one in tensors)
    bound, exact = (int(line.split(" bytes")[0].split()[-1].replace(",", ""))
                    for line in capsys.readouterr().out.splitlines()[:2])  # fmt: skip
    # 12 prompts and 4 held-out ones, 12 tokens each at most: 21 ids and log-probs, and a tail.
    assert bound == 16 * 12 * (21 * 8 + 4)
    assert exact == manifest.signal_bytes <= bound


def test_the_stored_tokens_are_the_most_likely_ones_and_the_texts_own(
    tiny_target: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_target, objective__temperature=2.0, rollout__answers_per_prompt=2)
    record(recipe, tmp_path / "store", format="top_k", top_k=5)
    store = SignalStore.open(tmp_path / "store")
    model = load_model(tiny_target, torch.float32)
    seen = set()
    for text in store.texts:
        if (text.part, len(text.response)) in seen:
            continue
        seen.add((text.part, len(text.response)))
        rows = store.rows(text)
        tokens = torch.tensor(text.prompt + text.response)
        logits_TV = model(tokens[None]).logits[0, len(text.prompt) - 1 : -1]
        log_p_TV = (logits_TV / (2.0 if text.part == "train" else 1.0)).log_softmax(-1)
        ids_TK = rows["ids"].long()
        assert ids_TK.shape == (len(text.response), 6)
        torch.testing.assert_close(rows["log_p"], log_p_TV.gather(-1, ids_TK), rtol=0, atol=2e-5)
        assert torch.equal(ids_TK[:, :5].sort().values, log_p_TV.topk(5).indices.sort().values)
        assert (ids_TK == torch.tensor(text.response)[:, None]).any(-1).all()
        mass_T = rows["log_p"].exp().sum(-1) + rows["log_tail"].exp()
        torch.testing.assert_close(mass_T, torch.ones_like(mass_T))


def test_a_killed_recording_goes_on_to_the_same_files(tiny_target: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_target, data__limit=64, rollout__max_new_tokens=32)
    command = [sys.executable, "-m", "draftsmith.distill.teacher.record", "--recipe", "tiny"]
    command += ["--output", str(tmp_path / "killed"), "--shard-bytes", "4096"]
    fields = TINY | {"data.limit": 64, "rollout.max_new_tokens": 32}
    fields["teacher.model"] = str(tiny_target)
    for name, value in fields.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    partial = tmp_path / "killed.partial"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(partial.glob("signals-0000[3-9].safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    first = partial / "signals-00000.safetensors"
    before = first.stat().st_mtime_ns

    with pytest.raises(ValueError, match="unfinished recording of something else"):
        record(recipe, tmp_path / "killed", shard_bytes=8192)
    manifest = record(recipe, tmp_path / "killed", shard_bytes=4096)
    assert (tmp_path / "killed" / first.name).stat().st_mtime_ns == before, "not written again"
    assert not partial.exists()
    whole = record(recipe, tmp_path / "whole", shard_bytes=4096)
    assert manifest.files == whole.files


def test_what_cannot_be_recorded_is_refused(tiny_target: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        record(recipe_of(tiny_target), tmp_path / "there")
    with pytest.raises(ValueError, match="bytes free, but the signals may take"):
        record(recipe_of(tiny_target, rollout__max_new_tokens=10**12), tmp_path / "large")
    with pytest.raises(ValueError, match="leave out remote and members"):
        record(recipe_of(tiny_target, teacher__remote__url="http://x"), tmp_path / "remote")
    assert [one.name for one in tmp_path.iterdir()] == ["there"]


def test_on_policy_text_is_refused_before_anything_is_loaded(tiny_target: Path) -> None:
    with pytest.raises(ValueError, match=r"rollout\.student_fraction: a stored teacher"):
        recipe_of(tiny_target, teacher__stored="x", rollout__student_fraction=0.1)
    with pytest.raises(ValueError, match=r"objective\.schedule: a stored teacher"):
        recipe_of(tiny_target, teacher__stored="x", objective__name="skew_kl")
    assert recipe_of(tiny_target, teacher__stored="x").student_fraction == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__limit": 13}, "has 0 answers to the prompt"),
        ({"rollout__answers_per_prompt": 3}, "has 2 answers to the prompt"),
        ({"student__init": "cut"}, "is not the model 'tiny-target' whose signals lie in"),
    ],
)
def test_a_store_of_something_else_is_refused(
    hidden: Path, tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any], message: str
) -> None:
    from tests.tiny import make_target

    other = make_target(tmp_path_factory.mktemp("other"), seed=3)
    output = tmp_path_factory.mktemp("runs") / "run"
    result = run(other, output, **(SETTINGS | settings), teacher__stored=str(hidden))
    assert result.returncode == Exit.WRONG_INPUT
    assert message in result.stderr


def test_a_damaged_or_missing_store_is_refused(
    hidden: Path, tiny_target: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no recorded signals"):
        SignalStore.open(tmp_path)
    store = SignalStore.open(hidden)
    text = store.texts[-1]
    shard = hidden / f"signals-{text.shard:05d}.safetensors"
    content = shard.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    try:
        shard.write_bytes(flipped)
        with pytest.raises(ValueError, match="was changed after it was recorded"):
            store.rows(text)
        shard.write_bytes(content[:-1])
        with pytest.raises(ValueError, match="missing or has another size"):
            SignalStore.open(hidden)
    finally:
        shard.write_bytes(content)
    assert hashlib.sha256(shard.read_bytes()).hexdigest() in {
        entry.sha256 for entry in store.manifest.files
    }


def test_another_temperature_needs_another_recording(tiny_target: Path, tmp_path: Path) -> None:
    record(recipe_of(tiny_target), tmp_path / "store", format="top_k", top_k=4)
    asked = recipe_of(
        tiny_target, objective__temperature=2.0, teacher__stored=str(tmp_path / "store")
    )
    with pytest.raises(ValueError, match=r"objective\.temperature is 2\.0, but"):
        open_store(asked)
