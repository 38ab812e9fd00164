"""What a recipe logs to holds the same numbers as `metrics.jsonl`, and none twice."""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftsmith.distill.exits import Exit
from draftsmith.distill.loggers import check_installed, open_loggers, scalars
from draftsmith.distill.metrics import Metrics, read_metrics
from draftsmith.distill.sections import LogSection
from tests.distill.runs import errors, run


def test_scalars_are_named_by_their_path() -> None:
    record = {"loss": 1, "seconds": {"update": 0.5}, "positions": [0.9, 0.8], "note": "text"}
    assert dict(scalars(record, "train")) == {
        "train/loss": 1.0,
        "train/seconds/update": 0.5,
        "train/positions/1": 0.9,
        "train/positions/2": 0.8,
    }


def log_twice(section: LogSection, root: Path, records: int) -> None:
    """A run that is killed after `records` steps, and resumed after one step less."""
    for start, stop in ((0, records), (records - 1, records + 2)):
        metrics = Metrics(root / "metrics.jsonl", start)
        metrics.loggers += open_loggers(section, root, "test", start)
        for step in range(start + 1, stop + 1):
            metrics.write("train", step, loss=step + start / 10)
        metrics.close()
        time.sleep(1.1)  # W&B names folders by the second


EXPECTED = [(1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2), (5, 5.2)]


def test_tensorboard_replaces_what_is_done_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_twice(LogSection(tensorboard=True), tmp_path, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(one.step, pytest.approx(one.value)) for one in events] == EXPECTED
    written = [(one["step"], one["loss"]) for one in read_metrics(tmp_path / "metrics.jsonl")]
    assert written == EXPECTED


def offline_records(file: Path) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format, after a header of seven bytes."""
    content, place = file.read_bytes(), 7
    assert len(content) < 32 * 1024, "records of later blocks would have to be joined"
    while place + 7 <= len(content):
        _, length, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1, "a record in several parts"
        yield content[place + 7 : place + 7 + length]
        place += 7 + length


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_twice(LogSection(wandb=True), tmp_path, 3)
    rows: list[tuple[int, float]] = []
    runs = set()
    files = tmp_path.glob("wandb/offline-run-*/*.wandb")
    for file in sorted(files, key=lambda one: one.stat().st_mtime_ns):
        for record in map(Record.FromString, offline_records(file)):
            if record.HasField("run"):
                runs.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                row = {one.key or "/".join(one.nested_key): json.loads(one.value_json)
                       for one in items}  # fmt: skip
                rows.append((row["step"], row["train/loss"]))
    assert rows[:3] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert rows[3:] == EXPECTED[2:]
    assert len(runs) == 1


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_twice(LogSection(mlflow=True), tmp_path, 3)
    (found,) = mlflow.search_runs(experiment_names=["draftsmith"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "train/loss")
    assert dict(sorted((one.step, one.value) for one in history)) == dict(EXPECTED)


def test_a_missing_package_is_one_sentence(tiny_target: Path, tmp_path: Path) -> None:
    missing = next(
        (name for name in ("trackio", "mlflow") if importlib.util.find_spec(name) is None), None
    )
    if missing is None:
        pytest.skip("every logger is installed")
    with pytest.raises(ValueError, match=f"log.{missing}"):
        check_installed(LogSection.model_validate({missing: True}))
    result = run(tiny_target, tmp_path / "run", **{f"log__{missing}": True})
    assert result.returncode == Exit.WRONG_INPUT
    (error,) = errors(result.stderr)
    assert f"pip install 'draftsmith[{missing}]'" in error
    assert not (tmp_path / "run").exists()
