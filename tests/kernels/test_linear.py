"""The chunked head against plain autograd: value, gradients, any chunk, mask, dtype and term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from draftsmith.kernels.divergences import DIVERGENCES
from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.signal import HiddenSignal, LogitsSignal
from tests.kernels.textbook import KNOBS, divergence_N

N, V, H, G = 11, 37, 5, 6
# One divergence of each shape of closed form, where running all would prove nothing more.
SOME = ["forward_kl", "jsd", "lk"]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, HiddenSignal, Tensor]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    weight_N = torch.rand(N, dtype=torch.float64, generator=generator)
    weight_N[2] = weight_N[9] = 0
    hidden, head = normal(N, H), normal(V, H)
    return (
        hidden.requires_grad_(),
        head.requires_grad_(),
        HiddenSignal(normal(N, G), normal(V, G)),
        weight_N,
    )


def fused(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    return fused_linear_divergence(*arguments, **({"divergence": "forward_kl"} | KNOBS | options))


@pytest.mark.parametrize("chunk_rows", [1, 3, N, 1000])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equals_autograd_for_any_chunk(name: str, chunk_rows: int) -> None:
    hidden, head, teacher, weight_N = inputs()
    temperature = 1.7
    student_NV = hidden @ head.T / temperature
    expected_N = divergence_N(name, student_NV, teacher.logits_NV(slice(None)) / temperature)
    expected = (weight_N * expected_N).sum()
    expected_grads = torch.autograd.grad(expected, (hidden, head))

    loss, loss_N = fused(
        hidden, head, teacher, weight_N,
        divergence=name, temperature=temperature, chunk_bytes=16 * V * chunk_rows,
    )  # fmt: skip
    grads = torch.autograd.grad(loss, (hidden, head))

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_N, (expected_N * (weight_N != 0)).detach())
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "lk_hybrid"])
def test_gradcheck_with_every_term(name: str) -> None:
    hidden, head, teacher, weight_N = inputs()
    bias_V = torch.linspace(-1, 1, V, dtype=torch.float64).requires_grad_()

    def loss(hidden: Tensor, head: Tensor, bias_V: Tensor) -> Tensor:
        return fused(
            hidden, head, teacher, weight_N, divergence=name, temperature=1.7, softcap=3.0,
            student_bias_V=bias_V, label_N=torch.arange(N), label_weight=0.4,
            chunk_bytes=16 * V * 4,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(loss, (hidden, head, bias_V))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", SOME)
def test_all_terms_equal_autograd(name: str, temperature: float) -> None:
    """Softcap of both models, both biases, labels at temperature 1, and TAID's target."""
    hidden, head, teacher, weight_N = inputs()
    bias_V = torch.linspace(-1, 1, V, dtype=torch.float64).requires_grad_()
    teacher = HiddenSignal(teacher.hidden_NG, teacher.head_VG, bias_V.detach().flip(0), 4.0)
    label_N = torch.arange(N) * 3
    student_NV = 3 * torch.tanh((hidden @ head.T + bias_V) / 3)
    scaled_NV = student_NV / temperature
    target_NV = 0.6 * scaled_NV.detach() + 0.4 * teacher.logits_NV(slice(None)) / temperature
    entropy_N = functional.cross_entropy(student_NV, label_N, reduction="none")
    expected_N = divergence_N(name, scaled_NV, target_NV) + 0.7 * entropy_N
    expected = (weight_N * expected_N).sum()
    loss, loss_N = fused(
        hidden, head, teacher, weight_N, divergence=name, temperature=temperature, softcap=3.0,
        student_bias_V=bias_V, label_N=label_N, label_weight=0.7, interpolation=0.4,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_N, (expected_N * (weight_N != 0)).detach())
    torch.testing.assert_close(
        torch.autograd.grad(loss, (hidden, head, bias_V)),
        torch.autograd.grad(expected, (hidden, head, bias_V)),
    )


def test_taid_runs_from_the_student_itself_to_the_teacher() -> None:
    hidden, head, teacher, weight_N = inputs()
    start, _ = fused(hidden, head, teacher, weight_N, interpolation=0.0)
    end, _ = fused(hidden, head, teacher, weight_N, interpolation=1.0)
    plain, _ = fused(hidden, head, teacher, weight_N)
    assert start.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(end, plain)


def test_gradient_scales_with_what_comes_from_above() -> None:
    hidden, head, teacher, weight_N = inputs()
    loss, _ = fused(hidden, head, teacher, weight_N)
    single = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    triple = torch.autograd.grad(3 * loss, (hidden, head))
    torch.testing.assert_close(triple, tuple(3 * grad for grad in single))


def test_hidden_and_dense_signals_are_the_same_teacher() -> None:
    hidden, head, teacher, weight_N = inputs()
    dense = LogitsSignal(teacher.logits_NV(slice(None)))
    from_hidden, _ = fused(hidden, head, teacher, weight_N, divergence="jsd")
    from_dense, _ = fused(hidden, head, dense, weight_N, divergence="jsd")
    torch.testing.assert_close(from_hidden, from_dense)


