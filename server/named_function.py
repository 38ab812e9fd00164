"""A function of the operator's, by the name that a setting or an option gives."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function `module:function`.

    Args:
        what: how a complaint speaks of it.

    Raises:
        ValueError: it cannot be imported or called; without a full stop.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} cannot be imported ({error}): give MODULE:FUNCTION") from error
    if not callable(found):
        raise ValueError(f"{what} is not a function")
    called: Callable[..., Any] = found
    return called
