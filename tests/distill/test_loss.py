"""Charges against closed forms in NumPy, and their invariance to how a batch is split.

Legend: N tokens, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from draftsmith.distill.batch import Example, make_batch
from draftsmith.distill.loss import (
    charged_loss,
    count_trained,
    hardest_tokens,
    label_columns,
    num_kept,
)
from draftsmith.distill.models import load_model
from draftsmith.distill.objectives import REGISTRY, Charge
from draftsmith.distill.recipe import Recipe
from draftsmith.distill.sections import TrainSection
from draftsmith.distill.teacher import LiveTeacher
from draftsmith.distill.trainee import Trainee
from draftsmith.distill.vocabulary import draft_tokens, restrict_head, restrict_signal
from draftsmith.kernels.signal import HiddenSignal

Array = NDArray[np.float64]
STEPS = 10
STEP = 3


def kl(p: Array, q: Array) -> Array:
    return np.asarray((p * np.log(p / q)).sum(-1))


def softmax(z: Array) -> Array:
    exp = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(exp / exp.sum(-1, keepdims=True))


def label_nll(q: Array, y: NDArray[np.int64]) -> Array:
    return np.asarray(-np.log(q[np.arange(len(y)), y]))


def overlap(p: Array, q: Array) -> Array:
    return np.asarray(np.minimum(p, q).sum(-1))


def hybrid(p: Array, q: Array) -> Array:
    share = np.exp(-3 * overlap(p, q))
    return np.asarray(share * kl(p, q) + (1 - share) * (1 - overlap(p, q)))


# Student logits, teacher logits, labels -> loss of each token, for default sections.
CLOSED_FORMS: dict[str, Callable[[Array, Array, NDArray[np.int64]], Array]] = {
    "distillspec": lambda s, t, y: kl(softmax(t), softmax(s)),
    "adaspec": lambda s, t, y: kl(softmax(t), softmax(s)),
    "taid": lambda s, t, y: kl(softmax(0.6 * s + 0.4 * t), softmax(s)),
    "skew_kl": lambda s, t, y: kl(softmax(t), 0.1 * softmax(t) + 0.9 * softmax(s)),
    "skew_reverse_kl": lambda s, t, y: kl(softmax(s), 0.1 * softmax(s) + 0.9 * softmax(t)),
    "lk": lambda s, t, y: -np.log(overlap(softmax(t), softmax(s))),
    "lk_hybrid": lambda s, t, y: hybrid(softmax(t), softmax(s)),
    "minima": lambda s, t, y: 0.5 * label_nll(softmax(s), y) + 0.5 * kl(softmax(t), softmax(s)),
    "seq_kd": lambda s, t, y: label_nll(softmax(s), y),
    "sft": lambda s, t, y: label_nll(softmax(s), y),
    # Linear: the weight of the data has gone 4 of 10 steps from 1 to 0.2.
    "self_distillation": lambda s, t, y: (
        0.68 * label_nll(softmax(s), y) + 0.32 * kl(softmax(t), softmax(s))
    ),
}


MORE_FIELDS = {
    "adaspec": {"reference": "elsewhere"},
    "self_distillation": {"schedule": "linear"},
}


def charge_of(name: str) -> Charge:
    fields = MORE_FIELDS.get(name, {})
    objective = REGISTRY[name].model_validate({"name": name} | fields)
    recipe = Recipe(name="x", train=TrainSection(steps=STEPS), objective=objective)
    return objective.start(recipe).charge(STEP)


def random_pair() -> tuple[Tensor, Tensor, HiddenSignal, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden_NH, head_VH = normal(12, 8), normal(30, 8)
    signal = HiddenSignal(normal(12, 5), normal(30, 5))
    label_N = torch.randint(30, (12,), generator=generator)
    return hidden_NH, head_VH, signal, label_N


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_values_and_gradients_are_those_of_the_closed_form(name: str) -> None:
    hidden_NH, head_VH, signal, label_N = random_pair()
    weight_N = torch.linspace(0.1, 2, 12, dtype=torch.float64)
    teacher_NV, labels = signal.logits_NV(slice(None)).numpy(), label_N.numpy()

    def expected_N(hidden_NH: Tensor) -> Array:
        return CLOSED_FORMS[name]((hidden_NH @ head_VH.T).numpy(), teacher_NV, labels)

    leaf_NH = hidden_NH.clone().requires_grad_()
    charge = charge_of(name)
    teacher = signal if charge.divergence_weight else None
    loss, loss_N = charged_loss(leaf_NH, head_VH, teacher, label_N, charge, weight_N, torch.float64)
    np.testing.assert_allclose(loss_N.numpy(), expected_N(hidden_NH), rtol=1e-9)
    assert loss.item() == pytest.approx((weight_N * loss_N).sum().item(), rel=1e-12)
    loss.backward()
    if name in ("taid", "lk_hybrid"):
        return  # a part of these is held fixed: a difference quotient is not their gradient
    assert leaf_NH.grad is not None
    for token, column in ((0, 0), (3, 5), (11, 7)):
        moved_NH = [hidden_NH.clone(), hidden_NH.clone()]
        moved_NH[0][token, column] += 1e-6
        moved_NH[1][token, column] -= 1e-6
        up, down = (float((expected_N(one) * weight_N.numpy()).sum()) for one in moved_NH)
        assert leaf_NH.grad[token, column].item() == pytest.approx((up - down) / 2e-6, rel=1e-5)


def test_taids_gradient_is_that_of_the_cross_entropy_with_a_fixed_target() -> None:
    hidden_NH, head_VH, signal, label_N = random_pair()
    ours_NH, theirs_NH = hidden_NH.clone().requires_grad_(), hidden_NH.clone().requires_grad_()
    weight_N = torch.ones(12, dtype=torch.float64)
    loss, _ = charged_loss(
        ours_NH, head_VH, signal, label_N, charge_of("taid"), weight_N, torch.float64
    )
    logits_NV = theirs_NH @ head_VH.T
    p_t_NV = (0.6 * logits_NV.detach() + 0.4 * signal.logits_NV(slice(None))).softmax(-1)
    cross_entropy = -(p_t_NV * logits_NV.log_softmax(-1)).sum()
    loss.backward()
    cross_entropy.backward()
    torch.testing.assert_close(ours_NH.grad, theirs_NH.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_student_that_is_the_teacher_has_nothing_to_learn(name: str) -> None:
    """All but the hard labels' share, which a teacher does not have to fit."""
    hidden_NH, head_VH, _, label_N = random_pair()
    leaf_NH = hidden_NH.clone().requires_grad_()
    charge = charge_of(name)
    no_label_N = torch.full_like(label_N, -1)
    weight_N = torch.ones(12, dtype=torch.float64)
    signal = HiddenSignal(hidden_NH, head_VH)
    loss, loss_N = charged_loss(
        leaf_NH, head_VH, signal, no_label_N, charge, weight_N, torch.float64
    )
    loss.backward()
    assert loss_N.abs().max() < 1e-12
    assert leaf_NH.grad is not None
    assert leaf_NH.grad.abs().max() < 1e-12


