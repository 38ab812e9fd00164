"""What becomes of the trained student."""

from __future__ import annotations

from typing import Literal

from draftsmith.distill.section import Section


class ExportSection(Section):
    name: str | None = None
    """Name in the registry; the recipe's name by default."""
    kind: Literal["draft", "student"] = "draft"
    """A `draft` is served beside its target, a `student` in its place."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
