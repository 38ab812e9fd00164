"""Everything that is prepared before a run's first step: folder, models, prompts, answers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from draftsmith.distill import distributed
from draftsmith.distill.answers import Answer, EncodedPrompt, record_answers
from draftsmith.distill.batch import Example
from draftsmith.distill.folder import RunFolder
from draftsmith.distill.manifest import read_draft_vocabulary
from draftsmith.distill.models import (
    count_parameters,
    default_device,
    load_model,
    load_tokenizer,
    stop_tokens,
    torch_dtype,
)
from draftsmith.distill.prompts import Prompt, encode_prompts, load_prompts
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.rollout import teacher_samplings
from draftsmith.distill.sampling import Sampling
from draftsmith.distill.student.initial import initial_student, planned_student
from draftsmith.distill.teacher import Teacher
from draftsmith.distill.vocabulary import draft_tokens


@dataclass(frozen=True)
class Prepared:
    """What the training loop needs: models, prompts as tokens, and recorded answers.

    Prompts hold the responses that the data gives where they are trained on; reference is the
    model that chooses among tokens, where the objective has one. heldout are the teacher's
    answers, heldout_given those of the data, where the objective looks at them.
    """

    teacher: Teacher
    reference: Teacher | None
    student: PreTrainedModel
    dtype: torch.dtype
    stop_tokens: list[int]
    prompts: list[EncodedPrompt]
    answers: list[list[Answer]]
    heldout: list[Example]
    heldout_given: list[Example]


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
    return folder


def prepare(recipe: Recipe, folder: RunFolder) -> Prepared:
    """Load the teacher, make the student, encode the prompts and record the teacher's answers.

    Raises:
        ValueError: names what is wrong with the models, the prompts or the disk.
    """
    teacher_folder = Path(recipe.teacher.model)
    # Cheap checks come first: a typo in a prompt file must not cost a model's loading time.
    heldout_set = load_prompts(recipe.data.heldout, limit=recipe.data.heldout_limit)
    tokenizer = load_tokenizer(teacher_folder)
    prompts = encode_training_prompts(recipe, tokenizer)
    heldout_prompts = _encode(heldout_set, tokenizer, recipe, with_answers=False)
    heldout_given = _given_heldout(heldout_set, tokenizer, recipe)

    model = load_model(teacher_folder, torch_dtype(recipe.teacher.dtype)).to(default_device())
    _check_disk(planned_student(model, tokenizer, recipe), recipe, folder.root)
    stops = stop_tokens(model, tokenizer)
    path = folder.root / "answers-train.jsonl"
    answers = record_training_answers(path, recipe, model, prompts, stops)
    student = initial_student(recipe, model, prompts, answers, stops)
    heldout_answers = record_answers(
        folder.root / "answers-heldout.jsonl",
        model,
        heldout_prompts,
        [_serving_sampling(recipe)],
        seed=recipe.seed,
        stop_tokens=stops,
        batch_size=recipe.rollout.batch_size,
        label="teacher answers, held out",
    )
    heldout = [
        Example(prompt.tokens, answer.tokens, "recorded")
        for prompt, (answer, *_) in zip(heldout_prompts, heldout_answers, strict=True)
    ]
    return Prepared(
        teacher=Teacher(model, stops[0]),
        reference=_load_reference(recipe, student, stops[0]),
        student=student,
        dtype=torch_dtype(recipe.train.dtype),
        stop_tokens=stops,
        prompts=prompts,
        answers=answers,
        heldout=heldout,
        heldout_given=heldout_given,
    )


def encode_training_prompts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> list[EncodedPrompt]:
    """Prompts as tokens, with given responses where they are trained on.

    Raises:
        ValueError: a line is wrong, or a prompt lacks the response that the objective needs.
    """
    train_set = load_prompts(recipe.data.train, limit=recipe.data.limit)
    prompts = _encode(train_set, tokenizer, recipe, recipe.uses_given_responses)
    _check_responses(prompts, recipe)
    return prompts


def record_training_answers(
    path: Path,
    recipe: Recipe,
    teacher: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    stops: Sequence[int],
) -> list[list[Answer]]:
    return record_answers(
        path,
        teacher,
        _answered_by_the_teacher(prompts, recipe),
        teacher_samplings(recipe.rollout),
        seed=recipe.seed,
        stop_tokens=stops,
        batch_size=recipe.rollout.batch_size,
        label="teacher answers",
    )


def _serving_sampling(recipe: Recipe) -> Sampling:
    section = recipe.evaluate
    return Sampling(recipe.rollout.max_new_tokens, section.temperature, section.top_p)


def _encode(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    with_answers: bool,
) -> list[EncodedPrompt]:
    encoded = encode_prompts(prompts, tokenizer, recipe.data.max_prompt_tokens)
    encode_answer = partial(_encode_answer, tokenizer, recipe.rollout.max_new_tokens)
    return [
        EncodedPrompt(
            prompt.id,
            tuple(tokens),
            encode_answer(prompt.response) if with_answers and prompt.response else None,
        )
        for prompt, tokens in zip(prompts, encoded, strict=True)
    ]


def _check_responses(prompts: Sequence[EncodedPrompt], recipe: Recipe) -> None:
    if not recipe.needs_given_responses:
        return
    missing = [prompt for prompt in prompts if prompt.answer is None]
    if missing:
        who = "rollout.given_fraction" if recipe.rollout.given_fraction else recipe.objective.name
        raise ValueError(
            f"data.train: {len(missing)} of {len(prompts)} prompts have no response, which {who} "
            f"needs; the first one is {missing[0].id}."
        )


def _given_heldout(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> list[Example]:
    if not recipe.objective.needs_heldout_responses:
        return []
    encoded = _encode(prompts, tokenizer, recipe, with_answers=True)
    given = [Example(one.tokens, one.answer, "recorded") for one in encoded if one.answer]
    if len(given) < len(encoded):
        raise ValueError(
            f"data.heldout: {len(encoded) - len(given)} of {len(encoded)} prompts have no "
            f"response, which {recipe.objective.name} needs for its schedule: choose another "
            "objective.schedule."
        )
    return given


def _answered_by_the_teacher(
    prompts: Sequence[EncodedPrompt], recipe: Recipe
) -> list[EncodedPrompt]:
    """Prompts that carry a given response are not answered; in a mixture both are wanted."""
    if not recipe.rollout.given_fraction:
        return list(prompts)
    return [replace(prompt, answer=None) for prompt in prompts]


def _load_reference(recipe: Recipe, student: PreTrainedModel, pad_token: int) -> Teacher | None:
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
    return Teacher(model, pad_token)


def _encode_answer(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int, answer: str
) -> tuple[int, ...]:
    tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return (*tokens, tokenizer.eos_token_id)[:max_tokens]


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