def test_the_students_own_text_and_unproposable_tokens_have_no_label() -> None:
    examples = [
        Example((1, 2), (5, 9, 6), "recorded"),
        Example((1,), (5, 6), "student"),
        Example((1,), (6, 6), "replay"),
    ]
    batch = make_batch(examples, 0, torch.device("cpu"))
    token_D = torch.tensor([2, 5, 6])
    assert label_columns(batch, token_D).tolist() == [1, -1, 2, -1, -1, -1, -1]
    assert label_columns(batch, None).tolist() == [5, 9, 6, -1, -1, -1, -1]
    hard, mixed = Charge(divergence_weight=0, label_weight=1), Charge(label_weight=1)
    assert count_trained(examples, hard, 1.0, token_D) == 2
    assert count_trained(examples, hard, 1.0, None) == 3
    assert count_trained(examples, mixed, 1.0, token_D) == 7


def test_where_a_label_is_missing_the_divergence_alone_is_charged() -> None:
    hidden_NH, head_VH, signal, label_N = random_pair()
    some_N = torch.where(torch.arange(12) % 3 == 0, -1, label_N)
    weight_N = torch.ones(12, dtype=torch.float64)

    def losses(charge: Charge, label_N: Tensor) -> Tensor:
        return charged_loss(hidden_NH, head_VH, signal, label_N, charge, weight_N, torch.float64)[1]

    minima = charge_of("minima")
    soft_N = losses(Charge(divergence_weight=0.5), label_N)
    expected_N = torch.where(some_N < 0, soft_N, losses(minima, label_N))
    torch.testing.assert_close(losses(minima, some_N), expected_N)


def test_the_hardest_tokens_of_each_response_are_kept() -> None:
    gap_N = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.3, 7.0, 8.0])
    kept = hardest_tokens(gap_N, [5, 2], 0.4)
    assert kept.tolist() == [False, True, True, False, False, False, True]
    assert hardest_tokens(gap_N, [5, 2], 1.0).all()


@pytest.mark.parametrize(("length", "share", "kept"), [(30, 0.1, 3), (5, 0.4, 2), (1, 0.01, 1)])
def test_shares_are_rounded_up_but_for_rounding_errors(
    length: int, share: float, kept: int
) -> None:
    assert num_kept(length, share) == kept


@pytest.mark.parametrize("vocabulary", [None, 150])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_loss_and_gradient_do_not_depend_on_micro_batches(
    tiny_target: Path, name: str, vocabulary: int | None
) -> None:
    """The charges and the draft vocabulary of every objective, on all kinds of text."""
    teacher = LiveTeacher(load_model(tiny_target, torch.float64), 2)
    reference = LiveTeacher(_perturbed(load_model(tiny_target, torch.float64), 3), 2)
    student = _perturbed(load_model(tiny_target, torch.float64), 4).train().requires_grad_()
    if vocabulary:
        restrict_head(student, range(vocabulary))
    charge = charge_of(name)
    trainee = Trainee(student, torch.float64, 0.4 if name == "adaspec" else 1.0)
    examples = [
        Example((3, 4, 5), (7, 200, 9, 10, 11), "recorded"),
        Example((3,), (8, 12), "student"),
        Example((6, 7), (20, 21, 22), "replay"),
        Example((9, 9, 9, 9), (300, 42), "recorded"),
    ]

    def step(parts: Sequence[Sequence[Example]]) -> tuple[float, Tensor]:
        student.zero_grad()
        total = 0.0
        for part in parts:
            batch = make_batch(part, 2, torch.device("cpu"))
            signal = None
            if charge.divergence_weight:
                signal = restrict_signal(teacher.signal(part), draft_tokens(student))
            theirs = reference.signal(part) if name == "adaspec" else None
            loss, loss_N = trainee(batch, signal, 0.25, charge, theirs)
            loss.backward()
            total += loss_N.sum().item()
        gradients = [one.grad.flatten() for one in student.parameters() if one.grad is not None]
        return total, torch.cat(gradients)

    whole, whole_gradient = step([examples])
    split, split_gradient = step([examples[2:], examples[:1], examples[1:2]])
    assert whole > 0
    assert split == pytest.approx(whole, rel=1e-9)
    assert (split_gradient - whole_gradient).norm() <= 1e-9 * whole_gradient.norm()


def _perturbed(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05 * weight.std().item())
    return model
