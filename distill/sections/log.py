"""Where metrics go beside `metrics.jsonl`."""

from __future__ import annotations

from draftsmith.distill.section import Section


class LogSection(Section):
    tensorboard: bool = False
    """Event files in the run's folder, under `tensorboard/`."""
    mlflow: bool = False
    """To MLFLOW_TRACKING_URI, or where that is not set `mlflow.db` in the run's folder."""
    wandb: bool = False
    """Weights & Biases; WANDB_MODE=offline keeps it in the run's folder, under `wandb/`."""
    trackio: bool = False
    """To trackio's local database, or the Space that TRACKIO_SPACE_ID names."""
    project: str = "draftsmith"
    """Project or experiment under which a logger files the run; the run has the recipe's name."""

    @property
    def chosen(self) -> list[str]:
        names = ("tensorboard", "mlflow", "wandb", "trackio")
        return [name for name in names if getattr(self, name)]
