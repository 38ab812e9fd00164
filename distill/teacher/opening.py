"""From a recipe to its teachers, with no more of the model in memory than they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from draftsmith.distill.manifest import target_identity
from draftsmith.distill.models import default_device, load_model, load_shape, torch_dtype
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.teacher.live import LiveTeacher
from draftsmith.distill.teacher.protocol import Teacher
from draftsmith.distill.teacher.remote import RemoteTeacher
from draftsmith.distill.teacher.store import SignalStore
from draftsmith.distill.teacher.stored import StoredTeacher


def open_store(recipe: Recipe) -> SignalStore | None:
    """The recorded signals that the recipe names.

    Raises:
        ValueError: there are none, or they cannot be used with its objective.
    """
    if recipe.teacher.stored is None:
        return None
    store = SignalStore.open(Path(recipe.teacher.stored).expanduser())
    recorded, asked = store.manifest.temperature, recipe.objective.divergence_temperature
    if store.manifest.format == "top_k" and recorded != asked:
        raise ValueError(
            f"objective.temperature is {asked}, but {store.folder} was recorded at {recorded}: "
            "log-probabilities of some tokens cannot be turned into those at another temperature."
        )
    return store


def load_teacher(recipe: Recipe, store: SignalStore | None) -> PreTrainedModel:
    """The model that teaches, or that the student is cut out of; else its shape, without weights.

    Raises:
        ValueError: it cannot be loaded, or it is not the one whose signals were stored.
    """
    if not recipe.loads_teacher:
        return load_shape(store.model_folder if store else Path(recipe.teacher.model))
    folder = Path(recipe.teacher.model)
    if store is not None:
        _check_same_model(store, folder)
    return load_model(folder, torch_dtype(recipe.teacher.dtype)).to(default_device())


def open_teachers(
    recipe: Recipe,
    store: SignalStore | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_tokens: Sequence[int],
) -> tuple[Teacher, Teacher]:
    """(teacher, target): who gives the signals that are trained on, and whom the student is for.

    Args:
        model: as `load_teacher` gave it.

    Raises:
        ValueError: a server is not the one that the recipe asks for.
    """
    if store is not None:
        device = default_device()
        return StoredTeacher(store, "train", device), StoredTeacher(store, "heldout", device)
    target: Teacher
    if recipe.teacher.remote is not None:
        vocab_size = model.config.vocab_size
        target = RemoteTeacher(recipe.teacher.remote, tokenizer, vocab_size, default_device())
    else:
        target = LiveTeacher(model, stop_tokens[0])
    return target, target


def _check_same_model(store: SignalStore, folder: Path) -> None:
    ours, theirs = store.manifest.teacher, target_identity(folder)
    if ours.model_copy(update={"name": theirs.name}) != theirs:
        raise ValueError(
            f"teacher.model: {folder} is not the model '{ours.name}' whose signals lie in "
            f"{store.folder}: the student would be cut out of another teacher."
        )
