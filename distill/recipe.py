"""The recipe: one TOML file that says everything about a distillation run.

Wrong recipes fail here, before any model is loaded, in a sentence that names the field. This
module is one of the two that the server imports from `distill`; it never imports torch.
"""

from __future__ import annotations

import operator
import tomllib
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from draftsmith.distill.objectives import REGISTRY, DistillSpecSection, ObjectiveSection
from draftsmith.distill.objectives.objective import DEFAULT_STUDENT_FRACTION
from draftsmith.distill.refusal import objective_name, refusal
from draftsmith.distill.section import Section

DType = Literal["float32", "bfloat16", "auto"]
BUILTIN_FOLDER = Path(__file__).parent / "recipes"


if TYPE_CHECKING:
    AnyObjective = ObjectiveSection
else:
    _TAGGED = [Annotated[section, Tag(name)] for name, section in REGISTRY.items()]
    AnyObjective = Annotated[reduce(operator.or_, _TAGGED), Discriminator(objective_name)]


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


class StudentSection(Section):
    init: Literal["cut", "random"] = "cut"
    """`cut` takes layers and embedding out of the teacher; `random` takes only its shape."""
    layers: list[int] | None = None
    """Indices of the teacher's layers to keep (cut only; negative ones count from the end)."""
    num_layers: int | None = Field(None, ge=1)
    """Number of layers: evenly spaced ones where they are cut, else new ones."""
    hidden_size: int | None = Field(None, ge=16)
    """Width; below the teacher's, the embedding is projected and layers start at random."""
    num_attention_heads: int | None = Field(None, ge=1)
    num_key_value_heads: int | None = Field(None, ge=1)
    intermediate_size: int | None = Field(None, ge=16)
    vocabulary: int | None = Field(None, ge=1)
    """How many tokens the student may propose: the most frequent ones in prompts and recorded
    answers. Fewer rows of its head are read at every step, in training and serving; None keeps
    them all."""
    freeze_embeddings: bool = False
    """Keep embedding and head as they start: less to overfit, and cheaper steps."""

    @model_validator(mode="after")
    def _one_way_to_choose_layers(self) -> Self:
        if self.layers is not None and self.num_layers is not None:
            raise ValueError("give either layers or num_layers, not both")
        if self.layers is not None and (self.init == "random" or self.hidden_size is not None):
            raise ValueError("layers can only be cut at the teacher's own width")
        if self.init == "random" and self.num_layers is None:
            raise ValueError("a random student needs num_layers")
        return self


class DataSection(Section):
    train: str = "draftsmith:stdlib/train"
    """Prompts: a JSONL file, a built-in set, or a Hugging Face dataset (folder or `hf:ID`)."""
    heldout: str = "draftsmith:stdlib/heldout"
    """Prompts for evaluation only."""
    limit: int | None = Field(None, ge=1)
    heldout_limit: int | None = Field(None, ge=1)
    max_prompt_tokens: int = Field(512, ge=1)
    responses: Literal["teacher", "given"] = "teacher"
    """Recorded answers for training: the teacher's own, or those that the data gives, where it
    does. Held-out answers are always the teacher's: acceptance is defined on its text."""


class RolloutSection(Section):
    student_fraction: float | None = Field(None, ge=0, le=1)
    """Chance, drawn per prompt, that the response is the student's own (on-policy) rather than
    a recorded answer of the teacher. By default 0.5, or what the objective is defined on."""
    given_fraction: float = Field(0.0, ge=0, le=1)
    """Chance that the response is the one that the data gives, which every prompt then needs."""
    student_from_step: int = Field(0, ge=0)
    """First step with student rollouts: the first samples of a raw student are noise."""
    steps_ahead: int = Field(1, ge=1)
    """Steps whose student responses are sampled together, with the weights of the first of them:
    larger batches are faster, and the last response is this many steps old, less one."""
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """0 means all tokens."""
    answers_per_prompt: int = Field(1, ge=1)
    """Recorded teacher answers a prompt: the first is greedy, the others are sampled."""
    batch_size: int = Field(32, ge=1)
    """Sequences generated together. It changes speed, not what is sampled."""


class TrainSection(Section):
    steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    """Prompts a step, over all processes and micro-batches."""
    micro_batch_size: int = Field(4, ge=1)
    """Sequences a process holds at a time. It changes memory, not the gradient."""
    learning_rate: float = Field(1e-3, gt=0)
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 1
    dtype: DType = "float32"
    """Of matrix products; weights, optimiser state and divergences stay float32."""
    save_every: int = Field(100, ge=1)
    eval_every: int = Field(50, ge=1)
    keep_checkpoints: int = Field(2, ge=1)


class EvaluateSection(Section):
    temperature: float = Field(0.0, ge=0)
    """Of serving: 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    gamma_max: int = Field(8, ge=1, le=16)
    """Block efficiency is given for every lookahead from 1 to this one."""
    num_speculative_tokens: int = Field(3, ge=1, le=16)
    """Lookahead of the engine that the draft will be used in."""

    @model_validator(mode="after")
    def _served_lookahead_is_evaluated(self) -> Self:
        if self.num_speculative_tokens > self.gamma_max:
            raise ValueError("gamma_max must be at least num_speculative_tokens")
        return self


class ExportSection(Section):
    name: str | None = None
    """Name in the registry; the recipe's name by default."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


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
        if self.objective.text != "any":
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
        source: a TOML file, or the name of a built-in recipe such as `demo`.
        overrides: values are read as TOML, and as plain text where they are not TOML.

    Raises:
        ValueError: the file is missing or not TOML, or a field is unknown or has a wrong value.
    """
    path = _find(source)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from error
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
    *sections, field = dotted.strip().split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ValueError(f"--set {override}: '{section}' is a field, not a section.")
    content[field] = value
