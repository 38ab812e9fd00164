"""The recipe: one TOML file that says everything about a distillation run.

Wrong recipes fail here, before any model is loaded, in a sentence that names the field. This
module is one of the two that the server imports from `distill`; it never imports torch.
"""

from __future__ import annotations

import json
import operator
import tomllib
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from draftsmith.distill.chain import STAGE, stage_contents
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.objectives import REGISTRY, DistillSpecSection, ObjectiveSection
from draftsmith.distill.objectives.objective import DEFAULT_STUDENT_FRACTION
from draftsmith.distill.refusal import objective_name, refusal
from draftsmith.distill.section import Section
from draftsmith.distill.sections import (
    DataSection,
    EvaluateSection,
    ExportSection,
    LogSection,
    RolloutSection,
    StageSection,
    StudentSection,
    TeacherSection,
    TrainSection,
)

BUILTIN_FOLDER = Path(__file__).parent / "recipes"


if TYPE_CHECKING:
    AnyObjective = ObjectiveSection
else:
    _TAGGED = [Annotated[section, Tag(name)] for name, section in REGISTRY.items()]
    AnyObjective = Annotated[reduce(operator.or_, _TAGGED), Discriminator(objective_name)]


class Recipe(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    seed: int = Field(0, ge=0)
    teacher: TeacherSection = TeacherSection()
    student: StudentSection = StudentSection()
    data: DataSection = DataSection()
    rollout: RolloutSection = RolloutSection()
    objective: AnyObjective = DistillSpecSection()
    train: TrainSection
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    log: LogSection = LogSection()
    stages: tuple[StageSection, ...] = ()
    """Runs one after the other, each with what it changes of the sections above. The last one
    makes what the recipe is for."""

    @model_validator(mode="after")
    def _checkpoints_fall_between_rollouts(self) -> Self:
        if self.train.save_every % self.rollout.steps_ahead:
            raise ValueError("train.save_every must be a multiple of rollout.steps_ahead")
        return self

    @model_validator(mode="after")
    def _sources_go_with_the_objective(self) -> Self:
        self.objective.check(self)
        rollout = self.rollout
        if (rollout.student_fraction or 0) + rollout.given_fraction > 1:
            raise ValueError("rollout.given_fraction and student_fraction add up to more than 1")
        if rollout.given_fraction and self.data.responses == "given":
            raise ValueError(
                "rollout.given_fraction: data.responses = 'given' already trains on given "
                "responses: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _teacher_knows_the_text(self) -> Self:
        if not self.objective.uses_teacher:
            return self
        if self.teacher.remote is not None and self.objective.divergence_temperature != 1:
            raise ValueError(
                "objective.temperature: a server gives log-probabilities at temperature 1 only: "
                "leave it out"
            )
        reliable, divergence = self.teacher.reliable, getattr(self.objective, "divergence", "")
        if reliable is not None and not reliable.tail and divergence == "reverse_kl":
            raise ValueError(
                "teacher.reliable.tail: reverse_kl is infinite outside of the kept tokens: set it "
                "to true, or choose another objective.divergence"
            )
        if self.teacher.stored is None:
            return self
        advice = "a stored teacher has signals on recorded text only"
        if self.student_fraction > 0:
            raise ValueError(f"rollout.student_fraction: {advice}: set it to 0 or leave it out")
        if self.objective.schedules_student_text:
            raise ValueError(f"objective.schedule: {advice}: choose 'fixed'")
        return self

    @property
    def loads_teacher(self) -> bool:
        """Whether the weights of teacher.model are needed at all."""
        return self.teacher.is_live or self.student.init in ("cut", "importance")

    @model_validator(mode="after")
    def _stages_are_recipes(self) -> Self:
        for field, model in self.models().items():
            if model.startswith(STAGE):
                raise ValueError(f"{field}: '{model}' has a meaning only within [[stages]]")
        for name, stage in self.stage_recipes(RunFolder(Path())).items():
            if stage.rollout.engine == "vllm":
                raise ValueError(
                    f"stages.{name}.rollout.engine: an engine is started for one shape of student "
                    "only: use 'hf' in a recipe with stages"
                )
        return self

    def stage_recipes(self, folder: RunFolder) -> dict[str, Recipe]:
        """Each stage's recipe, in the order in which they run; none where there are no stages.

        Args:
            folder: of the whole run, where stages find what earlier ones made.
        """
        base = self.model_dump(mode="json", exclude={"stages"})
        recipes = {}
        for name, content in stage_contents(base, self.stages, folder).items():
            try:
                recipes[name] = Recipe.model_validate(content)
            except ValidationError as error:
                raise ValueError(f"stages.{name}.{refusal(error, content, Recipe)}") from error
        return recipes

    def models(self) -> dict[str, str]:
        """The models that must be there before the run: dotted field -> folder or name."""
        found = {"teacher.model": self.teacher.model}
        if self.student.model is not None:
            found["student.model"] = self.student.model
        for stage in self.stages:
            for section, table in (("teacher", stage.teacher), ("student", stage.student)):
                model = table.get("model")
                if isinstance(model, str) and not model.startswith(STAGE):
                    found[f"stages.{stage.name}.{section}.model"] = model
        return found

    def with_models(self, name_of: Callable[[str], str]) -> Recipe:
        """This recipe with another name for each model that must be there before the run."""
        content = self.model_dump(mode="json")
        for field, model in self.models().items():
            _assign(content, field, name_of(model))
        return Recipe.model_validate(content)

    @property
    def needs_given_responses(self) -> bool:
        """Whether every training prompt must come with a response."""
        return self.objective.text == "given" or self.rollout.given_fraction > 0

    @property
    def uses_given_responses(self) -> bool:
        return self.needs_given_responses or self.data.responses == "given"

    @property
    def student_fraction(self) -> float:
        """Share of on-policy responses; an adaptive schedule may replace it."""
        if self.rollout.student_fraction is not None:
            return self.rollout.student_fraction
        if self.objective.text != "any" or self.teacher.stored is not None:
            return 0.0
        return min(DEFAULT_STUDENT_FRACTION, 1 - self.rollout.given_fraction)

    @property
    def export_name(self) -> str:
        return self.export.name or self.name


def builtin_recipes() -> list[str]:
    return sorted(path.stem for path in BUILTIN_FOLDER.glob("*.toml"))


def load_recipe(source: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply overrides of the form `section.field=value`.

    Args:
        source: a TOML file, the `recipe.json` of a run, or the name of a built-in recipe.
        overrides: values are read as TOML, and as plain text where they are not TOML.

    Raises:
        ValueError: the file is missing or not TOML, or a field is unknown or has a wrong value.
    """
    path = _find(source)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # of either reader, or not UTF-8
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ValueError(f"{path} is not valid {kind}: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a recipe.")
    content.setdefault("name", path.stem)
    for override in overrides or []:
        _apply(content, override)
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[str, Any], origin: str) -> Recipe:
    """Validate a recipe that was already read, naming `origin` in errors.

    Raises:
        ValueError: names the first wrong field, and the nearest known one if it is unknown.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{origin}: {refusal(error, content, Recipe)}.") from error


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    builtin = BUILTIN_FOLDER / f"{source}.toml"
    if builtin.is_file():
        return builtin
    known = ", ".join(builtin_recipes())
    raise ValueError(f"There is no recipe '{source}': give a TOML file or one of {known}.")


def _apply(content: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted.strip():
        raise ValueError(f"--set takes section.field=value, not '{override}'.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    try:
        _assign(content, dotted.strip(), value)
    except ValueError as error:
        raise ValueError(f"--set {override}: {error}.") from error


def _assign(content: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `section.field`, or `stages.NAME.section.field` in the stage of that name."""
    *sections, field = dotted.split(".")
    table: Any = content
    for section in sections:
        if isinstance(table, list):
            named = [one for one in table if isinstance(one, dict) and one.get("name") == section]
            if not named:
                raise ValueError(f"there is no stage '{section}'")
            table = named[0]
        elif isinstance(table, dict):
            table = table.setdefault(section, {})
        if not isinstance(table, dict | list):
            raise ValueError(f"'{section}' is a field, not a section")
    if isinstance(table, list):
        raise ValueError("name a stage and its section: stages.NAME.section.field=value")
    table[field] = value
