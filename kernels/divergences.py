"""The one definition of each divergence: value and closed-form gradient, row by row.

Legend: N tokens, V vocabulary. p = teacher, q = student, both softmax(logits / temperature).
Every other path (chunked, fused, compiled) is tested against these forms.

    forward_kl   KL(p || q)                                     (GKD, arXiv 2306.13649)
    reverse_kl   KL(q || p)                                     (MiniLLM, arXiv 2306.08543)
    jsd          b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q,  0 < b < 1
    tvd          1/2 sum |p - q| = 1 - sum min(p, q)            (DistillSpec, arXiv 2310.08461)

With g = dL/dq and c = sum q g, the gradient by the student's scaled logits is q (g - c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowPair:
    """Teacher and student rows, already divided by the temperature.

    student_NV and teacher_NV are scaled logits, q_NV and p_NV their softmax, and log_z_*_N the
    logarithms of the two normalisers.
    """

    student_NV: Tensor
    teacher_NV: Tensor
    q_NV: Tensor
    p_NV: Tensor
    log_z_student_N: Tensor
    log_z_teacher_N: Tensor

    @classmethod
    def from_logits(cls, student_NV: Tensor, teacher_NV: Tensor) -> RowPair:
        q_NV, log_z_student_N = _softmax(student_NV)
        p_NV, log_z_teacher_N = _softmax(teacher_NV)
        return cls(student_NV, teacher_NV, q_NV, p_NV, log_z_student_N, log_z_teacher_N)

    def log_ratio_NV(self) -> Tensor:
        """log q - log p, exact where a probability underflows."""
        shift_N = self.log_z_teacher_N - self.log_z_student_N
        return (self.student_NV - self.teacher_NV).add_(shift_N[:, None])


RowFunction = Callable[[RowPair], tuple[Tensor, Tensor]]
"""Maps a pair of rows to (loss_N, gradient_NV by the student's scaled logits). May overwrite
q_NV and p_NV."""


def row_function(name: str, beta: float = 0.5) -> RowFunction:
    """The divergence called `name`.

    Args:
        beta: weight of the teacher in jsd's mixture.

    Raises:
        ValueError: unknown name, or jsd with beta outside (0, 1), where the formula tends to 0
            and silently stops training.
    """
    if name == "jsd":
        if not 0 < beta < 1:
            raise ValueError(f"jsd needs 0 < beta < 1, not {beta}: use forward_kl or reverse_kl.")
        return partial(_jsd, beta=beta)
    if name not in _ROW_FUNCTIONS:
        known = ", ".join(DIVERGENCES)
        raise ValueError(f"Unknown divergence '{name}': choose one of {known}.")
    return _ROW_FUNCTIONS[name]


def _softmax(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax and log-normaliser. Reads the normaliser off the largest probability: far cheaper
    on a CPU than a second exponential pass, and as exact, since that probability is >= 1/V."""
    probability_NV = logits_NV.softmax(-1)
    largest_N1 = logits_NV.argmax(-1, keepdim=True)
    log_z_N1 = logits_NV.gather(-1, largest_N1) - probability_NV.gather(-1, largest_N1).log()
    return probability_NV, log_z_N1.squeeze(-1)


def _dot(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    return torch.linalg.vecdot(a_NV, b_NV)


def _forward_kl(rows: RowPair) -> tuple[Tensor, Tensor]:
    cross_N = _dot(rows.p_NV, rows.teacher_NV) - _dot(rows.p_NV, rows.student_NV)
    loss_N = cross_N - rows.log_z_teacher_N + rows.log_z_student_N
    return loss_N, rows.q_NV.sub_(rows.p_NV)


def _reverse_kl(rows: RowPair) -> tuple[Tensor, Tensor]:
    log_ratio_NV = rows.log_ratio_NV()
    loss_N = _dot(rows.q_NV, log_ratio_NV)
    return loss_N, log_ratio_NV.sub_(loss_N[:, None]).mul_(rows.q_NV)


def _jsd(rows: RowPair, beta: float) -> tuple[Tensor, Tensor]:
    # log(q / m) = -log(b p/q + 1 - b), and likewise for p: no logarithm of an underflowed m.
    log_ratio_NV = rows.log_ratio_NV()
    floor = torch.log(torch.tensor([beta, 1 - beta], dtype=log_ratio_NV.dtype)).tolist()
    log_m_over_q_NV = torch.logaddexp(floor[0] - log_ratio_NV, log_ratio_NV.new_tensor(floor[1]))
    log_q_over_m_NV = log_m_over_q_NV.neg_()
    log_p_over_m_NV = log_q_over_m_NV - log_ratio_NV
    student_side_N = _dot(rows.q_NV, log_q_over_m_NV)
    loss_N = beta * _dot(rows.p_NV, log_p_over_m_NV) + (1 - beta) * student_side_N
    gradient_NV = log_q_over_m_NV.sub_(student_side_N[:, None]).mul_(rows.q_NV).mul_(1 - beta)
    return loss_N, gradient_NV


def _tvd(rows: RowPair) -> tuple[Tensor, Tensor]:
    difference_NV = rows.p_NV.neg_().add_(rows.q_NV)
    loss_N = 0.5 * difference_NV.abs().sum(-1)
    slope_NV = difference_NV.sign_().mul_(0.5)
    mean_N = _dot(rows.q_NV, slope_NV)
    return loss_N, slope_NV.sub_(mean_N[:, None]).mul_(rows.q_NV)


_ROW_FUNCTIONS: dict[str, RowFunction] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "tvd": _tvd,
}
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "tvd")
