"""How far student and teacher are from held-out data, in squares of probabilities.

Legend: N tokens, C tokens of a chunk, D columns of the student's head, H width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from draftsmith.distill import distributed
from draftsmith.distill.batch import response_states
from draftsmith.distill.evaluate import HeldOut
from draftsmith.distill.loss import label_columns
from draftsmith.distill.models import body
from draftsmith.distill.objectives import Residuals
from draftsmith.distill.vocabulary import draft_tokens, head_rows, restrict_signal

_CHUNK_TOKENS = 256


@torch.no_grad()
def measure_residuals(student: PreTrainedModel, data: HeldOut) -> Residuals:
    """Sums over the tokens of all processes; those that the student may not propose are left out.

    Args:
        data: responses that the data gives, with the teacher's signal on them.
    """
    token_D, head_DH = draft_tokens(student), head_rows(student).float()
    sums = torch.zeros(2, dtype=torch.float64)
    for batch, signal in zip(data.batches, data.signals, strict=True):
        hidden_NH = response_states(body(student), batch).float()
        restricted = restrict_signal(signal, token_D)
        label_N = label_columns(batch, token_D)
        for start in range(0, len(label_N), _CHUNK_TOKENS):
            rows = slice(start, start + _CHUNK_TOKENS)
            teacher_CD = restricted.logits_NV(rows).softmax(-1)
            student_CD = (hidden_NH[rows] @ head_DH.T).softmax(-1)
            sums += squares(teacher_CD, student_CD, label_N[rows])
    aligned, squared = distributed.sum_over_processes(sums).tolist()
    return Residuals(aligned, squared)


def squares(teacher_CD: Tensor, student_CD: Tensor, label_C: Tensor) -> Tensor:
    """(<y - A, f - A>, |f - A|^2) for one-hot y, teacher A and student f, summed over tokens whose
    label is not -1: float64 [2]."""
    kept_C = label_C >= 0
    teacher_CD, student_CD, label_C = teacher_CD[kept_C], student_CD[kept_C], label_C[kept_C]
    away_CD = student_CD - teacher_CD
    at_label_C = away_CD.gather(1, label_C[:, None]).squeeze(1)
    aligned_C = at_label_C - (teacher_CD * away_CD).sum(-1)
    return torch.stack([aligned_C.double().sum(), away_CD.square().sum(-1).double().sum()]).cpu()
