"""Is an uploaded file a set of prompts? Read line by line, so that size costs no memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from draftsmith.distill.prompts import parse_row
from draftsmith.server.openai.fields import MAX_NESTING, nested_deeper_than

MAX_LINE_BYTES = 1 << 20
MAX_LINES = 1_000_000


def count_prompts(path: Path) -> int:
    """The number of prompts in a JSONL file.

    Raises:
        ValueError: a line is not a prompt, or there are none or too many; names the line.
    """
    count, number, blank = 0, 0, 0
    seen: set[str] = set()
    with path.open("rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
            if not line.strip():
                blank = blank or number
                continue
            if blank:
                raise ValueError(f"line {blank} is empty, and prompts follow it")
            try:
                identifier, _, _ = parse_row(_object(line), str(number))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if identifier in seen:
                raise ValueError(f"line {number}: the id '{identifier[:100]}' is taken already")
            seen.add(identifier)
            count += 1
            if count > MAX_LINES:
                raise ValueError(f"it has more than {MAX_LINES} lines")
    if not count:
        raise ValueError("it holds no prompts")
    return count


def _object(line: bytes) -> Any:
    try:
        value = json.loads(
            line.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"nested more than {MAX_NESTING} levels deep") from None
    if nested_deeper_than(value, MAX_NESTING):
        raise ValueError(f"nested more than {MAX_NESTING} levels deep")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A name that comes twice means one thing to one reader and another to the next."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