def test_a_frozen_head_changes_no_other_gradient() -> None:
    hidden, head, teacher, weight_N = inputs()
    free, _ = fused(hidden, head, teacher, weight_N, divergence="jsd")
    frozen, _ = fused(hidden, head.detach(), teacher, weight_N, divergence="jsd")
    torch.testing.assert_close(
        torch.autograd.grad(frozen, hidden), torch.autograd.grad(free, hidden)
    )


def test_without_gradients_the_value_is_the_same() -> None:
    hidden, head, teacher, weight_N = inputs()
    trained, trained_N = fused(hidden, head, teacher, weight_N)
    with torch.no_grad():
        plain, plain_N = fused(hidden, head, teacher, weight_N)
    assert not plain.requires_grad
    assert not trained_N.requires_grad
    torch.testing.assert_close((plain, plain_N), (trained.detach(), trained_N))


def test_all_tokens_masked_gives_zero_gradients() -> None:
    hidden, head, teacher, weight_N = inputs()
    loss, _ = fused(hidden, head, teacher, torch.zeros_like(weight_N))
    grads = torch.autograd.grad(loss, (hidden, head))
    assert loss.item() == 0
    assert all(not grad.any() for grad in grads)


def test_masked_rows_may_hold_anything() -> None:
    hidden, head, teacher, weight_N = inputs()
    expected, expected_N = fused(hidden, head, teacher, weight_N)
    with torch.no_grad():
        hidden[2] = torch.nan
        teacher.hidden_NG[9] = torch.inf
    label_N = torch.where(weight_N == 0, -100, 1)
    loss, loss_N = fused(hidden, head, teacher, weight_N, label_N=label_N)
    torch.testing.assert_close((loss, loss_N), (expected, expected_N))


def test_a_single_token() -> None:
    hidden, head, teacher, weight_N = inputs()
    one = HiddenSignal(teacher.hidden_NG[:1], teacher.head_VG)
    loss, loss_N = fused(hidden[:1], head, one, weight_N[:1])
    expected_N = divergence_N("forward_kl", hidden[:1] @ head.T, one.logits_NV(slice(None)))
    torch.testing.assert_close(loss_N, expected_N.detach())
    torch.testing.assert_close(loss.detach(), (weight_N[:1] * expected_N).sum().detach())


@pytest.mark.parametrize("common", [V, V - 4])
def test_padded_vocabularies_get_no_mass_and_no_gradient(common: int) -> None:
    hidden, head, teacher, weight_N = inputs()
    longer = HiddenSignal(
        teacher.hidden_NG, torch.cat([teacher.head_VG, 50 * torch.ones(3, G).double()])
    )
    cut = HiddenSignal(teacher.hidden_NG, teacher.head_VG[:common])
    expected, _ = fused(hidden, head[:common], cut, weight_N, divergence="jsd")
    loss, _ = fused(hidden, head, longer, weight_N, divergence="jsd", vocab_size=common)
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(loss, (hidden, head))
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (hidden, head)))
    assert not grads[1][common:].any()


def test_compiles_as_one_graph() -> None:
    hidden, head, teacher, weight_N = inputs()

    def step(hidden: Tensor, head: Tensor, t: float) -> Tensor:
        loss, loss_N = fused(2 * hidden, head, teacher, weight_N, interpolation=t)
        return loss + loss_N.max()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for t in (0.3, 0.4):
        expected = step(hidden, head, t)
        loss = compiled(hidden, head, t)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, (hidden, head)),
            torch.autograd.grad(expected, (hidden, head)),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_head_VH": torch.zeros(V - 1, H)}, "same vocabulary"),
        ({"student_head_VH": torch.zeros(V, H + 1)}, "student_head_VH has width 6"),
        ({"student_hidden_NH": torch.zeros(N, H, 1)}, "student_hidden_NH must be"),
        ({"weight_N": torch.ones(N - 1)}, "weight_N must have shape"),
        ({"weight_N": torch.full((N,), torch.nan)}, "weight_N must be finite"),
        ({"teacher": LogitsSignal(torch.zeros(N + 1, V))}, "teacher covers 12 tokens"),
        ({"teacher": torch.zeros(N, V)}, "teacher must be a HiddenSignal"),
        ({"teacher": HiddenSignal(torch.zeros(N, G), torch.zeros(V, H))}, "teacher.hidden_NG"),
        ({"divergence": "kl"}, "Unknown divergence 'kl'"),
        ({"beta": 0.0}, "beta must lie"),
        ({"label_weight": 1.0}, "label_weight needs label_N"),
        ({"label_weight": 1.0, "label_N": torch.full((N,), V)}, "label_N must hold token ids"),
        ({"student_bias_V": torch.zeros(3)}, "student_bias_V must have shape"),
        ({"vocab_size": V + 1}, "vocab_size must lie"),
        ({"backend": "cuda"}, "Unknown backend 'cuda'"),
        ({"chunk_bytes": 0}, "chunk_bytes must be positive"),
    ],
)
def test_wrong_arguments_are_named_in_one_sentence(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "student_hidden_NH": torch.zeros(N, H),
        "student_head_VH": torch.zeros(V, H),
        "teacher": LogitsSignal(torch.zeros(N, V)),
        "weight_N": torch.ones(N),
        "divergence": "jsd",
    }
    with pytest.raises(ValueError, match=message) as error:
        fused_linear_divergence(**(arguments | change))
    assert "\n" not in str(error.value)
