"""The head's gradient, summed over chunks in float32 whatever the products are taken in.

Legend: C tokens a chunk, V vocabulary, H student width, B rows of the head at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CPU_PART_BYTES = 4 * 2**20
"""Size of a product on its way into the accumulator: small enough to stay in a CPU's cache."""


class HeadGradient:
    """Accumulates sum over chunks of gradient_CV^T hidden_CH.

    The first chunk writes and the others add, so that nothing is filled with zeros before. A single
    product in the products' own dtype needs no accumulator: it is rounded once either way.

    Args:
        like_VH: the head; its shape, device and dtype.
        dtype: of the products.
        chunks: how many there will be.
    """

    def __init__(self, like_VH: Tensor, dtype: torch.dtype, chunks: int) -> None:
        exact = torch.promote_types(dtype, torch.float32)
        kept = dtype if chunks == 1 and like_VH.dtype == dtype else exact
        self._sum_VH = torch.empty_like(like_VH, dtype=kept)
        self._empty = True

    def add(self, gradient_CV: Tensor, hidden_CH: Tensor) -> None:
        if gradient_CV.dtype == self._sum_VH.dtype:
            beta = 0 if self._empty else 1
            torch.addmm(self._sum_VH, gradient_CV.T, hidden_CH, beta=beta, out=self._sum_VH)
        elif gradient_CV.is_cuda:
            self._add_on_gpu(gradient_CV, hidden_CH)
        else:
            self._add_in_parts(gradient_CV, hidden_CH)
        self._empty = False

    def total(self) -> Tensor:
        return self._sum_VH.zero_() if self._empty else self._sum_VH

    def _add_on_gpu(self, gradient_CV: Tensor, hidden_CH: Tensor) -> None:
        out = {"out_dtype": torch.float32, "out": self._sum_VH}
        if self._empty:
            torch.mm(gradient_CV.T, hidden_CH, **out)
        else:
            torch.addmm(self._sum_VH, gradient_CV.T, hidden_CH, **out)

    def _add_in_parts(self, gradient_CV: Tensor, hidden_CH: Tensor) -> None:
        # A CPU's bfloat16 product cannot end in float32; its rounding is that of one chunk only.
        width = hidden_CH.shape[1]
        rows = max(256, _CPU_PART_BYTES // (width * hidden_CH.element_size()))
        part_BH = hidden_CH.new_empty(min(rows, len(self._sum_VH)), width)
        for start in range(0, len(self._sum_VH), rows):
            sum_BH = self._sum_VH[start : start + rows]
            product_BH = part_BH[: len(sum_BH)]
            torch.mm(gradient_CV[:, start : start + rows].T, hidden_CH, out=product_BH)
            if self._empty:
                sum_BH.copy_(product_BH)
            else:
                sum_BH.add_(product_BH)
