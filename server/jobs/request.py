"""The body of `POST /v1/distillation/jobs`."""

from __future__ import annotations

import hashlib
import json
import tomllib
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from draftsmith.server.openai.fields import ShallowRequest, wrong_field

FileName = Annotated[str, Field(min_length=1, max_length=128)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Labels = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class Hyperparameters(ShallowRequest):
    """The fields of a recipe that are asked for most, without their sections. "auto" is none."""

    model_config = ConfigDict(strict=True, extra="forbid")

    steps: Positive | None = None
    n_epochs: Positive | Literal["auto"] | None = None
    """Passes over the prompts, where `steps` is not given."""
    batch_size: Positive | Literal["auto"] | None = None
    learning_rate: Rate | Literal["auto"] | None = None
    divergence: str | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Of the responses that are sampled."""
    max_new_tokens: Positive | None = None
    student_fraction: Share | None = None

    def fields(self) -> dict[str, Any]:
        """By the dotted names of the recipe; `n_epochs` has none."""
        places = {
            "steps": "train.steps",
            "batch_size": "train.batch_size",
            "learning_rate": "train.learning_rate",
            "divergence": "objective.divergence",
            "temperature": "rollout.temperature",
            "max_new_tokens": "rollout.max_new_tokens",
            "student_fraction": "rollout.student_fraction",
        }
        given = self.model_dump(exclude_none=True)
        return {place: given[name] for name, place in places.items() if _given(given, name)}

    @property
    def epochs(self) -> int | None:
        return self.n_epochs if isinstance(self.n_epochs, int) else None


class JobRequest(ShallowRequest):
    """What to distil. Give a `recipe`, or a `method` with hyper-parameters, or both."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """The target, as /v1/models names it; default: the recipe's teacher, else the served model."""
    training_file: FileName | None = None
    """Prompts: the id of an uploaded file, or a built-in set (`draftsmith:stdlib/train`)."""
    validation_file: FileName | None = None
    recipe: Annotated[str, Field(max_length=1 << 16)] | dict[str, Any] | None = None
    """TOML text, or the same tables as JSON."""
    method: Annotated[str, Field(max_length=64)] | None = None
    """An objective's name."""
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    """What the draft will be called in the registry; default: the recipe's name."""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    metadata: Labels | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    max_runtime_s: Positive | None = None
    """Seconds of training, over all attempts, after which the job fails."""
    dry_run: bool = False
    """Answer with what the job would be, and start none."""

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if self.recipe is None and self.method is None and self.training_file is None:
            raise wrong_field("recipe", "is missing: give a recipe, a method or a training_file")
        return self

    def tables(self) -> dict[str, Any]:
        """The recipe's own tables, a copy.

        Raises:
            ValueError: it is not TOML.
        """
        if isinstance(self.recipe, str):
            try:
                return tomllib.loads(self.recipe)
            except tomllib.TOMLDecodeError as error:
                raise ValueError(f"recipe: it is not valid TOML: {error}") from error
        copy: dict[str, Any] = json.loads(json.dumps(self.recipe or {}))
        return copy

    def sha256(self) -> str:
        """Equal for equal requests."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _given(values: dict[str, Any], name: str) -> bool:
    return values.get(name, "auto") != "auto"
