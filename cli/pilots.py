"""Train the pilots of a plan: ordinary runs, one after the other, that share the teacher's answers.

A pilot's folder is named by the hash of its recipe and prompts: the same pilot is never trained
twice, and one that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import typer

from draftsmith.cli.distill import is_finished, run_distillation
from draftsmith.cli.evaluate import say
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.recipe import Recipe
from draftsmith.server.home import Home

if TYPE_CHECKING:
    from draftsmith.distill.sizing.candidates import Candidate
    from draftsmith.distill.sizing.pilots import Pilots


def pilots_file(recipe: Recipe, home: Home) -> Path:
    return home.plans / f"{recipe.name}.pilots.json"


def train_pilots(
    recipe: Recipe,
    fingerprint: str,
    candidates: Sequence[Candidate],
    count: int,
    steps: int,
    home: Home,
) -> Pilots:
    """Train `count` of the candidates for up to `steps` steps, and keep what they say.

    Args:
        recipe: the planned run, with folders in place of models' names.
        fingerprint: of the target's weights.

    Raises:
        ValueError: the candidates have all one size.
        typer.Exit: a run failed or was stopped.
    """
    from draftsmith.distill.sizing.coverage import answered_tokens, coverage
    from draftsmith.distill.sizing.pilots import (
        Pilots,
        chosen_for_pilots,
        pilot_lengths,
        pilot_recipe,
        read_pilot,
        setting_of,
    )

    chosen = chosen_for_pilots(candidates, count)
    runs: list[list[RunFolder]] = []
    answered: RunFolder | None = None
    for number, candidate in enumerate(chosen, start=1):
        runs.append([])
        for length in pilot_lengths(steps):
            say(f"pilot {number} of {len(chosen)}: {candidate.name}, {length} steps")
            pilot = pilot_recipe(recipe, candidate, length)
            runs[-1].append(train_once(pilot, candidate.name, home, answered))
            answered = answered or runs[0][0]
    assert answered is not None, "at least one pilot was trained"
    rows = {one.section.vocabulary for one in candidates} - {None}
    unique = answered_tokens(answered)
    shares = coverage(answered, recipe, sorted(size for size in rows if size is not None))
    pilots = Pilots(
        teacher=fingerprint,
        setting=setting_of(recipe),
        coverage=shares,
        answers=str(answered.root),
        unique_tokens=unique,
        fresh_share=recipe.student_fraction,
        pilots=[
            read_pilot(its, candidate, shares) for its, candidate in zip(runs, chosen, strict=True)
        ],
    )
    pilots.write(pilots_file(recipe, home))
    return pilots


def train_once(
    recipe: Recipe, name: str, home: Home, answered: RunFolder | None = None
) -> RunFolder:
    """The finished run of `recipe`, from the disk where it was trained before.

    Args:
        answered: a run whose teacher has given the same answers to the same prompts.

    Raises:
        typer.Exit: the run failed or was stopped.
    """
    from draftsmith.distill.sizing.pilots import prompt_files

    text = recipe.model_dump_json(indent=2)
    digest = hashlib.sha256("\n".join([text, *prompt_files(recipe)]).encode()).hexdigest()[:12]
    folder = RunFolder(home.plans / "pilots" / f"{name}-{digest}")
    if is_finished(folder):
        return folder
    folder.root.mkdir(parents=True, exist_ok=True)
    if answered is not None:
        from draftsmith.distill.recorded import copy_answers

        copy_answers(answered, folder)
    source = folder.root / "pilot.json"
    source.write_text(text + "\n", encoding="utf-8")
    resume = folder.recipe.is_file()
    stopped = Event()
    run = run_distillation(str(source), [], folder.root, home, resume=resume, stopped=stopped)
    if is_finished(run):
        shutil.rmtree(run.checkpoints)  # many times the draft's size, and nothing goes on from them
    if stopped.is_set():
        say("stopped: the same command goes on from here")
        raise typer.Exit
    return run


def stored_pilots(recipe: Recipe, fingerprint: str, home: Home) -> Pilots:
    """Pilots of an earlier plan, where they fit this one.

    Raises:
        ValueError: there are none, or they are of another target or another setting.
    """
    from draftsmith.distill.sizing.pilots import Pilots, setting_of

    path, advice = pilots_file(recipe, home), "train some with --pilots 3 --pilot-steps 60"
    if not path.is_file():
        raise ValueError(
            f"Acceptance can only be predicted from pilots, and '{recipe.name}' has none: {advice}."
        )
    pilots = Pilots.read(path)
    if pilots.teacher != fingerprint:
        raise ValueError(f"The pilots of '{recipe.name}' are of another target: {advice}.")
    ours, theirs = setting_of(recipe), pilots.setting
    for section, value in ours.items():
        if value != theirs.get(section):
            raise ValueError(
                f"The pilots of '{recipe.name}' were trained with another [{section}]: {advice}."
            )
    return pilots
