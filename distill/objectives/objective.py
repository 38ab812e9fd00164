"""What all objectives have in common. Nothing here or in the files beside it imports torch.

An objective has two halves. Its *section* is what the recipe says: fields with defaults, checked
before anything is loaded. Its *course* is how it goes over one run: what a token is charged at a
step, and the state of a schedule, which lies in the checkpoint. Most objectives are the same at
every step and share the course below.

A new objective is one file with a section that is decorated by `register`, imported by the
package, and a line in docs/objectives.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from draftsmith.distill.section import Section

if TYPE_CHECKING:
    from draftsmith.distill.recipe import Recipe

DEFAULT = "distillspec"
DEFAULT_STUDENT_FRACTION = 0.5

Source = Literal["student", "teacher", "given", "replay"]
"""Whose response a prompt gets: the student's own (on-policy), a recorded answer of the teacher,
the one that the data gives, or one that the student wrote earlier."""


@dataclass(frozen=True)
class Charge:
    """Loss of a token: divergence_weight * D(teacher, student) + label_weight * cross-entropy.

    The cross-entropy looks at the next token of a recorded text; the student's own text has no
    label. Divergence, its parameters and the interpolation: see `kernels.objective.Objective`.
    """

    divergence: str = "forward_kl"
    beta: float = 0.5
    alpha: float = 0.1
    eta: float = 3.0
    temperature: float = 1.0
    interpolation: float | None = None
    divergence_weight: float = 1.0
    label_weight: float = 0.0


@dataclass(frozen=True)
class Residuals:
    """Over the tokens of held-out data y, with teacher A and student f as probabilities:
    aligned = sum <y - A, f - A>, squared = sum |f - A|^2."""

    aligned: float
    squared: float


class ObjectiveSection(Section):
    """The [objective] section of a recipe; `name` says which fields it has.

    text: which text it is defined on; `any` is the mixture that [rollout] says.
    """

    name: str
    text: ClassVar[Literal["any", "teacher", "given"]] = "any"

    def charge(self, step: int, steps: int) -> Charge:
        """What a token is charged at `step` (from 0) of `steps`."""
        raise NotImplementedError

    def start(self, recipe: Recipe) -> Course:
        return Course(self, recipe)

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher's distribution is looked at, rather than its text alone."""
        return True

    @property
    def trained_share(self) -> float:
        """Share of each response's tokens that is trained."""
        return 1.0

    @property
    def reference_model(self) -> str | None:
        """Folder of a model that decides which tokens are trained."""
        return None

    @property
    def needs_heldout_responses(self) -> bool:
        return False

    @property
    def divergence_temperature(self) -> float:
        """Temperature at which the teacher's distribution is looked at."""
        return 1.0

    @property
    def schedules_student_text(self) -> bool:
        """Whether a schedule of its own decides how much of the student's text is trained on."""
        return False

    def check(self, recipe: Recipe) -> None:
        """Compare with the other sections.

        Raises:
            ValueError: names the field that does not go with this objective.
        """
        rollout = recipe.rollout
        if self.text == "any":
            return
        whose = {"teacher": "the teacher's recorded answers", "given": "responses in the data"}
        for field in ("student_fraction", "given_fraction"):
            if getattr(rollout, field):
                raise ValueError(
                    f"rollout.{field}: {self.name} trains on {whose[self.text]} only: leave it out"
                )
        if self.text == "teacher" and recipe.data.responses == "given":
            raise ValueError(
                f"data.responses: {self.name} trains on {whose['teacher']} only: leave it out, or "
                "choose objective.name = 'sft'"
            )


class DivergenceSection(ObjectiveSection):
    """An objective that compares distributions."""

    temperature: float = Field(1.0, gt=0)
    """Divides both models' logits. The loss is not multiplied by its square."""

    @property
    def divergence_temperature(self) -> float:
        return self.temperature


class Course:
    """One run of an objective. Stateful ones override what they change."""

    replay_capacity = 0
    """Responses of the student that are kept for later steps."""

    def __init__(self, section: ObjectiveSection, recipe: Recipe) -> None:
        self.section, self.recipe, self.steps = section, recipe, recipe.train.steps

    def charge(self, step: int) -> Charge:
        return self.section.charge(step, self.steps)

    def source(self, step: int, draw: float, stored: int) -> Source:
        """Whose response a prompt gets.

        Args:
            draw: a number in [0, 1) that belongs to the prompt's place in the step.
            stored: responses in the replay buffer.
        """
        if self.section.text != "any":
            return "given" if self.section.text == "given" else "teacher"
        rollout = self.recipe.rollout
        student = self.recipe.student_fraction if step >= rollout.student_from_step else 0.0
        if draw < student:
            return "student"
        return "given" if 1 - draw <= rollout.given_fraction else "teacher"

    def after_step(self, step: int, loss: float) -> None:
        """Called once an optimiser step, with the loss a token over all processes."""

    def after_evaluation(self, forward_kl: float, residuals: Residuals | None = None) -> None:
        """Called after each evaluation, with KL(teacher || student) a held-out token.

        Args:
            residuals: measured where the section asks for held-out responses.
        """

    def metrics(self) -> dict[str, float]:
        """What is logged beside the loss: the state that the next step is taken with."""
        return {}

    def warnings(self) -> list[str]:
        """Sentences for the user, before the first step."""
        return []

    def state(self) -> dict[str, Any]:
        """Numbers for the checkpoint, the same on all processes."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        assert not state, "an objective without state was saved with one"


REGISTRY: dict[str, type[ObjectiveSection]] = {}

_Registered = TypeVar("_Registered", bound=ObjectiveSection)


def register(section: type[_Registered]) -> type[_Registered]:
    """Let recipes choose the objective by its name."""
    name = section.model_fields["name"].default
    assert isinstance(name, str), "a section has its name as default"
    assert name not in REGISTRY, f"objective {name} is there twice"
    REGISTRY[name] = section
    return section
