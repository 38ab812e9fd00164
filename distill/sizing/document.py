"""What sizing keeps in a JSON file: pilots, plans, fitted sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError


class Document(BaseModel):
    """A file of its own. Subclasses say what it is called, and what to do where there is none."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    noun: ClassVar[str]
    """After `is not`."""
    advice: ClassVar[str]
    """After a colon."""

    def write(self, path: Path) -> None:
        """All of it or nothing, whatever stops the process."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ValueError where `path` cannot be read, or holds something else."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            raise ValueError(f"{path} is not {cls.noun}: {cls.advice}.") from error
