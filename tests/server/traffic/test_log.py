"""What is kept, for how long, and who decides."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from draftsmith.server.traffic.log import TrafficLog, load_redaction
from draftsmith.server.traffic.record import Record

DAY = 86_400.0
NOON = 1_800_000_000.0


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


def make(tmp_path: Path, clock: Clock, **options: object) -> TrafficLog:
    values: dict[str, object] = {"max_bytes": 1 << 20, "max_age_days": 30} | options
    return TrafficLog(tmp_path / "traffic", clock=clock, **values)  # type: ignore[arg-type]


def record(response: str = "yes", at: float = NOON, **values: object) -> Record:
    fields: dict[str, object] = {"prompt": "ready?", "model": "m", "finish_reason": "stop"}
    return Record.model_validate(fields | {"response": response, "created_at": at} | values)


def test_kept_records_come_back_in_order_and_by_filter(tmp_path: Path) -> None:
    clock = Clock()
    log = make(tmp_path, clock)
    first = record(metadata={"team": "a", "tier": "1"})
    second = record(at=NOON + DAY, model="n", metadata={"team": "b"})
    assert log.append(first)
    clock.now += DAY
    assert log.append(second)
    assert list(log.read()) == [first, second]
    assert list(log.read(metadata={"team": "a"})) == [first]
    assert list(log.read(metadata={"team": "a", "tier": "2"})) == []
    assert list(log.read(since=NOON + 1)) == list(log.read(model="n")) == [second]
    files = sorted((tmp_path / "traffic").iterdir())
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600, 0o600]
    assert stat.S_IMODE((tmp_path / "traffic").stat().st_mode) == 0o700
    log.clear()
    assert list(log.read()) == []


def test_old_days_go(tmp_path: Path) -> None:
    clock = Clock()
    log = make(tmp_path, clock, max_age_days=2)
    for day in range(5):
        clock.now = NOON + day * DAY
        log.append(record(str(day)))
    assert [one.response for one in log.read()] == ["2", "3", "4"]


def test_size_is_bounded_by_dropping_the_oldest(tmp_path: Path) -> None:
    clock = Clock()
    log = make(tmp_path, clock, max_bytes=4000)
    for number in range(200):
        clock.now = NOON + (number // 10) * DAY / 2
        log.append(record(f"{number:03d}" + "x" * 100))
        assert log.size() <= 4000 + 400
    kept = [one.response[:3] for one in log.read()]
    assert kept == [f"{number:03d}" for number in range(200 - len(kept), 200)]


def test_redaction_decides_and_its_failure_keeps_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def redact(content: dict[str, object]) -> dict[str, object] | None:
        if content["response"] == "drop":
            return None
        if content["response"] == "fail":
            raise RuntimeError(content["prompt"])
        if content["response"] == "no record":
            return {"prompt": content["prompt"]}
        return content | {"prompt": str(content["prompt"]).replace("Ann", "NAME")}

    log = make(tmp_path, Clock(), redact=redact)
    assert log.append(record(prompt="I am Ann."))
    assert not log.append(record("drop"))
    assert not log.append(record("fail"))
    assert not log.append(record("no record"))
    assert "RuntimeError in" in caplog.text
    assert "ValidationError in" in caplog.text
    assert "ready?" not in caplog.text, "what should not be kept is not logged either"
    assert [one.prompt for one in log.read()] == ["I am NAME."]


def test_a_line_that_is_being_written_is_left_alone_and_a_damaged_one_is_named(
    tmp_path: Path,
) -> None:
    log = make(tmp_path, Clock())
    log.append(record())
    (path,) = (tmp_path / "traffic").iterdir()
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert len(list(log.read())) == 1
    log.append(record("later"))  # by the next process: the half line is gone
    assert [one.response for one in log.read()] == ["yes", "later"]
    path.write_text(whole + whole[:20])
    (path.parent / "2999-01-01.jsonl").write_text(whole)
    assert len(list(log.read())) == 2, "a day that ends in half a line hides no other day"
    (path.parent / "2999-01-01.jsonl").unlink()
    path.write_text("{}\n" + whole)
    with pytest.raises(ValueError, match=r"jsonl:1 is not a record"):
        list(log.read())


def test_a_full_disk_loses_the_record_not_the_answer(tmp_path: Path) -> None:
    (tmp_path / "traffic").write_text("a file where the folder should be")
    assert not make(tmp_path, Clock()).append(record())


def test_redaction_by_name() -> None:
    assert load_redaction("copy:copy")({"a": 1}) == {"a": 1}
    for name in ("nothing.here:f", "copy:nothing", "copy", "math:pi"):
        with pytest.raises(ValueError, match="redaction"):
            load_redaction(name)
