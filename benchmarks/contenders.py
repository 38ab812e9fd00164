"""The contenders of `kd_loss.py`: the same mean loss by our code, torch's, and other libraries'.

Legend: N tokens, V vocabulary, H student width, G teacher width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from draftsmith.kernels.linear import fused_linear_divergence
from draftsmith.kernels.signal import HiddenSignal

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Loss = Callable[["Inputs"], Tensor]


@dataclass(frozen=True)
class Shape:
    tokens: int
    vocab: int
    student_width: int
    teacher_width: int


@dataclass(frozen=True)
class Inputs:
    hidden_NH: Tensor
    head_VH: Tensor
    teacher: HiddenSignal
    weight_N: Tensor

    @classmethod
    def random(cls, shape: Shape) -> Inputs:
        """Peaked rows: standard deviation of the logits is 4 for both models."""
        generator = torch.Generator(DEVICE).manual_seed(0)

        def normal(rows: int, width: int, scale: float) -> Tensor:
            values = torch.randn(rows, width, generator=generator, device=DEVICE)
            return values.mul_(scale).bfloat16()

        heads = [
            normal(shape.vocab, width, 4 / width**0.5)
            for width in (shape.student_width, shape.teacher_width)
        ]
        return cls(
            normal(shape.tokens, shape.student_width, 1).requires_grad_(),
            heads[0].requires_grad_(),
            HiddenSignal(normal(shape.tokens, shape.teacher_width, 1), heads[1]),
            torch.full((shape.tokens,), 1 / shape.tokens, device=DEVICE),
        )

    def first(self, tokens: int, dtype: torch.dtype) -> Inputs:
        """The first tokens of these, as leaves of their own."""
        teacher = HiddenSignal(
            self.teacher.hidden_NG[:tokens].to(dtype), self.teacher.head_VG.to(dtype)
        )
        hidden_NH, head_VH = self.hidden_NH.detach()[:tokens], self.head_VH.detach()
        return Inputs(
            hidden_NH.to(dtype, copy=True).requires_grad_(),
            head_VH.to(dtype, copy=True).requires_grad_(),
            teacher,
            torch.full((tokens,), 1 / tokens, device=DEVICE),
        )

    def drop_gradients(self) -> None:
        self.hidden_NH.grad = self.head_VH.grad = None


def textbook(divergence: str, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Mean divergence by torch's own functions, as most training code writes it."""
    log_q, log_p = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    if divergence == "forward_kl":
        return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    if divergence == "reverse_kl":
        return functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    if divergence == "jsd":
        log_m = torch.logaddexp(log_q, log_p) - torch.tensor(2.0, dtype=log_q.dtype).log()
        sides = [
            functional.kl_div(log_m, one, reduction="batchmean", log_target=True)
            for one in (log_q, log_p)
        ]
        return 0.5 * (sides[0] + sides[1])
    if divergence == "tvd":
        return 0.5 * (log_q.exp() - log_p.exp()).abs().sum(-1).mean()
    raise ValueError(f"The benchmark has no plain form of {divergence}.")


def projected(inputs: Inputs, divergence: str, product: torch.dtype, row: torch.dtype) -> Tensor:
    """Eager loss with products and rows in the given precisions."""
    student_NV = (inputs.hidden_NH.to(product) @ inputs.head_VH.to(product).T).to(row)
    teacher = inputs.teacher
    teacher_NV = (teacher.hidden_NG.to(product) @ teacher.head_VG.to(product).T).to(row)
    return textbook(divergence, student_NV, teacher_NV)


def ours(divergence: str, backend: str) -> Loss:
    def loss(inputs: Inputs) -> Tensor:
        return fused_linear_divergence(
            inputs.hidden_NH,
            inputs.head_VH,
            inputs.teacher,
            inputs.weight_N,
            divergence=divergence,
            backend=backend,
        )[0]

    return loss


def liger_triton(divergence: str) -> Loss:
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}[divergence]

    def loss(inputs: Inputs) -> Tensor:
        teacher = inputs.teacher
        value = LigerFusedLinearJSDFunction.apply(
            inputs.hidden_NH, inputs.head_VH, teacher.hidden_NG, teacher.head_VG, None, beta
        )
        return cast(Tensor, value)

    return loss


def liger_kl(inputs: Inputs) -> Tensor:
    from liger_kernel.ops.fused_linear_kl_div import LigerFusedLinearKLDivFunction

    teacher = inputs.teacher
    p_NV = (teacher.hidden_NG @ teacher.head_VG.T).softmax(-1)
    value = LigerFusedLinearKLDivFunction.apply(inputs.hidden_NH, inputs.head_VH, p_NV)
    return cast(Tensor, value)


def liger_chunked(divergence: str) -> Loss:
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}[divergence]
    module = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)

    def loss(inputs: Inputs) -> Tensor:
        labels = torch.zeros(len(inputs.weight_N), dtype=torch.int64, device=DEVICE)
        teacher = inputs.teacher
        value = module(inputs.hidden_NH, inputs.head_VH, teacher.hidden_NG, teacher.head_VG, labels)
        return cast(Tensor, value)

    return loss


def trl(divergence: str) -> Loss:
    from trl.experimental.gkd import GKDTrainer

    beta = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}[divergence]

    def loss(inputs: Inputs) -> Tensor:
        student_NV = inputs.hidden_NH @ inputs.head_VH.T
        teacher_NV = inputs.teacher.hidden_NG @ inputs.teacher.head_VG.T
        return cast(Tensor, GKDTrainer.generalized_jsd_loss(student_NV, teacher_NV, beta=beta))

    return loss


def torch_eager(divergence: str, product: torch.dtype) -> Loss:
    return lambda inputs: projected(inputs, divergence, product, torch.float32)


def torch_compiled(divergence: str) -> Loss:
    compiled = torch.compile(projected, dynamic=False)
    return lambda inputs: compiled(inputs, divergence, torch.bfloat16, torch.float32)


MAKERS: dict[str, Callable[[str], Loss]] = {
    "draftsmith": lambda divergence: ours(divergence, "auto"),
    "draftsmith eager": lambda divergence: ours(divergence, "eager"),
    "torch float32": lambda divergence: torch_eager(divergence, torch.float32),
    "torch bfloat16": lambda divergence: torch_eager(divergence, torch.bfloat16),
    "torch.compile": torch_compiled,
    "Liger fused-linear JSD": liger_triton,
    "Liger fused-linear KL": lambda _: liger_kl,
    "Liger chunked JSD": liger_chunked,
    "TRL generalized JSD": trl,
}


def contenders(divergence: str) -> tuple[dict[str, Loss], dict[str, str]]:
    """What can run here, by name, and why the others cannot."""
    can: dict[str, Loss] = {}
    cannot: dict[str, str] = {}
    for name, make in MAKERS.items():
        if ("JSD" in name and divergence == "tvd") or (
            "linear KL" in name and divergence != "forward_kl"
        ):
            cannot[name] = f"has no {divergence}"
        elif "fused-linear" in name and DEVICE.type != "cuda":
            cannot[name] = "its Triton kernels need a GPU"
        else:
            try:
                can[name] = make(divergence)
            except ImportError as error:
                cannot[name] = f"cannot be imported here: {error}"
    return can, cannot
