"""Options that are lists of numbers."""

from __future__ import annotations


def numbers(option: str, text: str) -> list[int]:
    """Comma-separated numbers of an option, from 1 up, as they stand.

    Raises:
        ValueError: they are not; names the option.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: give numbers such as 1,2,4.") from None
    if min(found) < 1:
        raise ValueError(f"{option} {text}: numbers are at least 1.")
    return found


def distinct_numbers(option: str, text: str) -> list[int]:
    """The same in ascending order, none twice."""
    return sorted(set(numbers(option, text)))
