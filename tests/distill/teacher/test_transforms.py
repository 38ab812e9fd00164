"""What a recipe does to a signal: which tokens are private, and noise that nothing can shift."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from draftsmith.distill.batch import Example
from draftsmith.distill.models import load_tokenizer
from draftsmith.distill.recipe import Recipe, load_recipe
from draftsmith.distill.sections.teacher import PrivacySection
from draftsmith.distill.teacher.transforms import Transforms, private_tokens
from draftsmith.kernels.signal import LogitsSignal

TEXT = "Dial 555-123-4567 now, or write to a.b@example.org today; 42 is fine. naïve"


def test_private_tokens_are_those_that_touch_a_match(tiny_target: Path) -> None:
    tokenizer = load_tokenizer(tiny_target)
    tokens = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    private = private_tokens(tokenizer, tokens, PrivacySection().patterns)
    hidden = "".join(
        tokenizer.decode([token]) if flag else "|"
        for token, flag in zip(tokens, private, strict=True)
    )
    found = [part.strip() for part in re.split(r"\|+", hidden) if part.strip()]
    assert found == ["555-123-4567", "a.b@example.org"]
    assert private_tokens(tokenizer, [], [r"\d"]) == []


def recipe(target: Path, *overrides: str) -> Recipe:
    return load_recipe("tiny", [f"teacher.model={target}", *overrides])


def test_noise_belongs_to_step_text_and_place(tiny_target: Path) -> None:
    tokenizer = load_tokenizer(tiny_target)
    transforms = Transforms(recipe(tiny_target, "teacher.privacy.noise=0.5"), tokenizer)
    secret, plain = (
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in ("call 5551234567", "nothing")
    )
    first, second = Example((1, 2), secret, "recorded"), Example((3,), plain, "student")
    clean = LogitsSignal(torch.randn(len(secret) + len(plain), 30))
    swapped = LogitsSignal(
        torch.cat([clean.dense_NV[len(secret) :], clean.dense_NV[: len(secret)]])
    )
    got = transforms(clean, [first, second], step=3).logits_NV(slice(None))
    other = transforms(swapped, [second, first], step=3).logits_NV(slice(None))
    assert torch.equal(got[: len(secret)], other[len(plain) :])
    assert torch.equal(got[len(secret) :], clean.dense_NV[len(secret) :])
    assert not torch.equal(got[: len(secret)], clean.dense_NV[: len(secret)])
    later = transforms(clean, [first, second], step=4).logits_NV(slice(None))
    assert not torch.equal(later, got)


def test_a_recipe_without_transforms_changes_nothing(tiny_target: Path) -> None:
    transforms = Transforms(recipe(tiny_target), load_tokenizer(tiny_target))
    signal = LogitsSignal(torch.zeros(1, 4))
    assert transforms(signal, [Example((1,), (2,), "recorded")], 0) is signal


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.reliable.top_k=5", "objective.divergence=reverse_kl"], "teacher.reliable.tail"),
        (["teacher.privacy.patterns=['(']"], "'(' is no regular expression"),
        (["teacher.reliable.mas=0.5"], "did you mean 'mass'"),
        (["teacher.members=[{model='a', wieght=1.0}]"], "did you mean 'weight'"),
        (["teacher.remote.url='ftp://x'"], "teacher.remote.url"),
        (["teacher.remote.url='http://x'", "teacher.stored='y'"], "either stored or remote"),
        (["teacher.stored='y'", "teacher.members=[{model='a'}]"], "leave out stored and remote"),
        (["teacher.remote.url='http://x'", "objective.temperature=2"], "objective.temperature"),
    ],
)
def test_recipes_that_cannot_work_are_refused(
    tiny_target: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        recipe(tiny_target, *overrides)
    assert "\n" not in str(error.value)
