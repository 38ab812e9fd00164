"""The traffic log: a file of JSON lines a day, bounded in size and age.

Only this user may read it. What goes in passes the operator's redaction first; when that fails,
nothing is written.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from draftsmith.server.named_function import load_function
from draftsmith.server.traffic.record import Record

_log = logging.getLogger("draftsmith.traffic")
_BLOCK = 1 << 16

Redaction = Callable[[dict[str, object]], dict[str, object] | None]
"""Gets a record as plain data; returns what may be kept of it, or None for nothing."""


class TrafficLog:
    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        max_age_days: int,
        redact: Redaction | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            max_bytes: of all files together; the oldest days go first.
            max_age_days: a day's file goes when it is older.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self.max_age_days = max_age_days
        self._redact = redact
        self._clock = clock

    def append(self, record: Record) -> bool:
        """Keep `record`; whether it was kept. An answer never fails because of its record."""
        try:
            kept = self._redacted(record)
            if kept is None:
                return False
            self._make_room()
            line = kept.model_dump_json(exclude_none=True) + "\n"
            descriptor = os.open(
                self._file(self._today()), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600
            )
            with os.fdopen(descriptor, "rb+") as stream:
                _cut_torn_end(stream)
                stream.write(line.encode())
        except OSError as error:
            _log.error("an answer was not kept: %s", error.strerror)
            return False
        return True

    def read(
        self,
        *,
        since: float = 0.0,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Iterator[Record]:
        """Records in the order in which they were kept.

        Args:
            since: seconds since 1970.
            metadata: pairs that a record must all have.

        Raises:
            ValueError: a line is damaged; names file and line.
        """
        for path in self._files():
            with path.open(encoding="utf-8") as stream:
                for number, line in enumerate(stream, start=1):
                    if not line.endswith("\n"):
                        break  # being written now, or cut off by the end of a process
                    record = _parse(line, f"{path}:{number}")
                    wanted = (metadata or {}).items() <= record.metadata.items()
                    if record.created_at >= since and wanted and model in (None, record.model):
                        yield record

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self._files())

    def clear(self) -> None:
        """Remove every record."""
        for path in self._files():
            path.unlink()

    def _redacted(self, record: Record) -> Record | None:
        if self._redact is None:
            return record
        try:
            kept = self._redact(record.model_dump())
            return None if kept is None else Record.model_validate(kept)
        except Exception as error:  # noqa: BLE001 (operator's code; not redacted means not kept)
            # Not its message, nor pydantic's: both may quote what should not be kept.
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {where.filename}, line {where.lineno}"
            _log.error("the redaction failed (%s), so an answer was not kept", what)
            return None

    def _make_room(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files = self._files()
        oldest = self._today() - timedelta(days=self.max_age_days)
        sizes = {path: path.stat().st_size for path in files}
        for path in files:
            too_old = date.fromisoformat(path.stem) < oldest
            if too_old or (sum(sizes.values()) > self.max_bytes and path != files[-1]):
                path.unlink()
                del sizes[path]
        if files and files[-1] in sizes and sizes[files[-1]] > self.max_bytes:
            files[-1].unlink()  # a single day beyond the bound begins anew

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()

    def _file(self, day: date) -> Path:
        return self.folder / f"{day.isoformat()}.jsonl"

    def _files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("????-??-??.jsonl"))


def load_redaction(name: str) -> Redaction:
    """The function `module:function` that the operator names.

    Raises:
        ValueError: it cannot be imported or called.
    """
    return load_function(name, f"the redaction '{name}'")


def _cut_torn_end(stream: BinaryIO) -> None:
    """Remove what follows the last whole line: a process that died in writing left half a one."""
    size = end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        stream.seek(start)
        newline = stream.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        stream.truncate(end)


def _parse(line: str, where: str) -> Record:
    try:
        return Record.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(f"{where} is not a record of the traffic log.") from error
