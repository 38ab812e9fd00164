"""The records of `metrics.jsonl`, sent to TensorBoard, MLflow, W&B or trackio as well.

One small class for each, imported only where the recipe asks for it. A run that is resumed goes on
in the same place: steps that are done again replace what was logged of them, as far as the logger
can do that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from draftsmith.distill.sections.log import LogSection


class Logger(Protocol):
    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_installed(section: LogSection) -> None:
    """Raises ValueError where a logger's package is missing, before anything is loaded."""
    for name in section.chosen:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"log.{name}: the package is not installed: pip install 'draftsmith[{name}]'."
            )


def open_loggers(section: LogSection, root: Path, name: str, start: int) -> list[Logger]:
    """The loggers that the recipe asks for.

    Args:
        root: folder of the run, whose path is the run's identity in all of them.
        name: of the run, as people see it.
        start: number of steps that are done and stay.
    """
    makers: dict[str, Callable[[LogSection, Path, str, int], Logger]] = {
        "tensorboard": _TensorBoard,
        "mlflow": _MLflow,
        "wandb": _WandB,
        "trackio": _Trackio,
    }
    return [makers[one](section, root, name, start) for one in section.chosen]


def scalars(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers of a record, nested ones by path: `train/seconds/rollout`."""
    for key, value in record.items():
        path = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from scalars(value, path)
        elif isinstance(value, list):
            yield from scalars({str(place): one for place, one in enumerate(value, 1)}, path)
        elif isinstance(value, int | float):
            yield path, float(value)


def _identity(root: Path) -> str:
    return hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()


class _TensorBoard:
    def __init__(self, section: LogSection, root: Path, name: str, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(root / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for path, value in values.items():
            self._writer.add_scalar(path, value, step)
        self._writer.flush()  # a run that is killed shows how far it came

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, section: LogSection, root: Path, name: str, start: int) -> None:
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{root.resolve() / 'mlflow.db'}")
        mlflow.set_experiment(section.project)
        found = mlflow.search_runs(
            filter_string=f"tags.draftsmith_run = '{_identity(root)}'", output_format="list"
        )
        self._mlflow = mlflow
        mlflow.start_run(
            run_id=found[0].info.run_id if found else None,
            run_name=name,
            tags={"draftsmith_run": _identity(root)},
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _WandB:
    def __init__(self, section: LogSection, root: Path, name: str, start: int) -> None:
        import wandb

        self._run = wandb.init(
            project=section.project, name=name, id=_identity(root), dir=root, resume="allow"
        )
        # wandb's own counter only moves forward: a field of ours can go back after a resume.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, section: LogSection, root: Path, name: str, start: int) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(project=section.project, name=f"{name}-{_identity(root)}", resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()
