"""Which model teaches, and how it is held."""

from __future__ import annotations

from pydantic import Field

from draftsmith.distill.section import DType, Section


class TeacherSection(Section):
    model: str = "smollm2-135m"
    """A folder, a name in the local store, or a Hugging Face hub id."""
    dtype: DType = "auto"
    """`auto` is bfloat16 where the machine multiplies it natively, else float32."""
    keep_states_gib: float = Field(1.0, ge=0)
    """Memory a process may use to keep the teacher's hidden states of recorded answers."""

    @property
    def keep_bytes(self) -> float:
        return self.keep_states_gib * 2**30
