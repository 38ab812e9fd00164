"""Go on from a trained model: a draft, or any model with the teacher's vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from draftsmith.distill.manifest import read_draft_vocabulary
from draftsmith.distill.models import load_model, load_tokenizer
from draftsmith.distill.sections import StudentSection


def load_student(section: StudentSection) -> PreTrainedModel:
    """The model in the folder `section.model`, in float32.

    Raises:
        ValueError: it cannot be loaded.
    """
    return load_model(loaded_folder(section), torch.float32).train()


def loaded_folder(section: StudentSection) -> Path:
    assert section.model is not None, "the section's validator sees to it"
    return Path(section.model)


def loaded_vocabulary(section: StudentSection, vocab_size: int) -> list[int] | None:
    """The tokens that the loaded student may propose, where it is a draft that has fewer.

    Raises:
        ValueError: the recipe asks for another draft vocabulary.
    """
    folder = loaded_folder(section)
    tokens = read_draft_vocabulary(folder, vocab_size)
    if tokens is not None and section.vocabulary:
        raise ValueError(
            f"student.vocabulary: {folder} already proposes {len(tokens)} tokens only: leave "
            "student.vocabulary out to keep them."
        )
    return tokens


def check_same_vocabulary(teacher: PreTrainedModel, student: PreTrainedModel) -> None:
    """Refuse pairs whose token ids cannot be compared.

    Raises:
        ValueError: the vocabularies have different sizes.
    """
    ours, theirs = student.config.vocab_size, teacher.config.vocab_size
    if ours != theirs:
        raise ValueError(
            f"The student has {ours} tokens and the teacher {theirs}: "
            "both need the same vocabulary."
        )


def check_same_tokens(teacher: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse a model to start from whose tokens are not the teacher's.

    Raises:
        ValueError: names a token that has another id, or none.
    """
    ours, theirs = load_tokenizer(folder).get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    token = min(one for one in ours.keys() | theirs.keys() if ours.get(one) != theirs.get(one))
    raise ValueError(
        f"student.model: {folder} and the teacher have different tokenizers: {token!r} is "
        f"{ours.get(token, 'unknown')} for the one and {theirs.get(token, 'unknown')} for the "
        "other."
    )
