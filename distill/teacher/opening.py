"""From a recipe to its teachers, with no more of the model in memory than they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from draftsmith.distill.answers import EncodedPrompt
from draftsmith.distill.manifest import target_identity, tokenizer_fingerprint
from draftsmith.distill.models import default_device, load_model, load_shape, torch_dtype
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sampling import Generate
from draftsmith.distill.sections.teacher import MemberSection
from draftsmith.distill.teacher.ensemble import EnsembleTeacher, member_weights
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
    prompts: Sequence[EncodedPrompt],
    writes: Generate | None = None,
) -> tuple[Teacher, Teacher]:
    """(teacher, target): who gives the signals that are trained on, and whom the student is for.

    Args:
        model: as `load_teacher` gave it.
        prompts: that are trained on.
        writes: what writes the model's answers in its stead.

    Raises:
        ValueError: a server is not the one that the recipe asks for, or a member of several
            teachers does not fit.
    """
    if store is not None:
        device = default_device()
        return StoredTeacher(store, "train", device), StoredTeacher(store, "heldout", device)
    if recipe.teacher.remote is not None:
        vocab_size = model.config.vocab_size
        remote = RemoteTeacher(recipe.teacher.remote, tokenizer, vocab_size, default_device())
        return remote, remote
    states = Path(recipe.teacher.states).expanduser() if recipe.teacher.states else None
    target = LiveTeacher(model, stop_tokens[0], writes, states)
    if not recipe.teacher.members:
        return target, target
    members = [_member(one, recipe, target, stop_tokens[0]) for one in recipe.teacher.members]
    return EnsembleTeacher(target, members, member_weights(prompts, recipe.teacher.members)), target


def _member(
    section: MemberSection, recipe: Recipe, target: LiveTeacher, pad_token: int
) -> LiveTeacher:
    if (section.model, section.dtype) == (recipe.teacher.model, recipe.teacher.dtype):
        return target
    folder, vocab_size = Path(section.model).expanduser(), target.model.config.vocab_size
    model = load_model(folder, torch_dtype(section.dtype)).to(default_device())
    ours = tokenizer_fingerprint(Path(recipe.teacher.model))
    if model.config.vocab_size != vocab_size or tokenizer_fingerprint(folder) != ours:
        raise ValueError(
            f"teacher.members: {folder} has another vocabulary than teacher.model: all teachers "
            "need the same tokens."
        )
    return LiveTeacher(model, pad_token)


def _check_same_model(store: SignalStore, folder: Path) -> None:
    ours, theirs = store.manifest.teacher, target_identity(folder)
    if ours.model_copy(update={"name": theirs.name}) != theirs:
        raise ValueError(
            f"teacher.model: {folder} is not the model '{ours.name}' whose signals lie in "
            f"{store.folder}: the student would be cut out of another teacher."
        )
