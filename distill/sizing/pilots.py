"""Pilots: short runs of the ordinary trainer, and what a plan reads out of their folders.

Legend: D trained tokens, K lookahead.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from draftsmith.distill.folder import RunFolder
from draftsmith.distill.manifest import sha256_file
from draftsmith.distill.metrics import read_metrics
from draftsmith.distill.recipe import Recipe, load_recipe
from draftsmith.distill.sections import StudentSection
from draftsmith.distill.sizing.acceptance_law import Observation, effective_tokens
from draftsmith.distill.sizing.candidates import Candidate, start_of
from draftsmith.distill.sizing.document import Document
from draftsmith.distill.sizing.positions import conditional_chances

LENGTHS = (0.25, 0.5, 1.0)
"""Of a pilot's runs, by the longest. Each has the whole schedule of learning rates: within a run a
draft is worse than after one of that length, and in the end it hardly learns any more."""


class Point(BaseModel):
    """What a pilot's run of so many steps, D trained tokens, ended with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    step: int
    tokens: int
    chances: list[float]
    """Of position 1, 2, ... given those before it, at the temperature of serving."""

    @property
    def alpha(self) -> float:
        return self.chances[0]


class Pilot(BaseModel):
    """One pilot: the draft, what it cost, and how its acceptance grew."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    student: StudentSection
    layer_weights: int
    flops_a_token: int
    coverage: float
    """Share of the held-out answers' tokens that it may propose."""
    tokens_a_step: float
    seconds_a_token: float
    """Of training, rollouts included; the median step's."""
    points: list[Point] = Field(min_length=1)


class Pilots(Document):
    """Pilots of one target on one set of prompts, kept for later plans."""

    noun = "a file of pilots"
    advice = "remove it and train some with --pilots"

    teacher: str
    """weights_fingerprint of the target's identity."""
    setting: dict[str, Any]
    """The recipe's sections that acceptance depends on, but for student and steps."""
    coverage: dict[int, float]
    """Of the vocabularies that were asked for: rows -> share of held-out tokens."""
    answers: str
    """Folder of a pilot with the teacher's answers, which the planned run takes over."""
    unique_tokens: int
    """In these answers: what is trained on beyond them was seen before."""
    fresh_share: float
    """Of the trained tokens: the student's own responses, which do not come back."""
    pilots: list[Pilot]

    def effective(self, tokens: float) -> float:
        """What `tokens` trained tokens are worth."""
        return effective_tokens(tokens, self.unique_tokens, self.fresh_share)

    def observations(self) -> list[Observation]:
        return [
            Observation(
                start_of(pilot.student),
                pilot.layer_weights,
                self.effective(one.tokens),
                one.alpha,
                pilot.coverage,
            )
            for pilot in self.pilots
            for one in pilot.points
        ]


def setting_of(recipe: Recipe) -> dict[str, Any]:
    """What pilots and the planned run must have in common for one to say something of the other."""
    content = recipe.model_dump(mode="json")
    kept = {name: content[name] for name in ("data", "rollout", "objective")}
    del kept["data"]["answers"]  # says where they are from
    train = {name: content["train"][name] for name in ("batch_size", "learning_rate", "dtype")}
    evaluate = {name: content["evaluate"][name] for name in ("temperature", "top_p")}
    return kept | {"train": train, "evaluate": evaluate, "prompts": prompt_files(recipe)}


def prompt_files(recipe: Recipe) -> list[str]:
    """SHA-256 of each file of prompts: one that has changed makes other pilots."""
    paths = (Path(one).expanduser() for one in (recipe.data.train, recipe.data.heldout))
    return [sha256_file(path) for path in paths if path.is_file()]


def chosen_for_pilots(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """`count` of the candidates: the smallest and the largest of every start, then the others.

    Vocabulary is left out of account, since its effect is counted rather than fitted: of equal
    shapes the first one is taken.

    Raises:
        ValueError: no two candidates that start alike differ in size.
    """
    shapes: dict[tuple[str, int], Candidate] = {}
    for one in candidates:
        shapes.setdefault((one.start, one.size.layers), one)
    kinds = dict.fromkeys(one.start for one in candidates)
    if len(shapes) == len(kinds):
        raise ValueError(
            "A plan needs candidates of two sizes that start alike: give several --layers."
        )
    ends: list[Candidate] = []
    between: list[list[Candidate]] = []
    for kind in kinds:
        alike = sorted(
            (one for (start, _), one in shapes.items() if start == kind),
            key=lambda one: one.size.layers,
        )
        ends += [alike[0], *alike[1:][-1:]]
        between.append(alike[1:-1])
    in_turn = [one for row in zip_longest(*between) for one in row if one is not None]
    return [*ends, *in_turn][:count]


def pilot_lengths(steps: int) -> list[int]:
    """Steps of each run of a pilot whose longest has `steps`, from the shortest on."""
    return sorted({max(1, round(share * steps)) for share in LENGTHS})


def pilot_recipe(recipe: Recipe, candidate: Candidate, steps: int) -> Recipe:
    """The recipe of one run: the planned one with another student and `steps` steps."""
    pilot = short_run(recipe, candidate.section, steps)
    content = pilot.model_dump(mode="json")
    content["evaluate"]["gamma_max"] = max(content["evaluate"]["gamma_max"], 8)
    return Recipe.model_validate(content)


def short_run(recipe: Recipe, student: StudentSection, steps: int) -> Recipe:
    """`recipe` with another student and number of steps; it is evaluated and saved at its end."""
    content = recipe.model_dump(mode="json")
    content["name"] = "pilot"
    content["student"] = student.model_dump(mode="json")
    ahead = content["rollout"]["steps_ahead"]
    content["train"] |= {
        "steps": steps,
        "warmup_steps": min(content["train"]["warmup_steps"], steps // 5),
        "eval_every": steps,
        "save_every": -(-steps // ahead) * ahead,
        "keep_checkpoints": 1,
    }
    content["export"]["name"] = None
    return Recipe.model_validate(content)


def read_pilot(
    folders: Sequence[RunFolder], candidate: Candidate, coverage: Mapping[int, float]
) -> Pilot:
    """What a pilot's finished runs say; what a step costs is taken from the last of them.

    Raises:
        ValueError: the metrics of one hold no evaluation after the first step.
    """
    points = [_end(folder) for folder in folders]
    longest = folders[-1]
    steps = [record for record in read_metrics(longest.metrics) if record["kind"] == "train"]
    recipe = load_recipe(longest.recipe)
    rows = recipe.student.vocabulary
    return Pilot(
        name=candidate.name,
        student=recipe.student,
        layer_weights=candidate.size.layers,
        flops_a_token=candidate.size.flops_a_token,
        coverage=1.0 if rows is None else coverage[rows],
        tokens_a_step=points[-1].tokens / len(steps),
        seconds_a_token=statistics.median(
            sum(record["seconds"].values()) / max(1, record["tokens"]) for record in steps
        ),
        points=points,
    )


def _end(folder: RunFolder) -> Point:
    records = read_metrics(folder.metrics)
    tokens = sum(record["tokens"] for record in records if record["kind"] == "train")
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    if not tokens or not evaluations or evaluations[-1]["step"] == 0:
        raise ValueError(f"{folder.metrics} has no evaluation after the first step.")
    tau = {int(k): value for k, value in evaluations[-1]["block_efficiency"].items()}
    return Point(step=evaluations[-1]["step"], tokens=tokens, chances=conditional_chances(tau))
