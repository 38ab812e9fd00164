"""The distillation run. Read this first: prompts -> rollout -> teacher -> loss -> step -> draft.

    python -m draftsmith.distill.train --recipe RECIPE.toml --output FOLDER [--set a.b=c] [--resume]

`draftsmith distill` starts it, under torchrun when it asks for several processes.

Legend: B sequences, N trained tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import errno
import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from draftsmith.distill import distributed
from draftsmith.distill.batch import Example, make_batch
from draftsmith.distill.checkpoint import load_checkpoint, save_checkpoint
from draftsmith.distill.evaluate import Acceptance, evaluate, prepare_heldout
from draftsmith.distill.export import export_chain, export_draft
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.loss import count_trained
from draftsmith.distill.metrics import Metrics
from draftsmith.distill.models import quiet_libraries
from draftsmith.distill.objectives import Course
from draftsmith.distill.plot import plot_curves
from draftsmith.distill.progress import track
from draftsmith.distill.recipe import Recipe, load_recipe
from draftsmith.distill.replay import ReplayBuffer
from draftsmith.distill.residuals import measure_residuals
from draftsmith.distill.rollout import recorded_examples, rollout
from draftsmith.distill.run import Prepared, open_run, prepare
from draftsmith.distill.trainee import (
    learning_rate,
    optimizer_step,
    set_learning_rate,
    start_engine,
    whole_student,
)
from draftsmith.distill.vocabulary import draft_tokens


def train(recipe: Recipe, output: Path, *, resume: bool = False) -> RunFolder:
    """Distil a draft as `recipe` says and leave it in the run folder `output`.

    Args:
        recipe: `teacher.model` must be a local folder by now.
        resume: go on from the newest complete checkpoint in `output`, if there is one.

    Raises:
        ValueError: names what is wrong with recipe, prompts, models or disk.
    """
    folder = open_run(recipe, output, resume)
    run = prepare(recipe, folder)
    heldout, heldout_given = (
        prepare_heldout(run.teacher, examples, run.stop_tokens[0], recipe.train.micro_batch_size)
        for examples in (run.heldout, run.heldout_given)
    )
    if recipe.objective.uses_teacher:
        recorded = recorded_examples(run.prompts, run.answers)
        run.teacher.keep_states(recorded, recipe.teacher.keep_bytes)
    engine = start_engine(run.student, recipe, run.dtype)
    course = recipe.objective.start(recipe)
    replay = ReplayBuffer(course.replay_capacity)
    start, state = load_checkpoint(folder.checkpoints, engine)
    if state is not None:
        course.restore(state["objective"])
        replay.restore(state["replay"])
    metrics = Metrics(
        folder.metrics,
        start,
        evaluates_again=start in (0, recipe.train.steps),
        enabled=distributed.is_main(),
    )

    def measure(step: int, label: str = "") -> Acceptance:
        with whole_student(engine) as student:
            acceptance = evaluate(student, heldout, recipe.evaluate, label)
            asked = recipe.objective.needs_heldout_responses
            residuals = measure_residuals(student, heldout_given) if asked else None
        course.after_evaluation(acceptance.forward_kl, residuals)
        metrics.write("evaluation", step, **acceptance.model_dump(mode="json"))
        return acceptance

    def export(into: Path, acceptance: Acceptance) -> None:
        with whole_student(engine) as student:
            if distributed.is_main():
                evaluation = acceptance.model_dump(mode="json")
                export_draft(student, Path(recipe.teacher.model), recipe, into, evaluation)
        distributed.barrier()

    if distributed.is_main():
        for warning in course.warnings():
            print(f"warning: {warning}", file=sys.stderr)
    if start == 0:
        acceptance = measure(0, "evaluation before")
        export(folder.initial, acceptance)
    with track("distil", recipe.train.steps, start) as bar:
        for step in range(start, recipe.train.steps):
            began = time.perf_counter()
            if step % recipe.rollout.steps_ahead == 0:
                ahead = range(step, min(step + recipe.rollout.steps_ahead, recipe.train.steps))
                with whole_student(engine) as student:
                    rollouts = rollout(
                        student,
                        recipe,
                        ahead,
                        run.prompts,
                        run.answers,
                        run.stop_tokens,
                        run.dtype,
                        course,
                        replay,
                    )
            examples = rollouts[step % recipe.rollout.steps_ahead]
            sampled = time.perf_counter()
            record = train_step(engine, run, recipe, course, step, examples)
            seconds = {"rollout": sampled - began, "update": time.perf_counter() - sampled}
            metrics.write("train", step + 1, **record, seconds=seconds)
            bar.advance(note=f"loss {record['loss']:.3f}")
            if (step + 1) % recipe.train.eval_every == 0 and step + 1 < recipe.train.steps:
                measure(step + 1)
            if (step + 1) % recipe.train.save_every == 0 or step + 1 == recipe.train.steps:
                state = {"objective": course.state(), "replay": replay.state()}
                save_checkpoint(
                    folder.checkpoints, engine, step + 1, recipe.train.keep_checkpoints, state
                )
    acceptance = measure(recipe.train.steps, "evaluation after")
    if distributed.is_main():
        plot_curves(folder.metrics, folder.picture, recipe.evaluate.num_speculative_tokens)
    export(folder.draft, acceptance)
    engine.destroy()
    return folder


def train_stages(recipe: Recipe, output: Path, *, resume: bool = False) -> RunFolder:
    """Run the stages of `recipe`, each in a folder of its own below `output`.

    What the last one makes becomes the draft of the whole run. A stage that has made its draft is
    done, and is passed over when the run is resumed.

    Raises:
        ValueError: names what is wrong with recipe, prompts, models or disk.
    """
    folder = open_run(recipe, output, resume)
    stages = recipe.stage_recipes(folder)
    for number, (name, stage) in enumerate(stages.items(), start=1):
        run = folder.stage(name)
        if run.draft.is_dir():
            continue
        if distributed.is_main():
            print(f"stage {number} of {len(stages)}: {name}", file=sys.stderr)
        train(stage, run.root, resume=resume)
        gc.collect()  # models of this stage, before those of the next one are loaded
    if distributed.is_main():
        export_chain(recipe, folder)
    distributed.barrier()
    return folder


def train_step(
    engine: Any,
    run: Prepared,
    recipe: Recipe,
    course: Course,
    step: int,
    examples: Sequence[Example],
) -> dict[str, float]:
    """One optimiser step on this process's `examples`; returns what is logged.

    The normaliser is the number of trained tokens over all processes and micro-batches, counted
    after generation, so that neither split changes the loss or its gradient.
    """
    objective, charge = recipe.objective, course.charge(step)
    token_D = draft_tokens(run.student)
    counts = torch.tensor([count_trained(examples, charge, objective.trained_share, token_D),
                           sum(example.source == "student" for example in examples),
                           sum(example.source == "replay" for example in examples)],
                          dtype=torch.float64)  # fmt: skip
    tokens, from_student, replayed = distributed.sum_over_processes(counts).tolist()
    # DeepSpeed averages over processes and micro-batches; the loss is a sum over all of them.
    size = recipe.train.micro_batch_size
    scale = distributed.world_size() * (len(examples) // size) / max(1.0, tokens)
    set_learning_rate(engine, learning_rate(recipe.train, step))
    examples = sorted(examples, key=lambda example: example.length)  # less padding
    total = torch.zeros(1, dtype=torch.float64)
    grad_norm = None
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        batch = make_batch(part, run.stop_tokens[0], engine.device)
        signal = run.teacher.signal(part) if objective.uses_teacher else None
        reference = run.reference.signal(part) if run.reference else None
        loss, loss_N = engine(batch, signal, scale, charge, reference)
        engine.backward(loss)
        grad_norm = optimizer_step(engine)
        total += loss_N.sum().double().cpu()
    assert grad_norm is not None, "the last micro-batch ends the step"
    loss_per_token = distributed.sum_over_processes(total).item() / max(1.0, tokens)
    record = {
        "loss": loss_per_token,
        "grad_norm": grad_norm,
        "learning_rate": learning_rate(recipe.train, step),
        "tokens": int(tokens),
        "student_share": from_student / recipe.train.batch_size,
    }
    if course.replay_capacity:
        record["replay_share"] = replayed / recipe.train.batch_size
    record |= course.metrics()  # what this step was taken with
    course.after_step(step, loss_per_token)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil a draft as a recipe says.")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    quiet_libraries()
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        distributed.start_processes()
        run = train_stages if recipe.stages else train
        run(recipe, arguments.output, resume=arguments.resume)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"error: No space left on the disk of {arguments.output}: free some and resume.")
    finally:
        distributed.stop_processes()


if __name__ == "__main__":
    main()
