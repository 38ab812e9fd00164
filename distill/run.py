"""Everything that is prepared before a run's first step: folder, models, prompts, answers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.answers import Answer, Answering, EncodedPrompt
from draftsmith.distill.batch import Example
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.manifest import TargetIdentity, read_draft_vocabulary, target_identity
from draftsmith.distill.models import (
    count_parameters,
    default_device,
    load_model,
    load_tokenizer,
    stop_tokens,
    torch_dtype,
)
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.recorded import record_text
from draftsmith.distill.student.initial import initial_student, planned_student
from draftsmith.distill.teacher import (
    LiveTeacher,
    Teacher,
    Transforms,
    answering_engine,
    load_teacher,
    open_store,
    open_teachers,
)
from draftsmith.distill.texts import read_prompts
from draftsmith.distill.vocabulary import draft_tokens


@dataclass(frozen=True)
class Prepared:
    """What the training loop needs: models, prompts as tokens, and recorded answers.

    Prompts hold the responses that the data gives where they are trained on; reference is the
    model that chooses among tokens, where the objective has one. heldout are the target's
    answers, heldout_given those of the data, where the objective looks at them.

    target: the model that the student is for, against which acceptance is measured.
    teacher: gives the signals that are trained on, and transforms what becomes of them.
    teacher_folder: the target's tokenizer and configuration.
    """

    teacher: Teacher
    target: Teacher
    transforms: Transforms
    reference: LiveTeacher | None
    student: PreTrainedModel
    dtype: torch.dtype
    stop_tokens: list[int]
    prompts: list[EncodedPrompt]
    answers: list[list[Answer]]
    heldout: list[Example]
    heldout_given: list[Example]
    teacher_folder: Path
    identity: TargetIdentity


def open_run(recipe: Recipe, root: Path, resume: bool) -> RunFolder:
    """Make the folder of a new run, or check that `root` holds the run to go on with.

    Raises:
        ValueError: a new run would overwrite one, or the run to resume has another recipe.
    """
    folder = RunFolder(root)
    saved = folder.recipe.read_text(encoding="utf-8") if folder.recipe.is_file() else None
    distributed.barrier()
    if saved is not None and not resume:
        raise ValueError(f"{root} already holds a run: add --resume or choose another --output.")
    if saved is not None:
        _check_same_recipe(Recipe.model_validate_json(saved), recipe, root)
    elif distributed.is_main():
        root.mkdir(parents=True, exist_ok=True)
        folder.recipe.write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    distributed.barrier()
    if not folder.recipe.is_file():
        raise ValueError(f"{root} must lie on a file system that all hosts of the run share.")
    return folder


def prepare(recipe: Recipe, folder: RunFolder) -> Prepared:
    """Load the teacher, make the student, encode the prompts and record the teacher's answers.

    Raises:
        ValueError: names what is wrong with the models, the prompts or the disk.
    """
    store = open_store(recipe)
    teacher_folder = store.model_folder if store else Path(recipe.teacher.model)
    # Cheap checks come first: a typo in a prompt file must not cost a model's loading time.
    tokenizer = load_tokenizer(teacher_folder)
    prompts = read_prompts(recipe, tokenizer)
    model = load_teacher(recipe, store)
    _check_disk(planned_student(model, tokenizer, recipe), recipe, folder.root)
    stops = stop_tokens(model, tokenizer)
    how = Answering(recipe.seed, stops, recipe.rollout.batch_size)
    with answering_engine(recipe, model) as writes:
        teacher, target = open_teachers(
            recipe, store, model, tokenizer, stops, prompts.train, writes
        )
        answers, heldout = record_text(teacher, target, prompts, recipe, folder, how)
    student = initial_student(recipe, model, prompts.train, answers, stops)
    return Prepared(
        teacher=teacher,
        target=target,
        transforms=Transforms(recipe, tokenizer),
        reference=_load_reference(recipe, student, stops[0]),
        student=student,
        dtype=torch_dtype(recipe.train.dtype),
        stop_tokens=stops,
        prompts=prompts.train,
        answers=answers,
        heldout=heldout,
        heldout_given=prompts.heldout_given,
        teacher_folder=teacher_folder,
        identity=store.manifest.teacher if store else target_identity(teacher_folder),
    )


def _load_reference(recipe: Recipe, student: PreTrainedModel, pad_token: int) -> LiveTeacher | None:
    name = recipe.objective.reference_model
    if name is None:
        return None
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"objective.reference: {folder} holds no model: give a draft's folder.")
    model = load_model(folder, torch_dtype(recipe.train.dtype)).to(default_device())
    vocab_size = student.config.vocab_size
    if model.config.vocab_size != vocab_size:
        raise ValueError(
            f"objective.reference: {folder} has {model.config.vocab_size} tokens and the student "
            f"{vocab_size}: give a draft of the same target."
        )
    theirs, token_D = read_draft_vocabulary(folder, vocab_size), draft_tokens(student)
    ours = range(vocab_size) if token_D is None else token_D.tolist()
    if theirs is not None and not set(ours) <= set(theirs):
        raise ValueError(
            f"objective.reference: {folder} may not propose all tokens that the student may: "
            "train both with the same student.vocabulary and prompts."
        )
    return LiveTeacher(model, pad_token)


def _check_same_recipe(saved: Recipe, given: Recipe, root: Path) -> None:
    ours, theirs = saved.model_dump(), given.model_dump()
    for section, value in ours.items():
        if value != theirs[section]:
            fields = value if isinstance(value, dict) else {}
            field = next((name for name in fields if fields[name] != theirs[section][name]), None)
            where = f"{section}.{field}" if field else section
            raise ValueError(
                f"{root} was started with another recipe: {where} differs; resume it unchanged."
            )


def _check_disk(student: PreTrainedModel, recipe: Recipe, root: Path) -> None:
    # Per parameter: float32 weights and two moments a checkpoint, and two exported folders.
    per_parameter = 12 * (recipe.train.keep_checkpoints + 1) + 2 * 4
    needed = count_parameters(student) * per_parameter
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ValueError(
            f"{root} has {free / 2**30:.1f} GiB free, but this run writes up to "
            f"{needed / 2**30:.1f} GiB: free some space or choose another --output."
        )
