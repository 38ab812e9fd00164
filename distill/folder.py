"""The folder of a run. The server reads runs through this module; it never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MARKER = "COMPLETE.json"
"""Written last into a checkpoint, with the hashes of its files."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its things."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    def answers(self, prompts: str) -> Path:
        """The teacher's answers to the `train` or `heldout` prompts."""
        return self.root / f"answers-{prompts}.jsonl"

    @property
    def prompts_digest(self) -> Path:
        """SHA-256 of the prompts that the answers belong to."""
        return self.root / "prompts.sha256"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def complete_checkpoints(self) -> dict[int, Path]:
        """Folders of the checkpoints that were written to the end, by their step, in order."""
        marked = sorted(
            path.parent for path in self.checkpoints.glob(f"step-{'[0-9]' * 8}/{MARKER}")
        )
        return {int(path.name.removeprefix("step-")): path for path in marked}

    @property
    def initial(self) -> Path:
        """The student before training, as a draft folder."""
        return self.root / "initial"

    @property
    def draft(self) -> Path:
        """The trained draft, written last: a run that has one is done."""
        return self.root / "draft"

    def stage(self, name: str) -> RunFolder:
        """The run of one of the recipe's stages, as complete as any other."""
        return RunFolder(self.root / "stages" / name)

    @property
    def picture(self) -> Path:
        return self.root / "curves.png"
